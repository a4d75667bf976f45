"""``python -m tests.programs.overflowing_ranks train --job ...``: the last rank has an infinite gradient in the sixth step.

The loss of that step stays a number, so only the norm of the gradient, which all ranks share, can tell.
"""

import os
import sys

from dpo_core import __main__ as program
from dpo_core.steps import train
from dpo_core.training.trainer import Trainer
from tests.programs.small_chunks import cut_logits

STEP = 6


def overflow(trainer: Trainer) -> None:
    """Let what flows back from the log-probabilities overflow in ``STEP``."""
    scores = trainer.engine.scores

    def scores_with_infinite_slope(batch):
        result = scores(batch)
        if trainer.last_metrics.get("step") == STEP - 1:
            result.sums_S.register_hook(lambda slope_S: slope_S * float("inf"))
        return result

    trainer.engine.scores = scores_with_infinite_slope


def main() -> int:
    """Overflow on one rank, then what the program does."""
    cut_logits()
    set_up, is_last = train.set_up, int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def overflowing(job, progress, stop):
        trainer = set_up(job, progress, stop)
        if is_last:
            overflow(trainer)
        return trainer

    train.set_up = overflowing
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
