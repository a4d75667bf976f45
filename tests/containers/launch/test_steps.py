"""The real steps in the real trainer image: the same results as in processes, to the bit, and the same resume."""

import contextlib
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import docker
import numpy as np
import pytest

from dpo_core.contract.data_jobs import MixJob, MixResult
from dpo_core.contract.errors import DiskFull, Preempted
from dpo_core.contract.job import Job, Result
from dpo_core.contract.jobs import AnswerJob, ExportJob, ReferenceResult, Sharding
from dpo_core.contract.refs import CheckpointRef, ResolvedSource
from dpo_core.contract.results import read_error
from dpo_core.contract.store import sha256_file
from tasks.image.image_ref import PYTHON, ImageRef
from tasks.launch.command import step_command
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.docker.config import DockerConfig
from tasks.launch.docker.container import container_name
from tasks.launch.docker.launcher import DockerLauncher
from tasks.launch.launcher import Launcher
from tasks.launch.process import ProcessLauncher
from tasks.launch.run_job import in_store, run_job
from tests.step_process import metrics_of
from tests.tiny_models import make_model
from tests.tiny_stage import TinyStage, checkpoint_ref, make_rows, reference_job
from tests.waiting import wait_until

pytestmark = pytest.mark.integration
COMPUTE = ComputeConfig(launcher="docker", threads_per_process=1)


@pytest.fixture(scope="module")
def in_containers(trainer: ImageRef) -> DockerLauncher:
    return DockerLauncher(COMPUTE, trainer.reference, PYTHON, DockerConfig(memory_gib=4))


@pytest.fixture(scope="module")
def as_processes() -> ProcessLauncher:
    return ProcessLauncher(COMPUTE.model_copy(update={"launcher": "process"}))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> TinyStage:
    made = TinyStage.make(tmp_path_factory.mktemp("stage"))
    allow_reading(made.checkpoint.path)
    return made


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def allow_reading(folder: Path) -> None:
    """As a snapshot of the checkpoint would; safetensors' own files are their owner's alone."""
    for file in folder.iterdir():
        file.chmod(0o644)


def run(job: Job, launcher: Launcher, store: Path) -> Result:
    return run_job(in_store(job, store), launcher)


def mix_and_reference(
    launcher: Launcher, checkpoint: CheckpointRef, rows: Path, store: Path
) -> tuple[MixResult, ReferenceResult]:
    mixed = run(mix_job(rows, checkpoint, store), launcher, store)
    scored = run(
        reference_job(Path("unset"), mixed.data, checkpoint, cache_dir=store / "reference-rows"),
        launcher,
        store,
    )
    return mixed, scored


def mix_job(rows: Path, checkpoint: CheckpointRef, store: Path) -> MixJob:
    source = ResolvedSource(label="rows", path=rows, content=sha256_file(rows))
    return MixJob(
        sources=(source,),
        tokenizer_path=checkpoint.path,
        held_out="20",
        num_workers=2,
        tokenizer_fingerprint=checkpoint.tokenizer_fingerprint,
        cache_dir=store / "cache",
    )


def values_in(folder: Path) -> dict[str, bytes]:
    """Reference values by file and array; the files themselves tell the time of day."""
    files = {path.name: np.load(path) for path in folder.glob("*.npz")}
    return {f"{name} {array}": file[array].tobytes() for name, file in files.items() for array in file.files}


def test_data_and_reference_values_are_the_processs(in_containers, as_processes, tmp_path):
    """Enough rows that the mixture is made by several processes; the folders are shared by steps and, in turn, launchers."""
    checkpoint = checkpoint_ref(make_model(tmp_path / "model"))
    allow_reading(checkpoint.path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(jsonl(make_rows(1200)))
    made = {}
    for launcher in (as_processes, in_containers):
        store = tmp_path / launcher.compute.launcher
        mixed, scored = mix_and_reference(launcher, checkpoint, rows, store)
        made[launcher.compute.launcher] = (
            mixed.data.files,
            mixed.data.fingerprint,
            values_in(scored.reference.path),
        )
    assert made["docker"] == made["process"]


def test_trained_and_exported_weights_are_the_processs_bit_for_bit(
    in_containers, as_processes, stage, tmp_path
):
    trained = {}
    for launcher in (as_processes, in_containers):
        store = tmp_path / launcher.compute.launcher
        weights = run(stage.train_job(Path("unset")), launcher, store)
        exported = run(
            ExportJob(
                weights_path=weights.weights_path,
                checkpoint=stage.checkpoint,
                weights_fingerprint=weights.weights_fingerprint,
            ),
            launcher,
            store,
        )
        answer = run(
            AnswerJob(checkpoint_path=exported.path, files=exported.files, prompts=("sky",)), launcher, store
        )
        trained[launcher.compute.launcher] = (weights.weights_sha256, exported.files, answer.answers)
    assert trained["docker"] == trained["process"]


def test_a_training_whose_container_is_stopped_goes_on_with_the_same_bits(
    in_containers, as_processes, stage, tmp_path
):
    """As those of a process that nothing stops, which a container's are (see above)."""
    job = stage.train_job(Path("unset"), num_epochs=40)
    whole = run(job, as_processes, tmp_path / "whole")
    resumed = in_store(job, tmp_path / "resumed")
    name = container_name(step_command(resumed, COMPUTE, in_containers.machine, PYTHON))
    with ThreadPoolExecutor() as pool, contextlib.closing(docker.from_env(timeout=300)) as client:
        first = pool.submit(run_job, resumed, in_containers)
        wait_until(lambda: len(metrics_of(resumed.out_dir)) > 5 or first.done())
        client.containers.get(name).stop()
        with pytest.raises(Preempted, match="a checkpoint of step"):
            first.result()
    result = run_job(resumed, in_containers)
    assert result.resumed_from_step
    assert result.weights_sha256 == whole.weights_sha256


def test_a_full_store_is_told_by_the_step_itself_and_leaves_nothing_behind(in_containers, stage, tmp_path):
    """It is met while the rows are written."""
    rows, small = tmp_path / "rows.jsonl", tmp_path / "small"
    rows.write_text(jsonl(make_rows(1200)))
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small], check=True)
    try:
        job = in_store(mix_job(rows, stage.checkpoint, small), small)
        with pytest.raises(DiskFull, match=r"No space left on the disk while .*`store\.root`"):
            run_job(job, in_containers)
        assert read_error(job).kind == "disk_full"
        assert not (job.out_dir / "data").exists()
        with contextlib.closing(docker.from_env()) as client:
            assert not client.containers.list(
                all=True, ignore_removed=True, filters={"label": f"pairline.job={job.fingerprint}"}
            )
    finally:
        subprocess.run(["umount", small], check=True)


def test_two_processes_share_weights_out_in_one_container(
    in_containers, trainer_of_small_chunks: str, stage, tmp_path
):
    compute = COMPUTE.model_copy(update={"num_processes": 2, "sharding": "zero3"})
    launcher = replace(in_containers, image=trainer_of_small_chunks, compute=compute)
    job = stage.train_job(
        Path("unset"), processes=2, per_device=1, max_steps=3, sharding=Sharding(kind="zero3")
    )
    assert run(job, launcher, tmp_path).steps == 3
