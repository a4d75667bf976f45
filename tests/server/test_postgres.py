"""PostgreSQL by one variable: everything that `up` brings is in it, a run completes, and a new server finds all again."""

import time
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun

from tests.server.conftest import Installation, installed, wait_until
from tests.server.postgres import Cluster, cluster
from tests.server.test_deployments import DEPLOYMENTS
from tests.tiny_stage import tiny_values

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
PASSWORD = "planted-5up3r-s3cret"
SECONDS_OF_STALL = 40


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")


def run_beside_a_stall(made: Installation, database: Cluster, inputs: Path, store: Path) -> FlowRun:
    """A stage during whose training the database answers nothing for longer than Prefect's own 10 s. -> the run"""
    run = made.start("dpo-stage/manual", {"config": tiny_values(inputs, store, train={"num_epochs": 4})})
    wait_until(lambda: list(store.glob("train/*/metrics.jsonl")), "its training", lambda: made.describe(run))
    with database.stalled():
        time.sleep(SECONDS_OF_STALL)
    done = made.wait_for_end(run)
    with made.client() as client:
        states = [state.name for state in client.read_flow_run_states(run)]
    assert states[-1] == "Completed", states
    assert "Crashed" not in states, states
    return done


def test_a_server_on_postgresql_runs_and_comes_back(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    home = tmp_path / "home"
    with cluster(PASSWORD) as database, installed(home, PAIRLINE_DATABASE_URL=database.url) as made:
        said = capsys.readouterr().out
        assert made.settings.ui_url in said
        assert PASSWORD not in said
        assert not list(home.rglob("*.db"))  # no SQLite beside it
        assert PASSWORD in environment_of(made.server.pid())
        assert PASSWORD not in environment_of(made.worker.pid())
        done = run_beside_a_stall(made, database, inputs, tmp_path / "store")
        made.server.stop(grace_seconds=20)
        again = made.pairline("up")
        assert again.returncode == 0, again.stdout + again.stderr
        assert PASSWORD not in again.stdout + again.stderr
        assert made.run(done.id).state.is_completed()
        with made.client() as client:
            assert all(client.read_deployment_by_name(name) for name in DEPLOYMENTS)
