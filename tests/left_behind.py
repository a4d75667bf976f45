"""Nothing of a test outlives its run: a plugin that marks what the run starts, looks for it at the end, and ends it.

All temporary files of a run lie in one folder, all its processes have its name in their environment. At the end processes,
containers and mounts that are still there are told, and make the run fail. A watcher, a process apart, ends them and removes
the folder; it also does so for a run that was interrupted or killed. What a watcher could not end, as the engine had ended
before it, the next run's does: a container that restarts would take its share of every later run's time.
PAIRLINE_KEEP_TEMPORARY=1 keeps the folder.
"""

import contextlib
import json
import multiprocessing.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

MARK = "RUN_OF_TESTS"  # without a prefix that tests filter
KEEP, KEPT = "PAIRLINE_KEEP_TEMPORARY", "kept"  # the variable, and a file that says so to later runs
MEMORY = Path("/dev/shm")
PROJECT = "com.docker.compose.project"  # a label of all that compose makes
FOLDERS, PREFIX = Path("/tmp"), "pairline-tests-"
SECONDS_TO_BEGIN = 60.0  # from a run's folder to its watcher
# What was asked to end may take a while on a busy machine.
SECONDS_TO_END = float(os.environ.get("PAIRLINE_SECONDS_FOR_TESTS_TO_END", "20"))
SECONDS_TO_SETTLE = 5.0
SECONDS_TO_REMOVE = 900.0
ENDED = "ended"  # what the watcher is told of a run that was not interrupted
# Children of pytest itself, which end with it.
OF_PYTHON = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")


def folder_in_memory() -> Path:
    """Of this run, for what must not wait for a disk; on the disk where there is no such file system."""
    run = Path(os.environ[MARK])
    made = MEMORY / run.name if MEMORY.is_dir() else run / "memory"
    made.mkdir(exist_ok=True)
    return made


