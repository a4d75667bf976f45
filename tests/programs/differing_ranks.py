"""``python -m tests.programs.differing_ranks train --job ...``: ranks of which the last finds another layout, from the
choice on whose number DIFFERS_FROM names (1: all); or of which it refuses the layout REFUSES."""

import itertools
import os
import sys

from dpo_core import __main__ as program
from dpo_core.model import forward
from dpo_core.training import scores
from tests.programs.small_chunks import cut_logits


def find_other_layouts(first: int) -> None:
    """As if its card were told to use another."""
    choose, count = scores.choose_layout, itertools.count(1)
    scores.choose_layout = lambda scorer, pairs, wanted, *more: choose(
        scorer, pairs, "padded" if next(count) >= first else wanted, *more
    )


def refuse(refused: str) -> None:
    """As if its card's numbers were off by more than noise, and no other's."""
    why_not = forward._why_not

    def refusing(scorer, pairs, layout, device):
        return why_not(scorer, pairs, layout, device) or ("is off here" if layout == refused else None)

    forward._why_not = refusing


def main() -> int:
    """Let the last rank differ, then what the program does."""
    cut_logits()
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        if refused := os.environ.get("REFUSES"):
            refuse(refused)
        else:
            find_other_layouts(int(os.environ.get("DIFFERS_FROM", "1")))
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
