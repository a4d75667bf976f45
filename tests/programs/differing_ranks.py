"""``python -m tests.programs.differing_ranks train --job ...``: ranks of which the last finds another layout."""

import os
import sys

from dpo_core import __main__ as program
from dpo_core.steps import train
from tests.programs.small_chunks import cut_logits


def main() -> int:
    """As if its card had refused the packed forward."""
    cut_logits()
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        choose = train.choose_layout
        train.choose_layout = lambda scorer, pairs, wanted, *more: choose(scorer, pairs, "padded", *more)
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
