"""Imported by every Python that starts with this folder on its path. Standard library alone, and next to nothing of it."""

import os
import sys

SERVER = "PAIRLINE_TEST_WARM"  # the server's socket
COLD = "PAIRLINE_TEST_COLD"  # set: everything starts as users start it
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
PROGRAMS = ("accelerate.commands.launch", "dpo_core", "tests.held_by_ranks", "tests.killed_ranks", "tests.overflowing_ranks",
            "tests.starved_ranks", "tests.slow_steps")


def program(argv: list[str]) -> int:
    """Where in ``argv`` the name of a program stands that the server runs; 0: it does not."""
    place = argv.index("-m") + 1 if "-m" in argv else 0
    return place if 0 < place < len(argv) and argv[place] in PROGRAMS and "fetch" not in argv else 0


def wanted() -> bool:
    """Whether the server may run it: it has this checkout's code alone."""
    return SERVER in os.environ and COLD not in os.environ and ROOT in os.environ.get("PYTHONPATH", "").split(os.pathsep)


if wanted() and (place := program(sys.orig_argv)):
    from handed_over import run

    run(os.environ[SERVER], sys.orig_argv[place:])
