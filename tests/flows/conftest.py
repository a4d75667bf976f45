"""A tiny stage to run flows on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client

from flows.settings.overrides import validated
from flows.settings.stage_config import StageConfig
from tasks.run.folder import RunRecord, read_runs
from tests.prefect_harness import prefect_server
from tests.tiny_stage import tiny_values, write_inputs
from tests.waiting import PATIENCE_SECONDS
from tests.warm.started import python_path

__all__ = ["prefect_server"]  # a fixture of several folders
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="session")
def tiny_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a 2-layer model in ``sft/`` and 60 pairs in ``pairs.jsonl``."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    """Of the server that the tests share."""
    with get_client(sync_client=True) as made:
        yield made


def tiny_config(inputs: Path, store: Path, **sections: dict) -> StageConfig:
    """A run of 25 steps over the tiny inputs; keywords replace settings section by section."""
    return validated(tiny_values(inputs, store, **sections), "tiny")


def last_run(store: Path) -> tuple[Path, RunRecord]:
    return read_runs(store)[-1]


def launches(store: Path) -> dict[str, int]:
    """How often each step's program was started."""
    counts: dict[str, int] = {}
    for log in store.glob("*/*/log.txt"):
        step = log.parent.parent.name
        counts[step] = counts.get(step, 0) + log.read_text().count("accelerate.commands.launch")
    return counts


def step_processes(folder: Path) -> list[int]:
    """Process ids of the step programs (not their launchers) at work below ``folder``."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = cmdline.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(str(folder).encode() in part for part in argv) and b"accelerate.commands.launch" not in argv:
            found.append(int(cmdline.parent.name))
    return found


def pairline(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    """The command line in a process of its own, with more variables in its environment."""
    return subprocess.run(
        [sys.executable, "-m", "flows.terminal", *arguments],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env=os.environ | {"PYTHONPATH": python_path()} | variables,
    )
