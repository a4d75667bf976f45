"""Slurm's programs as stand-ins that print what was recorded of real ones, for what a private cluster cannot be made to say.

Each writes down how it was called, then runs a few lines of shell that a test gives it.
"""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path

import pytest

from tasks.launch.context import RunName
from tasks.launch.launcher import CommandSpec
from tasks.launch.slurm.batch import Submission, comment_of
from tasks.launch.slurm.client import BETWEEN
from tasks.launch.slurm.shares import Shares
from tests.slurm_cluster.small_step import SmallStep

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "sacct", "sinfo")
# As 22.05 says it when its controller does not answer in time.
NO_ANSWER = 'echo "scancel: error: Kill job error on job id: Unable to contact slurm controller" >&2; exit 1'
KEY = 'key=$(expr "$*" : \'.*"key": "\\([^"]*\\)"\')'  # of what sbatch is given


class RecordedSlurm:
    """Programs in a folder that stands first in PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for name in PROGRAMS:
            self.does(name, "exit 0")
        self.does("squeue", 'cat "$here/queue"')
        self.has_queued()
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))  # a question of its own

    def does(self, name: str, body: str) -> None:
        """Have a program do this. ``$here``: the folder."""
        program = self.folder / f"{name}.new"
        head = (
            f'#!/bin/sh\nhere={shlex.quote(str(self.folder))}\nprintf "%s\\n" "$*" >>"$here/{name}.calls"\n'
        )
        program.write_text(f"{head}{body}\n")
        program.chmod(0o755)
        program.replace(self.folder / name)

    def has_queued(self, *lines: str) -> None:
        """Have squeue print these lines, unless it was told to do something else."""
        write_queue(self.folder / "queue", lines)

    def calls(self, name: str) -> list[str]:
        """How a program was called, one line each."""
        file = self.folder / f"{name}.calls"
        return file.read_text().splitlines() if file.exists() else []


def write_queue(file: Path, lines: Iterable[str]) -> None:
    """Write what squeue prints."""
    file.write_text("".join(f"{line}\n" for line in lines))


def queued(
    command: CommandSpec, job_id: str, state: str, key: str, reason: str = "None", count: int = 0
) -> str:
    """Return a line of squeue in the launcher's format, as 22.05 and 24.11 print it, of a job of the step or of an array."""
    shares = Shares(tuple(range(count)), count) if count else None
    comment = comment_of(command, Submission(key, command.folder, {}, None, shares), RunName())
    waits = state == "PENDING"
    start = "N/A" if waits else "2026-11-27T10:00:01"
    about = (job_id, state, reason, "" if waits else "n1", "train", start, command.name)
    return BETWEEN.join((*about, json.dumps(comment), "2026-11-27T10:00:00"))


def start_lines(record: Path, share: str, key: str, code: int | None, words: str = "") -> str:
    """Return lines of shell that leave what a start leaves of a process that ended with ``code``, or runs. ``share``: the
    name of its folder, empty for a job of no array; ``key``: its own, as a shell reads it."""
    folder = shlex.quote(str(record / share))
    place = f"{folder}/{key}"
    rank = {"rank": 0, "host": "n1"} | ({} if code is None else {"code": code, "time": 3.0})
    lines = [
        f"mkdir -p {place}.0/ranks",
        f'[ -e {place}.0/started ] || echo "$(date +%s) 49_0 n1" >{place}.0/started',
        f"printf {shlex.quote(words)} >>{place}.log",
        f"echo {shlex.quote(json.dumps(rank))} >{place}.0/ranks/rank-0.json",
        f'echo "$(basename {place}).0" >{folder}/attempt',
    ]
    return "\n".join(lines if code is None else [*lines, f'echo "{code} $(date +%s)" >{place}.0/exit'])


def leaves(step: SmallStep, code: int | None) -> str:
    """Return shell after which the job whose key sbatch wrote down has left this end, or runs."""
    return (
        f'[ -e "$here/key" ] || exit 0\nkey=$(cat "$here/key")\n{start_lines(step.record, "", "$key", code)}'
    )


def after(calls: int, program: str, then: str, otherwise: str) -> str:
    """Return shell that does ``then`` once the program has been called more often than that."""
    return f'if [ $(wc -l <"$here/{program}.calls") -gt {calls} ]; then\n{then}\nelse\n{otherwise}\nfi'
