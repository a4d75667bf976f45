"""``python -m tests.programs.killed_ranks train --job ...``: a rank that is killed at the n-th touch of its own files.

Only touches of checkpoints and of the final weights count: that is where a kill could leave a half-written file. ``KILL_AT``
in the environment is n; 0 counts them, into ``touches`` in the job's folder. Only rank 0 writes, so it alone is killed; what
the others do then is what they do when a machine is lost.
"""

import os
import signal
import sys
from pathlib import Path

from dpo_core import __main__ as program
from tests.killed_run import TOUCHES
from tests.programs.small_chunks import cut_logits

KILL_AT = "PAIRLINE_TEST_KILL_AT"


def main() -> int:
    """Watch, then run the program."""
    cut_logits()
    folder, at, seen = str(Path(sys.argv[-1]).parent), int(os.environ[KILL_AT]), 0
    watched = (f"{folder}/checkpoints", f"{folder}/weights", f"{folder}/.weights")

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in TOUCHES and str(arguments[0]).startswith(watched):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    is_main = os.environ.get("RANK", "0") == "0"
    if is_main:
        sys.addaudithook(watch)
    code = program.main(sys.argv[1:])
    if is_main and at == 0:
        (Path(folder) / "touches").write_text(str(seen))
    return code


if __name__ == "__main__":
    sys.exit(main())
