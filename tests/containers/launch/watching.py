"""Watching a run from outside: its container, its lines, its orchestrator as a program that can be killed."""

import os
import signal
import subprocess
from pathlib import Path

import docker
from docker.models.containers import Container

from dpo_core.contract.job import Result
from dpo_core.contract.progress import ProgressEvent
from tasks.launch.context import Context
from tasks.launch.docker.container import container_name
from tests.containers.launch.stand_in import ROOT, ContainerStep, command_of
from tests.waiting import wait_until

# Programs in the trainer's place. The first waits for ``ContainerStep.go_on`` with its last line.
COUNTING = """
    for number in range({count}):
        if number == {count} - 1:
            wait_for("go-on")
        print(f"line {{number}}", flush=True)
        time.sleep({pause})
    succeed()"""
CHECKPOINTS_WHEN_ASKED = """
    def checkpoint(*_):
        time.sleep(0.5)
        (folder / "checkpoint").write_text("written")
        sys.exit(20)
    signal.signal(signal.SIGTERM, checkpoint)
    print("up", flush=True)
    while True:
        time.sleep(0.1)"""
CHECKPOINTS_WHEN_LET_GO = CHECKPOINTS_WHEN_ASKED.replace(
    "time.sleep(0.5)", '(folder / "asked").touch(); wait_for("go-on")'
)


def containers_of(store: Path, client: docker.DockerClient) -> list[Container]:
    """Those of jobs below ``store``, ended ones included."""
    return [
        one
        for one in client.containers.list(all=True, ignore_removed=True, filters={"label": "pairline=1"})
        if one.labels["pairline.folder"].startswith(f"{store}/")
    ]


def container_of(client: docker.DockerClient, step: ContainerStep) -> Container:
    return client.containers.get(container_name(command_of(step)))


class Heard:
    """Log lines of the run, as Prefect would get them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, event: ProgressEvent) -> None:
        """Not of interest."""

    def end(self) -> None:
        """Nothing to do."""


def run_and_hear(step: ContainerStep, heard: Heard) -> Result:
    return step.run(Context(lines=heard))


def killed_orchestrator(step: ContainerStep, lines: int) -> None:
    """Start the run as a program of its own and kill -9 it when the step has printed ``lines``."""
    process = subprocess.Popen(step.orchestrator(), env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_until(lambda: len(step.log_lines) >= lines)
    process.send_signal(signal.SIGKILL)
    process.wait()
