"""``python -m tests.programs.chunk_told``: its pid and how many logits it would hold at once; ends with its input."""

import os
import sys

from dpo_core.model import logprobs

print(os.getpid(), logprobs.CHUNK_LOGITS, flush=True)
sys.stdin.read()
