"""``python -m tests.programs.slow_steps train --job ...``: the program with forwards that take half a second.

So its steps can be counted from outside while they run.
"""

import sys
import time

from dpo_core import __main__ as program
from dpo_core.steps import train

FORWARD_SECONDS = 0.5


def main() -> int:
    """Slow the engine down, then what the program does."""
    set_up = train.set_up

    def slowed(job, progress, stop):
        trainer = set_up(job, progress, stop)
        scores = trainer.engine.scores

        def slow_scores(batch):
            time.sleep(FORWARD_SECONDS)
            return scores(batch)

        trainer.engine.scores = slow_scores
        return trainer

    train.set_up = slowed
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
