"""PostgreSQL by one variable: everything that `up` brings is in it, a run completes, and a new server finds all again."""

from pathlib import Path

import pytest

from tests.server.conftest import installed
from tests.server.postgres import cluster
from tests.server.test_deployments import DEPLOYMENTS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
PASSWORD = "planted-5up3r-s3cret"


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")


def test_a_server_on_postgresql_runs_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = tmp_path / "home"
    with cluster(PASSWORD) as url, installed(home, PAIRLINE_DATABASE_URL=url) as made:
        said = capsys.readouterr().out
        assert made.settings.ui_url in said
        assert PASSWORD not in said
        assert not list(home.rglob("*.db"))  # no SQLite beside it
        assert PASSWORD in environment_of(made.server.pid())
        assert PASSWORD not in environment_of(made.worker.pid())
        done = made.wait_for_end(made.start("store-gc/store-gc", {"store_root": str(tmp_path / "store")}))
        assert done.state.is_completed(), done.state.message
        made.server.stop(grace_seconds=20)
        again = made.pairline("up")
        assert again.returncode == 0, again.stdout + again.stderr
        assert PASSWORD not in again.stdout + again.stderr
        assert made.run(done.id).state.is_completed()
        with made.client() as client:
            assert all(client.read_deployment_by_name(name) for name in DEPLOYMENTS)
