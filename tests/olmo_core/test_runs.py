"""Whole runs on OLMo-core: those of transformers, from one process or several, killed, and gone on elsewhere."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.jobs import Sharding, TrainJob, TrainResult
from dpo_core.contract.results import read_result
from dpo_core.engine.checkpoint import newest_checkpoint
from dpo_core.model.load import load_on_olmo_core
from tests.dpo_core.engine.test_sharded import (
    PLAIN,
    assert_near,
    assert_same_evaluation,
    assert_same_reference,
    exported_and_trained,
    job_in,
    kill_at_some_moment,
    take_history,
)
from tests.dpo_core.engine.test_tensor_parallel import (
    MODELS,
    TELLING,
    TOGETHER,
    assert_same_short_run,
    short,
    stage_of,
)
from tests.dpo_core.engine.test_written_behind import kill_in_writing
from tests.dpo_core.training.test_resume import assert_same_run
from tests.random_moments import chance
from tests.step_process import SMALL_CHUNKS, metrics_of, run_ranks
from tests.tiny_models import make_model
from tests.tiny_stage import TinyStage, checkpoint_ref, reference_job, run_here

pytestmark = pytest.mark.integration

FSDP2 = Sharding(kind="fsdp2")
EACH_DEGREE = Sharding(kind="fsdp2", degree=4, tensor_degree=2)  # on eight: two copies of the model
# The last word of a run's name -> how it is shared out, among how many processes; else it is one process.
LAYOUTS = {
    "two": (FSDP2, 2),
    "zero3": (Sharding(kind="zero3"), 2),
    "four": (Sharding(kind="fsdp2", degree=2), 4),
    "together": (TOGETHER, 4),  # two shares of the pairs, two processes each
}


def on_olmo_core(job: TrainJob) -> TrainJob:
    """The same job on OLMo-core."""
    train = job.train.model_copy(update={"implementation": "olmo_core"})
    return job.model_copy(update={"train": train}).at(job.out_dir)


@dataclass
class Runs:
    """18 steps of one job, by who computes them; made when first asked for."""

    stage: TinyStage
    root: Path

    def job(self, name: str, folder: Path) -> tuple[TrainJob, int]:
        """-> job, processes"""
        sharding, processes = LAYOUTS.get(name.rpartition(" ")[2], (PLAIN, 1))
        job = job_in(self.stage, folder, sharding, processes // sharding.tensor_degree)
        return (on_olmo_core(job) if name.startswith("olmo_core") else job), processes

    def __getitem__(self, name: str) -> TrainResult:
        job, processes = self.job(name, self.root / name)
        return read_result(job) or (
            run_here(job) if processes == 1 else run_ranks(job, processes, module=TELLING)
        )


@pytest.fixture(scope="module")
def runs(stage, tmp_path_factory) -> Runs:
    return Runs(stage, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", ["olmo_core", "olmo_core two", "olmo_core four", "olmo_core together"])
def test_a_run_is_that_of_transformers(runs, name):
    """Steps, evaluations and weights, from reference values that transformers computed: in fp32 it is one job."""
    result, expected = runs[name], runs["transformers"]
    assert result.job_fingerprint == expected.job_fingerprint
    assert_near(result, expected)
    assert result.forward == "packed"
    assert result.guard["largest_difference_per_token"] < 1e-5
    assert result.checks["layout_difference"] < 1e-5
    assert result.all_parameters == expected.all_parameters


def test_each_rank_holds_its_part_and_no_more(runs):
    total = runs["olmo_core two"].all_parameters
    for rank in (0, 1):
        held = json.loads((runs.root / "olmo_core two" / f"held-{rank}.json").read_text())
        assert held["weights"] == pytest.approx(total / 2, rel=0.01)
        assert held["moments"] == pytest.approx(total, rel=0.01)
        assert held["dtensors"] > 0


@pytest.mark.parametrize("name", ["olmo_core four", "olmo_core together"])
def test_killed_at_any_moment_and_resumed_it_gives_the_same_bits(runs, tmp_path, name):
    """Two processes, and a kill in the middle of writing, are the next test's."""
    job, processes = runs.job(name, tmp_path / "run")
    kill_at_some_moment(job, chance(), processes)
    found = newest_checkpoint(job.out_dir / "checkpoints", job.fingerprint)
    result = run_ranks(job, processes)
    assert result.resumed_from_step == (found[1].step if found else None)
    assert_same_run(result, runs[name])


def test_a_rank_killed_in_the_middle_of_writing_leaves_the_checkpoint_before(runs, tmp_path, monkeypatch):
    job, processes = runs.job("olmo_core two", tmp_path)
    found = kill_in_writing(job, chance().randrange(processes), processes, monkeypatch)
    result = run_ranks(job)
    assert result.resumed_from_step == found
    assert_same_run(result, runs["olmo_core two"])


@pytest.mark.parametrize(
    ("begun_with", "name"),
    [
        ("olmo_core together", "transformers"),
        ("transformers", "olmo_core together"),
        ("transformers zero3", "olmo_core two"),
        ("olmo_core two", "olmo_core"),
        ("olmo_core together", "olmo_core four"),
        ("olmo_core four", "transformers two"),
    ],
)
def test_a_run_goes_on_with_the_other_implementation_or_number_of_processes(runs, tmp_path, begun_with, name):
    """Columns and rows of matrices among them, and ZeRO-3's parts: a checkpoint is one thing, whoever wrote it."""
    begun, (job, processes) = runs[begun_with], runs.job(name, tmp_path)
    shutil.copytree(
        begun.weights_path.parent / "checkpoints" / "step-00000010",
        tmp_path / "checkpoints" / "step-00000010",
    )
    take_history(begun, tmp_path)
    result = run_ranks(job, processes) if processes > 1 else run_here(job)
    assert result.resumed_from_step == 10
    assert_near(result, runs["transformers"])


