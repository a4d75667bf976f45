"""The real steps as jobs of two nodes: the same results as from processes of this machine, to the bit."""

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
from tasks.launch.own_folder import own_folder
from tasks.launch.run_job import in_store, run_job
from tasks.launch.slurm.config import SlurmConfig
from tests.tiny_stage import TinyStage, reference_job

pytestmark = pytest.mark.integration
RANKS = {"num_processes": 2, "sharding": "zero3", "threads_per_process": 1}


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
