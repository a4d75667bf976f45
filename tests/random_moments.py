"""Random moments that a failed test shows and a person can ask for again."""

import os
import random
import time

SEED = "PAIRLINE_TEST_SEED"


def chance() -> random.Random:
    """A new generator each time; its seed is printed, and is that of ``PAIRLINE_TEST_SEED`` where it is set."""
    seed = int(os.environ.get(SEED) or time.time_ns() % 2**32)
    print(f"{SEED}={seed}")
    return random.Random(seed)
