"""The step as a job of a real cluster, over two nodes: the scores of a process of this machine."""

import json

import pytest

from examples.slurm.private_cluster import PrivateCluster
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import launcher_for
from tasks.launch.launchers import LauncherSections
from tasks.launch.own_folder import OWN
from tasks.launch.run_job import in_store, run_job
from tasks.launch.slurm.config import SlurmConfig
from tests.benchmark_jobs import benchmark_job, folder_of, write_tasks
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref

TASKS = ("one", "two")
SPREAD = {"launcher": "slurm", "machines": 2, "num_processes": 2}


@pytest.mark.integration
@pytest.mark.usefixtures("cold_steps")
def test_a_job_of_two_nodes_scores_what_a_process_does(cluster: PrivateCluster, tmp_path):
    checkpoint = checkpoint_ref(make_model(tmp_path / "model"))
    folders = (folder_of(write_tasks(tmp_path / "tasks", TASKS)),)
    made = {}
    for where in ({}, SPREAD):
        compute = ComputeConfig(threads_per_process=1, **where)
        store = tmp_path / compute.launcher
        job = benchmark_job(store / "x", checkpoint, tasks=TASKS, folders=folders, limit=None)
        launcher = launcher_for(compute, LauncherSections(slurm=SlurmConfig(poll_seconds=1)))
        made[compute.launcher] = run_job(in_store(job, store), launcher)
        assert len(list(store.glob("benchmark-scores/[!.]*/scores.json"))) == len(TASKS)
    alone, spread = made["process"], made["slurm"]
    assert alone.tasks_computed == spread.tasks_computed == len(TASKS)
    for one, other in zip(alone.scores, spread.scores, strict=True):
        assert (one.task, one.documents) == (other.task, other.documents)
        assert [metric.parts for metric in one.metrics] == [metric.parts for metric in other.metrics]
        figures = [(metric.value, metric.stderr) for metric in one.metrics]
        assert [(metric.value, metric.stderr) for metric in other.metrics] == [
            pytest.approx(pair, rel=1e-12) for pair in figures
        ]
    ranks = (tmp_path / "slurm").glob(f"benchmark/{OWN}/*/slurm/*/ranks/rank-*.json")
    told = [json.loads(rank.read_text()) for rank in ranks]
    assert sorted((rank["rank"], rank["host"]) for rank in told) == list(enumerate(cluster.nodes))
    assert cluster.jobs() == []
