"""``python -m tests.programs.small_chunks train --job ...``: the program's step, with logits of a few tokens at a time.

A large vocabulary has many chunks in every forward, and ranks with unequal work have unequal numbers of them. With tests'
vocabularies there would be one. Every test of several ranks runs this, or another of the tests' programs that calls
``cut_logits``; those of Slurm's that share weights out have ``SMALL_CHUNKS_SITE`` in the steps' PYTHONPATH, and those in
containers in their image. Other ranks under Slurm run the program as it is.
"""

import sys
from pathlib import Path

from dpo_core import __main__ as program
from dpo_core.model import logprobs

TOKENS, VOCABULARY = 3, 384
SMALL_CHUNKS_SITE = Path(__file__).with_name("small_chunks_site")  # in PYTHONPATH, for what a launcher starts


def cut_logits() -> None:
    """Chunks of ``TOKENS`` tokens of a vocabulary as the tests' tokenizer has it, for this process."""
    logprobs.CHUNK_LOGITS = TOKENS * VOCABULARY


def main() -> int:
    """Cut, then what the program does."""
    cut_logits()
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
