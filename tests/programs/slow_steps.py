"""``python -m tests.programs.slow_steps train --job ...``: the program with forwards that take half a second, which stands
still in its third step until it is asked to stop.

So its steps can be counted from outside while they run, however slow whoever counts is. The file ``HELD`` of the job's
folder says that it stands still. Of several ranks each does so, and nothing else is slow.
"""

import os
import sys
import time

from dpo_core import __main__ as program
from dpo_core.steps import train
from tests.programs.small_chunks import cut_logits

FORWARD_SECONDS, STEPS_BEFORE, HELD = 0.5, 2, "held"


def main() -> int:
    """Slow the engine down, then what the program does."""
    set_up, is_rank = train.set_up, "RANK" in os.environ
    if is_rank:
        cut_logits()

    def slowed(job, progress, stop):
        trainer = set_up(job, progress, stop)
        scores, metrics = trainer.engine.scores, job.out_dir / "metrics.jsonl"

        def slow_scores(batch):
            if metrics.is_file() and metrics.read_bytes().count(b"\n") >= STEPS_BEFORE:
                (job.out_dir / HELD).touch()
                while not stop.received:
                    time.sleep(0.02)
            if not is_rank:
                time.sleep(FORWARD_SECONDS)
            return scores(batch)

        trainer.engine.scores = slow_scores
        return trainer

    train.set_up = slowed
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
