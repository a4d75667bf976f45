"""Imported by every Python that starts with this folder on its path. Standard library alone, and next to nothing of it."""

import gc
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = f"{HERE}/root"  # a link to the checkout whose code the servers have
gc.set_threshold(100_000, 20, 20)  # of 700, 10, 10: a quarter of what a program takes to import Prefect
SERVER_OF = {  # the name of its socket
    "accelerate.commands.launch": "steps",
    "dpo_core": "steps",
    "prefect.engine": "runs",
    "prefect.runner._workspace_supervisor": "runs",
}
TEST_PROGRAMS = "tests.programs."  # dpo_core with something done to it


def asked_for(argv: list[str]) -> tuple[str, list[str]]:
    """-> the server of a program that ``argv`` starts, if it has one, and the program with its arguments"""
    place = 1
    while place < len(argv) and argv[place] in ("-u", "-B"):
        place += 1
    if argv[place : place + 1] != ["-m"] or "fetch" in argv:
        return "", []
    module = argv[place + 1]
    server = "steps" if module.startswith(TEST_PROGRAMS) else SERVER_OF.get(module, "")
    return server, argv[place + 1 :]


server, argv = asked_for(sys.orig_argv)
if server == "runs" and any(name.startswith("HF_") for name in os.environ):
    server = ""  # the Hub's client reads its settings when it is imported
if server and os.path.exists(f"{HERE}/{server}") and os.path.realpath(ROOT) in sys.path:
    from handed_over import run

    run(f"{HERE}/{server}", argv)
