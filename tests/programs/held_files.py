"""``python -m tests.programs.held_files train --job ...``: stands still where the n-th file of a kind would take its place.

A test that kills it meets it at work, however slow the test's own process is. ``HELD_AT`` in the environment is "part of
the file's path:n".
"""

import os
import sys
import time

from dpo_core import __main__ as program

HELD_AT = "PAIRLINE_TEST_HELD_AT"


def main() -> int:
    """Watch, then what the program does."""
    part, _, number = os.environ[HELD_AT].rpartition(":")
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event == "os.rename" and part in str(arguments[1]):
            seen += 1
            while seen >= int(number):
                time.sleep(1)

    sys.addaudithook(watch)
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
