"""``python -m tests.programs.lost_ranks train --job ...``: the last rank sends itself ``LOSE_BY`` in the third step.

SIGKILL is a process that is gone, SIGSTOP one that is stuck, or whose machine is: its connections stay open. What is 45
seconds for users is 10 here.
"""

import os
import signal
import sys

from dpo_core import __main__ as program
from dpo_core.engine import heartbeat
from dpo_core.training.trainer import Trainer
from tests.programs.small_chunks import cut_logits

LOSE_BY, STEP = "PAIRLINE_TEST_LOSE_BY", 2


def lose_this_rank() -> None:
    """Have this process end, or stand still, in ``STEP``."""
    step_batches = Trainer.step_batches

    def lost(trainer: Trainer, step: int):
        if step == STEP:
            os.kill(os.getpid(), signal.Signals[os.environ[LOSE_BY]])
        return step_batches(trainer, step)

    Trainer.step_batches = lost


def main() -> int:
    """Lose one rank, and what the program does of it."""
    cut_logits()
    heartbeat.BEAT_SECONDS, heartbeat.SILENCE_SECONDS = 0.2, 10.0
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        lose_this_rank()
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
