"""``python -m tests.programs.differing_ranks train --job ...``: ranks of which the last finds another layout, from the
choice on whose number DIFFERS_FROM names (1: all)."""

import itertools
import os
import sys

from dpo_core import __main__ as program
from dpo_core.training import scores
from tests.programs.small_chunks import cut_logits


def main() -> int:
    """As if its card had refused the packed forward."""
    cut_logits()
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        choose, count, first = (
            scores.choose_layout,
            itertools.count(1),
            int(os.environ.get("DIFFERS_FROM", "1")),
        )
        scores.choose_layout = lambda scorer, pairs, wanted, *more: choose(
            scorer, pairs, "padded" if next(count) >= first else wanted, *more
        )
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
