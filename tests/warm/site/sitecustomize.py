"""Imported by every Python that starts with this folder on its path. Standard library alone, and next to nothing of it."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SOCKET, ROOT = (
    f"{HERE}/socket",
    f"{HERE}/root",
)  # the server's socket, and a link to the checkout whose code it has
PROGRAMS = (
    "accelerate.commands.launch",
    "dpo_core",
    "tests.programs.ranks_that_tell_what_they_hold",
    "tests.programs.killed_ranks",
    "tests.programs.overflowing_ranks",
    "tests.programs.starved_ranks",
    "tests.programs.slow_steps",
)


def program(argv: list[str]) -> int:
    """Where in ``argv`` the name of a program stands that the server runs; 0: it does not."""
    place = 1
    while place < len(argv) and argv[place] in ("-u", "-B"):
        place += 1
    wanted = argv[place : place + 1] == ["-m"] and argv[place + 1] in PROGRAMS and "fetch" not in argv
    return place + 1 if wanted else 0


if (place := program(sys.orig_argv)) and os.path.exists(SOCKET) and os.path.realpath(ROOT) in sys.path:
    from handed_over import run

    run(SOCKET, sys.orig_argv[place:])
