"""``python -m tests.programs.fast_clock train --job ...``: ranks of which the one that FAST_RANK names has a clock that
runs a million times too fast."""

import os
import sys
import time
from types import SimpleNamespace

from dpo_core import __main__ as program
from dpo_core.training import saving, trainer


def main() -> int:
    """The clocks that the training loop looks at, no others."""
    if os.environ["RANK"] == os.environ["FAST_RANK"]:
        saving.time = trainer.time = SimpleNamespace(monotonic=lambda: 1e6 * time.monotonic())
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
