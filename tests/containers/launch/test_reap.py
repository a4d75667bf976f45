"""Which containers `pairline reap` takes for orphaned, on a real engine."""

import time
from collections.abc import Callable

import pytest

from tasks.launch.docker.engine import ContainerEngine
from tasks.launch.docker.reap import SECONDS_FOR_ITS_RUN, Reaped, reap
from tasks.launch.own_folder import claim, make_own_folder, own_folder

pytestmark = pytest.mark.integration
FLOW_RUNS = {"live-run": "live", "ended-run": "over"}
GRACE_SECONDS = 5


@pytest.fixture
def reaped(client, own_engine, image) -> Callable[[dict[str, dict[str, object]]], dict[str, Reaped]]:
    """Start a sleeping container per name with these labels and reap once. -> name -> what was done"""

    def run(containers: dict[str, dict[str, object]]) -> dict[str, Reaped]:
        for name, labels in containers.items():
            told = {
                "pairline": "1",
                "pairline.grace": str(GRACE_SECONDS),
                "pairline.deadline": str(time.time() + 600),
            }
            told |= {f"pairline.{label.replace('_', '-')}": str(value) for label, value in labels.items()}
            client.containers.run(
                image, ["sleep", "600"], name=name, labels=told, init=True, detach=True, network_mode="none"
            )
        try:
            found = reap(
                ContainerEngine(own_engine.address), state_of=lambda one: FLOW_RUNS.get(one, "unknown")
            )
            left = {container.name for container in client.containers.list()}
            assert left == {one.container for one in found if not one.reason}
            return {one.container: one for one in found}
        finally:
            for container in client.containers.list():
                container.remove(force=True)

    return run


def test_a_folder_that_is_not_here_leaves_the_deadline_and_the_runs_state(reaped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, passed = "/not/here", time.time() - GRACE_SECONDS - 1
    done = reaped(
        {
            "in-time": {"folder": folder, "flow_run": "live-run"},
            "no-folder": {},
            "in-grace": {"folder": folder, "deadline": time.time()},
            "over-time": {"folder": folder, "deadline": passed, "flow_run": "live-run"},
            "run-ended": {"folder": folder, "flow_run": "ended-run"},
        }
    )
    assert {name: one.reason for name, one in done.items()} == {
        "in-time": "",
        "no-folder": "",
        "in-grace": "",
        "over-time": "its deadline has passed, and its folder is not here",
        "run-ended": "its flow run has ended, and its folder is not here",
    }
    assert done["over-time"].done == done["run-ended"].done == "stopped and removed"
    assert done["no-folder"].done.startswith("left alone: its folder is not to be seen from here")
    assert not list(tmp_path.iterdir())  # no label is not the working directory


def test_a_claim_that_is_free_held_or_broken(reaped, tmp_path):
    """A folder that cannot be locked keeps nothing else from being looked at."""
    for name in ("free", "held", "broken"):
        (tmp_path / name).mkdir()
    make_own_folder(tmp_path / "broken").rmdir()
    own_folder(tmp_path / "broken").write_text("no folder")
    long_ago = time.time() - GRACE_SECONDS - SECONDS_FOR_ITS_RUN - 1
    with claim(tmp_path / "held"):
        done = reaped(
            {
                "broken": {"folder": tmp_path / "broken"},
                "broken-over-time": {"folder": tmp_path / "broken", "deadline": long_ago},
                "held": {"folder": tmp_path / "held"},
                "held-over-time": {"folder": tmp_path / "held", "deadline": long_ago},
                "between-attempts": {"folder": tmp_path / "free", "flow_run": "live-run"},
                "over-between-attempts": {
                    "folder": tmp_path / "free",
                    "flow_run": "live-run",
                    "deadline": long_ago,
                },
                "run-ended": {"folder": tmp_path / "free", "flow_run": "ended-run"},
                "without-prefect": {"folder": tmp_path / "free"},
            }
        )
    assert {name: one.reason for name, one in done.items()} == {
        "broken": "",
        "broken-over-time": "its deadline has passed, and its claim cannot be looked at",
        "held": "",
        "held-over-time": "its deadline has passed, and its run does not end it",
        "between-attempts": "",
        "over-between-attempts": "no live run owns it",
        "run-ended": "no live run owns it",
        "without-prefect": "no live run owns it",
    }
    assert done["broken"].done.startswith("left alone: its claim cannot be looked at: ")
    assert (
        done["between-attempts"].done == "left alone: its run has not ended, and may be between two attempts"
    )
