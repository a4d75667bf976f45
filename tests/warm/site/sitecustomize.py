"""Imported by every Python that starts with this folder on its path. Standard library alone, and next to nothing of it."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = f"{HERE}/root"  # a link to the checkout whose code the servers have; their sockets lie beside it
STEPS = ("accelerate.commands.launch", "dpo_core", "tests.held_by_ranks", "tests.killed_ranks", "tests.overflowing_ranks",
         "tests.starved_ranks", "tests.slow_steps")
FLOW_RUN = ("prefect.engine", "prefect.runner._workspace_supervisor")


def program(argv: list[str]) -> tuple[str, int]:
    """Which server runs ``argv`` and where in it the program's name stands. "": none."""
    place = 1
    while place < len(argv) and argv[place] in ("-u", "-B"):
        place += 1
    rest = argv[place:]
    if len(rest) < 2 or rest[0] != "-m":
        return "", 0
    if rest[1] in STEPS and "fetch" not in rest:
        return "steps", place + 1
    is_server = rest[1] == "flows.serve.server" or (rest[1] == "uvicorn" and "prefect" in " ".join(rest))
    return ("prefect", place + 1) if is_server or rest[1] in FLOW_RUN else ("", 0)


kind, place = program(sys.orig_argv)
if kind and os.path.exists(f"{HERE}/{kind}") and os.path.realpath(ROOT) in sys.path:
    from handed_over import run

    run(f"{HERE}/{kind}", sys.orig_argv[place:])
