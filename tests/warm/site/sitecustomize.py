"""Imported by every Python that starts with this folder on its path. Standard library alone, and next to nothing of it."""

import gc
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SOCKET, ROOT = (
    f"{HERE}/socket",
    f"{HERE}/root",
)  # the server's socket, and a link to the checkout whose code it has
gc.set_threshold(100_000, 20, 20)  # of 700, 10, 10: a quarter of what a program takes to import Prefect
PROGRAMS = ("accelerate.commands.launch", "dpo_core")
TEST_PROGRAMS = "tests.programs."  # dpo_core with something done to it


def program(argv: list[str]) -> int:
    """Where in ``argv`` the name of a program stands that the server runs; 0: it does not."""
    place = 1
    while place < len(argv) and argv[place] in ("-u", "-B"):
        place += 1
    if argv[place : place + 1] != ["-m"] or "fetch" in argv:
        return 0
    module = argv[place + 1]
    return place + 1 if module in PROGRAMS or module.startswith(TEST_PROGRAMS) else 0


if (place := program(sys.orig_argv)) and os.path.exists(SOCKET) and os.path.realpath(ROOT) in sys.path:
    from handed_over import run

    run(SOCKET, sys.orig_argv[place:])
