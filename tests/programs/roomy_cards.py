"""``python -m tests.programs.roomy_cards evaluate --job ...``: as on cards that have room for the whole model, two to a
machine.

Writes ``answered-<rank>.json``: how many prompts this rank answered greedily, how many exchanges ranks had meanwhile, and
among how many ranks the last model was shared out as it was loaded.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from dpo_core import __main__ as program
from dpo_core.engine import fsdp
from dpo_core.model import generate
from dpo_core.training import whole_weights
from tests.programs.small_chunks import cut_logits


class Exchanges(TorchDispatchMode):
    """Counts what is sent to other ranks while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        self.count += func.namespace in ("c10d", "_c10d_functional")
        return func(*args, **(kwargs or {}))


def main() -> int:
    """Say that there is room, then what the program does."""
    cut_logits()
    whole_weights.left_on_card = lambda device: 1 << 40
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    share_out, shards = fsdp.share_weights, 0

    def seen(accelerator, scorer):
        nonlocal shards
        share_out(accelerator, scorer)
        parameter = max(scorer.parameters(), key=lambda parameter: parameter.numel())
        shards = round(parameter.numel() / parameter.to_local().numel())

    fsdp.share_weights = seen
    answer, exchanges, prompts = generate.greedy_answers, Exchanges(), 0

    def answered(model, tokenizer, prompts_ids, *more, **named):
        nonlocal prompts
        prompts += len(prompts_ids)
        with exchanges:
            return answer(model, tokenizer, prompts_ids, *more, **named)

    generate.greedy_answers = answered
    code = program.main(sys.argv[1:])
    file = Path(sys.argv[-1]).parent / f"answered-{os.environ['RANK']}.json"
    file.write_text(json.dumps({"prompts": prompts, "exchanges": exchanges.count, "shards": shards}))
    return code


if __name__ == "__main__":
    sys.exit(main())
