"""``python -m tests.programs.starved_ranks train --job ...``: the last rank has no memory left, in its second step or, where
STARVED_IN names it, in the fit check."""

import os
import sys

import torch

from dpo_core import __main__ as program
from dpo_core.model.forward import PairScorer
from dpo_core.steps import train
from tests.programs.small_chunks import cut_logits

STARVED_IN, FIT_CHECK = "PAIRLINE_TEST_STARVED_IN", "check_fit"


def main() -> int:
    """Let the allocator fail for real, on one rank, once the first step is done, or before it."""
    cut_logits()
    in_check = os.environ.get(STARVED_IN) == FIT_CHECK
    place = FIT_CHECK if in_check else "set_up"
    own, is_starved = getattr(train, place), int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def starve(trainer):
        owner, name = (PairScorer, "_scores") if in_check else (trainer.engine, "scores")
        scores = getattr(owner, name)

        def scores_while_there_is_memory(*arguments):
            if is_starved and (in_check or trainer.last_metrics):
                torch.empty(1 << 50)
            return scores(*arguments)

        setattr(owner, name, scores_while_there_is_memory)
        return trainer

    if in_check:
        train.check_fit = lambda trainer: own(starve(trainer))
    else:
        train.set_up = lambda *arguments: starve(own(*arguments))
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
