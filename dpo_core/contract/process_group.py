"""Processes of a step as the kernel groups them, and how they are asked to stop. Standard library alone."""

import contextlib
import os
import signal
from pathlib import Path


def group_members(group: int) -> set[int]:
    """Return live processes of a process group."""
    members = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
            if int(its_group) == group and state != "Z":
                members.add(int(stat.parent.name))
    return members


def ask_to_stop(leader: int) -> None:
    """Send SIGTERM to the members of the leader's group, so that a trainer writes a checkpoint.

    The leader, `accelerate launch`, gets none while it has children: it would die at once and take the trainer with it.
    It ends by itself after them.
    """
    members = group_members(leader)
    for pid in members - {leader} or members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