@pytest.mark.parametrize(
    ("name", "sharding", "processes"),
    [("norms of each head", TOGETHER, 2), ("norms over all heads, windows", EACH_DEGREE, 8)],
)
def test_norms_of_queries_of_processes_that_compute_together(tmp_path, name, sharding, processes):
    """Eight are two copies, each shared out by FSDP2 among two pairs that compute together."""
    stage = stage_of(MODELS[name], tmp_path)
    alone = run_here(short(stage, tmp_path / "alone"))
    shares = {"per_device": 1, "processes": processes // sharding.tensor_degree, "sharding": sharding}
    job = stage.train_job(tmp_path / "shared", max_steps=3, checkpoint_every=2, **shares)
    result = run_ranks(on_olmo_core(job), processes, module=TELLING)
    assert_same_short_run(result, alone)
    held = json.loads((tmp_path / "shared" / "held-0.json").read_text())
    assert held["weights"] == pytest.approx(alone.all_parameters / min(processes, 4), rel=0.05)


@pytest.mark.parametrize("name", ["olmo_core", "olmo_core two", "olmo_core together"])
def test_its_weights_are_exported_as_those_of_transformers(runs, stage, tmp_path, name):
    """By the one export there is: stock transformers loads what it wrote."""
    result = runs[name]
    exported, trained = exported_and_trained(result, stage.checkpoint, tmp_path)
    for key, parameter in exported.named_parameters():
        assert parameter[: len(trained[key])].equal(trained[key]), key


@pytest.mark.parametrize(
    ("sharding", "processes", "program"),
    [(FSDP2, 4, "tests.programs.roomy_cards"), (TOGETHER, 2, SMALL_CHUNKS)],
    ids=["copies", "together"],
)
def test_reference_values_and_evaluation_are_those_of_transformers(
    stage, tmp_path, sharding, processes, program
):
    """Answers, their end and the KL included. Four have room for a copy on each of two machines and, for answers, card."""
    job = reference_job(
        tmp_path / "reference",
        stage.data,
        stage.checkpoint,
        rows_per_shard=8,
        sharding=sharding,
        implementation="olmo_core",
    )
    result = run_ranks(job, processes, module=program)
    assert (result.rows, result.rows_computed) == (40, 40)
    assert_same_reference(stage, result)
    other = checkpoint_ref(make_model(tmp_path / "other", seed=1))
    job = stage.evaluate_job(tmp_path / "evaluation", other, num_prompts=5, max_new_tokens=8, measure_kl=True)
    alone = run_here(job.at(tmp_path / "alone"))
    job = job.model_copy(update={"sharding": sharding, "implementation": "olmo_core"}).at(job.out_dir)
    assert_same_evaluation(run_ranks(job, processes, module=program), alone)
    if processes == 4:
        told = json.loads((tmp_path / "reference" / "answered-0.json").read_text())
        assert told["shards"] == 2, "each of two machines has a copy"
        of_ranks = [json.loads((job.out_dir / f"answered-{rank}.json").read_text()) for rank in range(4)]
        assert [of_rank["prompts"] for of_rank in of_ranks] == [2 * 2, 2, 2, 2], "before and after"
        assert [of_rank["exchanges"] for of_rank in of_ranks] == [0, 0, 0, 0]


def test_in_fp32_cached_values_serve_both_and_in_bf16_each_has_its_own(stage, tmp_path):
    def job(precision: str, implementation: str):
        return reference_job(
            tmp_path / f"{precision} {implementation}",
            stage.data,
            stage.checkpoint,
            precision=precision,
            implementation=implementation,
            cache_dir=tmp_path / "cache",
        )

    computed = {
        (precision, implementation): run_here(job(precision, implementation))
        for precision in ("fp32", "bf16")
        for implementation in ("transformers", "olmo_core")
    }
    assert {key: result.rows_computed for key, result in computed.items()} == {
        ("fp32", "transformers"): 40,
        ("fp32", "olmo_core"): 0,
        ("bf16", "transformers"): 40,
        ("bf16", "olmo_core"): 40,
    }
    for sharding, processes in ((PLAIN, 1), (FSDP2, 2)):
        train = stage.train_job(
            tmp_path / f"train {processes}",
            processes=processes,
            per_device=1,
            precision="bf16",
            implementation="olmo_core",
            reference=computed["bf16", "olmo_core"].reference,
            sharding=sharding,
            max_steps=3,
        )
        result = run_ranks(train, processes) if processes > 1 else run_here(train)
        assert result.guard["largest_difference_per_token"] < 2e-2
        assert all(np.isfinite(step["loss"]) for step in metrics_of(train.out_dir))


def test_weights_in_files_of_another_form_are_refused(stage, tmp_path):
    folder = shutil.copytree(stage.checkpoint.path, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    checkpoint = stage.checkpoint.model_copy(update={"path": folder})
    with pytest.raises(CheckpointError, match="no safetensors files of the tensors"):
        load_on_olmo_core(checkpoint)
