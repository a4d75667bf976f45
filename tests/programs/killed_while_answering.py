"""``python -m tests.programs.killed_while_answering train --job ...``: the last rank kills itself in the second evaluation
that answers prompts, between its greedy answers and its sampled ones."""

import itertools
import os
import signal
import sys
from typing import Any

from dpo_core import __main__ as program
from dpo_core.training import policy_answers
from tests.programs.small_chunks import cut_logits


def main() -> int:
    """As if the machine had taken its memory."""
    cut_logits()
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        sampled, numbers = policy_answers.sampled_pairs, itertools.count(1)

        def killed(*given: Any) -> Any:
            if next(numbers) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return sampled(*given)

        policy_answers.sampled_pairs = killed
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
