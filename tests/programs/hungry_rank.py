"""``python -m tests.programs.hungry_rank train --job ...``: the last rank has taken much more memory than the others.

Each writes ``peak-<rank>.txt`` at its end: the most that it had, in GiB.
"""

import os
import sys
from pathlib import Path

import torch

from dpo_core import __main__ as program
from dpo_core.loss.metrics import peak_memory_gib
from tests.programs.small_chunks import cut_logits

MORE_GIB = 0.25


def main() -> int:
    """Take it before the step, and give it back."""
    cut_logits()
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        taken = torch.zeros(int((peak_memory_gib() + MORE_GIB) * 2**28))
        taken.fill_(1.0)
        del taken
    try:
        return program.main(sys.argv[1:])
    finally:
        folder = Path(sys.argv[sys.argv.index("--job") + 1]).parent
        (folder / f"peak-{os.environ['RANK']}.txt").write_text(str(peak_memory_gib()))


if __name__ == "__main__":
    sys.exit(main())
