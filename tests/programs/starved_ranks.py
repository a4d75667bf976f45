"""``python -m tests.programs.starved_ranks train --job ...``: the last rank has no memory left in its second step."""

import os
import sys

import torch

from dpo_core import __main__ as program
from dpo_core.steps import train
from tests.programs.small_chunks import cut_logits


def main() -> int:
    """Let the allocator fail for real, on one rank, once the first step is done."""
    cut_logits()
    set_up, is_starved = train.set_up, int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def starving(job, progress, stop):
        trainer = set_up(job, progress, stop)
        scores = trainer.engine.scores

        def scores_while_there_is_memory(batch):
            if is_starved and trainer.last_metrics:
                torch.empty(1 << 50)
            return scores(batch)

        trainer.engine.scores = scores_while_there_is_memory
        return trainer

    train.set_up = starving
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
