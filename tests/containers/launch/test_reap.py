"""Which containers `pairline reap` takes for orphaned, on a real engine."""

import os
import socket
import time
from collections.abc import Callable, Collection

import pytest

from dpo_core.contract.rank_container import process_mark
from tasks.launch.docker.container import name_by_labels
from tasks.launch.docker.engine import ContainerEngine
from tasks.launch.docker.reap import SECONDS_FOR_ITS_RUN, Reaped, reap
from tasks.launch.own_folder import claim, make_own_folder, own_folder

pytestmark = pytest.mark.integration
FLOW_RUNS = {"live-run": "live", "ended-run": "over"}
GRACE_SECONDS = 300  # a busy machine may take minutes to come to the look


@pytest.fixture
def reaped(client, own_engine, image) -> Callable[..., dict[str, Reaped]]:
    """Start a sleeping container per name with these labels and reap once. -> name -> what was done"""

    def run(
        containers: dict[str, dict[str, object]], only_of: Collection[str] | None = None
    ) -> dict[str, Reaped]:
        for name, labels in containers.items():
            told = {
                "pairline": "1",
                "pairline.step": name,
                "pairline.grace": str(GRACE_SECONDS),
                "pairline.deadline": str(time.time() + 600),
            }
            told |= {f"pairline.{label.replace('_', '-')}": str(value) for label, value in labels.items()}
            client.containers.run(
                image,
                ["sleep", "600"],
                name=name_by_labels(told),
                labels=told,
                init=True,
                detach=True,
                network_mode="none",
            )
        try:
            found = reap(
                ContainerEngine(own_engine.address),
                state_of=lambda one: FLOW_RUNS.get(one, "unknown"),
                only_of=only_of,
            )
            left = {container.name for container in client.containers.list(ignore_removed=True)}
            assert left.isdisjoint(one.name for one in found if one.reason)
            assert len(left) == len(containers) - sum(bool(one.reason) for one in found)
            return {one.step: one for one in found}
        finally:
            for container in client.containers.list(ignore_removed=True):
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


def test_of_one_run_alone(reaped, tmp_path):
    left = {"folder": tmp_path, "deadline": 1}  # so that each would go by itself
    containers = {name: left | {"flow_run": name} for name in ("cancelled", "its-part", "another")}
    done = reaped(containers, only_of={"cancelled", "its-part"})
    assert {name: one.done for name, one in done.items()} == {
        "cancelled": "stopped and removed",
        "its-part": "stopped and removed",
    }


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
                # of Slurm tasks, which a claim says nothing of: it may be held on another machine
                "task-at-work": {
                    "folder": tmp_path / "free",
                    "start": "key.0-1",
                    "driver": process_mark(os.getpid()),
                },
                "task-ended": {
                    "folder": tmp_path / "held",
                    "start": "key.0-0",
                    "driver": f"{socket.gethostname()}:{os.getpid()}:1",
                },
                "task-elsewhere": {"folder": tmp_path / "free", "start": "key.0-2", "driver": "n9:1:1"},
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
        "task-at-work": "",
        "task-ended": "its Slurm task has ended",
        "task-elsewhere": "",
    }
    assert done["task-elsewhere"].done == "left alone: it is of a Slurm task on n9"
    assert done["broken"].done.startswith("left alone: its claim cannot be looked at: ")
    assert (
        done["between-attempts"].done == "left alone: its run has not ended, and may be between two attempts"
    )


def test_a_container_with_our_labels_of_its_image_is_somebodys(client, own_engine, image, tmp_path):
    """Anybody may write them into an image, and with them a folder to be written to and a deadline long ago."""
    (tmp_path / "of-a-person").mkdir()
    labels = {"pairline": "1", "pairline.folder": str(tmp_path / "of-a-person"), "pairline.deadline": "0"}
    container = client.containers.run(
        image, ["sleep", "600"], name="somebodys", labels=labels, init=True, detach=True, network_mode="none"
    )
    try:
        (found,) = reap(ContainerEngine(own_engine.address))
        assert found.done == (
            "left alone: it has our labels, perhaps of its image, and not the name that they make"
        )
        container.reload()
        assert container.status == "running"
        assert [path.name for path in tmp_path.rglob("*")] == ["of-a-person"]
    finally:
        container.remove(force=True)
