"""``python -m tests.programs.stopping_ranks evaluate --job ...``: the last rank would end every answer at its third token,
as if the last bit of its logits differed."""

import os
import sys

import torch

from dpo_core import __main__ as program
from dpo_core.model import generate
from tests.programs.small_chunks import cut_logits

STEP = 2


def stop_early() -> None:
    """Have this process choose an end token in ``STEP``."""
    together = generate.continue_all

    def stopping(model, ends, prompts_ids, generation, on_answers, choose):
        def chosen(logits_RV, rows, step):
            next_R = choose(logits_RV, rows, step)
            return torch.full_like(next_R, ends[0]) if step == STEP else next_R

        return together(model, ends, prompts_ids, generation, on_answers, chosen)

    generate.continue_all = stopping


def main() -> int:
    """Choose otherwise on one rank, then what the program does."""
    cut_logits()
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        stop_early()
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