@dataclass(frozen=True)
class Run:
    """One run of the tests, known by its folder."""

    folder: Path

    @classmethod
    def begin(cls) -> "Run":
        """Mark this process's environment. Others may enter the folder: PostgreSQL's user works in it."""
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=FOLDERS))
        folder.chmod(0o711)
        os.environ[MARK] = os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None
        return cls(folder)

    @classmethod
    def dead(cls) -> "list[Run]":
        """Those that left a folder or containers, and have no watcher any more."""
        known = {*FOLDERS.glob(f"{PREFIX}*")}
        for container in _containers():
            known |= {folder for source in _sources(container) for folder in source.parents}
        watched = {command.split()[-1] for command in commands().values() if Path(__file__).name in command}
        return [
            cls(folder)
            for folder in sorted(known)
            if folder.parent == FOLDERS
            and folder.name.startswith(PREFIX)
            and str(folder) not in watched
            and not (folder / KEPT).exists()
            and _age(folder) > SECONDS_TO_BEGIN
        ]

    def processes(self) -> dict[int, str]:
        """Live processes by id, with their command lines: marked ones, ones that name the folder, and all below them."""
        of_parent: dict[int, list[int]] = {}
        live, found = commands(), set()
        # A server gets of its environment what it needs: of ours, where temporary files go.
        own = {f"{name}={self.folder}".encode() for name in (MARK, "TMPDIR")}
        for pid, command in live.items():
            with contextlib.suppress(OSError):
                stat, marks = Path(f"/proc/{pid}/stat"), Path(f"/proc/{pid}/environ")
                parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
                of_parent.setdefault(parent, []).append(pid)
                if own & set(marks.read_bytes().split(b"\0")) or f"{self.folder}/" in command:
                    found.add(pid)
        below = list(found)
        while below:
            below = [child for pid in below for child in of_parent.get(pid, ()) if child not in found]
            found.update(below)
        return {pid: live[pid] for pid in sorted(found - _own_line())}

    def containers(self) -> list[dict]:
        """Containers on this machine's engine that a folder of the run is mounted into, and those of the same compose
        projects, as the engine describes them."""
        all_of_them = _containers()
        ours = [one for one in all_of_them if any(self.folder in source.parents for source in _sources(one))]
        projects = {_project(one) for one in ours} - {None}
        return [one for one in all_of_them if one in ours or _project(one) in projects]

    def mounts(self) -> list[str]:
        """Mount points below the folder, the innermost first."""
        points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        return sorted((point for point in points if point.startswith(f"{self.folder}/")), reverse=True)

    def left(self) -> list[str]:
        """What is there, a line each."""
        return [
            *(
                f"process {pid}: {command[:200]}"
                for pid, command in self.processes().items()
                if not any(name in command for name in OF_PYTHON)
            ),
            *(f"container {one['Name'].lstrip('/')}" for one in self.containers()),
            *(f"mount {mount}" for mount in self.mounts()),
        ]

    def end(self) -> None:
        """Kill, remove and unmount it, and remove the folder."""
        deadline = time.monotonic() + SECONDS_TO_END
        while (
            processes := self.processes()
        ) and time.monotonic() < deadline:  # a killed one's children are found next
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        if containers := self.containers():
            _docker("rm", "--force", "--volumes", *(one["Id"] for one in containers))
        for project in {_project(one) for one in containers} - {None}:
            for kind in ("network", "volume"):
                made = _docker(kind, "ls", "--quiet", "--filter", f"label={PROJECT}={project}").split()
                _docker(kind, "rm", *made)
        for mount in self.mounts():
            subprocess.run(["umount", "--lazy", mount], check=False)
        if not os.environ.get(KEEP):
            for folder in (self.folder, MEMORY / self.folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        elif self.folder.exists():
            (self.folder / KEPT).touch()

    def end_interrupted(self) -> None:
        """``end``, and again if anything comes back: an engine that was asked to make a container makes the folders that are
        mounted into it, also while it ends itself."""
        self.end()
        quiet_until = time.monotonic() + SECONDS_TO_SETTLE
        deadline = time.monotonic() + SECONDS_TO_END
        while not os.environ.get(KEEP) and time.monotonic() < min(quiet_until, deadline):
            time.sleep(0.1)
            if self.folder.exists():
                self.end()
                quiet_until = time.monotonic() + SECONDS_TO_SETTLE


def commands() -> dict[int, str]:
    """Command lines of this machine's live processes, by id."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if (process / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found[int(process.name)] = command
    return found


def _age(folder: Path) -> float:
    """Seconds since a folder was made or changed last; one that is not there is as old as can be."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _own_line() -> set[int]:
    """This process and those that it was started by."""
    line, pid = set(), os.getpid()
    while pid > 1:
        line.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return line


def _containers() -> list[dict]:
    """All containers of this machine's engine, as it describes them."""
    ids = _docker("ps", "--all", "--quiet").split()
    return json.loads(_docker("inspect", *ids) or "[]") if ids else []


def _sources(container: dict) -> list[Path]:
    """What of this machine is mounted into a container."""
    return [Path(mount["Source"]) for mount in container["Mounts"] if mount.get("Source")]


def _project(container: dict) -> str | None:
    return container["Config"]["Labels"].get(PROJECT)


def _docker(*arguments: str) -> str:
    """What the client says; nothing where there is no client or no engine."""
    if shutil.which("docker") is None:
        return ""
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=False, timeout=120
    ).stdout


class Watched:
    """The plugin of the process that a person started (xdist's workers inherit the marks)."""

    def __init__(self) -> None:
        self.run = Run.begin()
        environment = {name: value for name, value in os.environ.items() if name not in (MARK, "TMPDIR")}
        self.watcher = subprocess.Popen(
            [sys.executable, __file__, str(self.run.folder)],
            stdin=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self.left: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """After the workers' end."""
        yield
        deadline = time.monotonic() + SECONDS_TO_END
        while (left := self.run.left()) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.left = left
        if left and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """A line for each thing, or that there is none."""
        if not self.left:
            terminalreporter.write_line("left behind: no process, no container, no mount")
            return
        terminalreporter.section("left behind by the tests, and ended", sep="=", red=True)
        for line in self.left:
            terminalreporter.write_line(line)

    def pytest_unconfigure(self) -> None:
        """The watcher does the rest. On a busy disk it takes minutes to remove what a run has written."""
        multiprocessing.util._run_finalizers()  # one seeks its folder, gone with ours, behind pytest's last line
        self.watcher.stdin.write(ENDED.encode())
        self.watcher.stdin.close()
        self.watcher.wait(SECONDS_TO_REMOVE)


def pytest_configure(config: pytest.Config) -> None:
    """Begin, before anything makes a temporary file."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Watched())


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for dead in Run.dead():
        dead.end()
    was_interrupted = sys.stdin.read() != ENDED  # returns when the run has ended, however it did
    run = Run(Path(sys.argv[1]))
    run.end_interrupted() if was_interrupted else run.end()
