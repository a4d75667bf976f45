"""``python -m tests.programs.scoring_ranks reference --job ...``: the step, and what each rank holds of each model that
scores, and computes with.

Writes ``scored-<rank>.json``: per model the values of matrices that the rank holds, by type, and the types of what its
linears gave.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import torch

from dpo_core import __main__ as program
from dpo_core.steps import reference
from dpo_core.training import scores
from tests.programs.ranks_that_tell_what_they_hold import local
from tests.programs.small_chunks import cut_logits


def main() -> int:
    """Look at each model once it is loaded, then what the program does."""
    cut_logits()
    models: list[tuple[Counter[str], set[str]]] = []
    load = scores.load_for_scoring

    def loaded(*args, **named):
        scorer = load(*args, **named)
        held, computed = Counter(), set()
        for parameter in scorer.parameters():
            matrix = getattr(parameter, "ds_shape", parameter.shape)
            if len(matrix) > 1:
                held[str(local(parameter).dtype)] += local(parameter).numel()
        for module in scorer.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda module, inputs, output: computed.add(str(output.dtype)))
        models.append((held, computed))
        return scorer

    reference.load_for_scoring = scores.load_for_scoring = loaded
    code = program.main(sys.argv[1:])
    file = Path(sys.argv[-1]).parent / f"scored-{os.environ['RANK']}.json"
    file.write_text(json.dumps([{"held": held, "computed": sorted(computed)} for held, computed in models]))
    return code


if __name__ == "__main__":
    sys.exit(main())
