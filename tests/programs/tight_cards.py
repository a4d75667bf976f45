"""``python -m tests.programs.tight_cards train --job ...``: as on a card whose memory is thought to hold more than it does.
Forwards of more than ``MOST_TOKENS`` tokens find none in the fit check."""

import sys

import torch

from dpo_core import __main__ as program
from dpo_core.model.forward import PairScorer
from dpo_core.steps import train
from dpo_core.training import fit_check
from tests.programs.small_chunks import cut_logits

MOST_TOKENS = 300


def main() -> int:
    """Say that there is room, refuse it, then what the program does."""
    cut_logits()
    fit_check.left_on_card = lambda device: 1 << 30
    check, scores = train.check_fit, PairScorer._scores

    def within_memory(scorer, batch):
        if batch.ids_RT.numel() > MOST_TOKENS:
            torch.empty(1 << 50)
        return scores(scorer, batch)

    def checked(trainer):
        PairScorer._scores = within_memory
        return check(trainer)

    train.check_fit = checked
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
