"""A whole stage with ``compute.launcher: slurm``: which of its steps are jobs of the cluster, and what comes out."""

from pathlib import Path

import pytest

from dpo_core.contract.store import sha256_file
from examples.slurm.private_cluster import PrivateCluster
from flows.dpo_stage import dpo_stage
from tasks.launch.own_folder import OWN
from tests.flows.conftest import tiny_config
from tests.tiny_stage import write_inputs

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]
RANKS = {"num_processes": 2, "threads_per_process": 1}
JOBS = {
    "mix",
    "reference",
    "train",
    "export",
    "evaluate",
    "probe",
}  # the last: what the hand-off has the model answer


def steps_with_jobs(store: Path) -> set[str]:
    """The folders of the steps that Slurm started."""
    records = {record for record in store.rglob("slurm") if record.parts[-3] == OWN and any(record.iterdir())}
    return {record.parts[-2 if "handoff" in record.parts else -4] for record in records}


def test_a_stage_on_two_nodes_hands_off_what_two_processes_of_this_machine_train(
    cluster: PrivateCluster, tmp_path
):
    """Fetching, the rehearsal and the upload stay with the orchestrator."""
    inputs, published = write_inputs(tmp_path / "inputs"), {}
    for name, where in (("process", {}), ("slurm", {"machines": 2})):
        store = tmp_path / name
        handoff = dpo_stage(
            tiny_config(
                inputs,
                store,
                train={"max_steps": 4},
                compute={"launcher": name, **RANKS, **where},
                slurm={"poll_seconds": 1},
            )
        )
        assert handoff is not None
        (weights,) = (store / "published").glob("*/model.safetensors")
        published[name] = sha256_file(weights)
        assert steps_with_jobs(store) == (JOBS if name == "slurm" else set())
    assert published["slurm"] == published["process"]
    assert cluster.jobs() == []
