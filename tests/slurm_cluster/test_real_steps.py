"""The real steps as jobs of two and of four nodes: the same results as from processes of this machine, to the bit."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_core.contract.data_jobs import MixJob
from dpo_core.contract.job import LOG_FILE
from dpo_core.contract.jobs import Sharding
from dpo_core.contract.refs import ResolvedSource
from dpo_core.contract.store import sha256_file
from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import launcher_for
from tasks.launch.launchers import LauncherSections
from tasks.launch.own_folder import OWN, own_folder
from tasks.launch.run_job import in_store, run_job
from tasks.launch.slurm.config import SlurmConfig
from tests.tiny_models import make_model
from tests.tiny_stage import TinyStage, checkpoint_ref, reference_job, run_here

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("small_chunks")]
RANKS = {"num_processes": 2, "sharding": "zero3", "threads_per_process": 1}
FOUR = {"num_processes": 4, "sharding": "fsdp2", "threads_per_process": 1}


@pytest.fixture
def four_nodes(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrivateCluster]:
    made = PrivateCluster(tmp_path_factory.mktemp("slurm"), num_nodes=4, num_cores=1)
    made.up()
    monkeypatch.setenv("SLURM_CONF", str(made.conf))
    yield made
    made.down()


def test_mixture_and_zero3_weights_are_the_processs_bit_for_bit(cluster: PrivateCluster, tmp_path):
    stage = TinyStage.make(tmp_path / "stage")
    rows = tmp_path / "stage/data/rows.jsonl"
    mix = MixJob(
        sources=(ResolvedSource(label="rows", path=rows, content=sha256_file(rows)),),
        tokenizer_path=stage.checkpoint.path,
        held_out="6",
        num_workers=1,
        tokenizer_fingerprint=stage.checkpoint.tokenizer_fingerprint,
        cache_dir=tmp_path / "cache",
    )
    train = stage.train_job(
        Path("unset"), processes=2, per_device=1, max_steps=6, sharding=Sharding(kind="zero3")
    )
    made = {}
    for compute in (ComputeConfig(**RANKS), ComputeConfig(launcher="slurm", machines=2, **RANKS)):
        launcher = launcher_for(compute, LauncherSections(slurm=SlurmConfig(poll_seconds=2)))
        store = tmp_path / compute.launcher
        mixing, training = (in_store(job, store) for job in (mix, train))
        mixed, trained = run_job(mixing, launcher), run_job(training, launcher)
        made[compute.launcher] = (mixed.data.files, trained.weights_sha256)
        log = (own_folder(training.out_dir) / LOG_FILE).read_text()
        assert '"step"' in log
        assert "FutureWarning" not in log
    assert made["slurm"] == made["process"]
    assert cluster.jobs() == []


def test_a_reference_pass_in_shares_is_that_of_one_process_bit_for_bit(cluster: PrivateCluster, tmp_path):
    stage = TinyStage.make(tmp_path / "stage")
    made = {}
    for compute in (
        ComputeConfig(threads_per_process=1),
        ComputeConfig(launcher="slurm", machines=2, **RANKS),
    ):
        store = tmp_path / compute.launcher
        job = reference_job(store / "x", stage.data, stage.checkpoint, rows_per_shard=4)
        slurm = SlurmConfig(poll_seconds=2, reference_array=3)
        launcher = launcher_for(compute, LauncherSections(slurm=slurm))
        result = run_job(in_store(job, store), launcher)
        assert (result.rows, result.rows_computed) == (40, 40)
        made[compute.launcher] = result.reference.files
    assert made["slurm"] == made["process"]
    assert cluster.jobs() == []


def test_fsdp2_reference_pass_and_evaluation_over_four_nodes(four_nodes: PrivateCluster, tmp_path):
    stage = TinyStage.make(tmp_path / "stage", num_rows=24, held_out="4")
    fsdp2, store = Sharding(kind="fsdp2"), tmp_path / "slurm"
    sections = LauncherSections(slurm=SlurmConfig(poll_seconds=2))
    here = launcher_for(ComputeConfig(**FOUR), sections)
    spread = launcher_for(ComputeConfig(launcher="slurm", machines=4, **FOUR), sections)
    train = stage.train_job(Path("unset"), processes=4, per_device=1, max_steps=2, sharding=fsdp2)
    trained = run_job(in_store(train, store), spread)
    assert trained.weights_sha256 == run_job(in_store(train, tmp_path / "process"), here).weights_sha256
    scored = run_job(in_store(reference_job(store / "x", stage.data, stage.checkpoint), store), spread)
    assert scored.rows_computed == 24
    assert scored.reference.files == stage.reference.reference.files  # of one process
    other = checkpoint_ref(make_model(tmp_path / "other", seed=1))
    evaluate = stage.evaluate_job(tmp_path / "alone", other, num_prompts=4, max_new_tokens=4)
    shared = run_job(in_store(evaluate.model_copy(update={"sharding": fsdp2}), store), spread)
    alone = run_here(evaluate)
    assert shared.answers == alone.answers
    assert shared.after == pytest.approx(alone.after, rel=1e-5, abs=1e-6)
    for step in ("train", "reference", "evaluate"):
        ranks = [
            json.loads(rank.read_text()) for rank in (store / step).glob(f"{OWN}/*/slurm/*/ranks/rank-*.json")
        ]
        assert sorted((rank["rank"], rank["host"]) for rank in ranks) == list(enumerate(four_nodes.nodes))
    assert four_nodes.jobs() == []
