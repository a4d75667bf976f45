"""Scoring with weights that DeepSpeed's ZeRO-3 shares out: no optimizer, no gradients."""

from typing import Any

from accelerate import Accelerator

from dpo_core.engine.zero import share_weights
from dpo_core.model.forward import PairScorer

GATHERING = "_deepspeed_offload"


def share_for_scoring(accelerator: Accelerator, scorer: PairScorer) -> PairScorer:
    """Return a scorer for forwards without gradients, its weights shared out, in place."""
    scorer.requires_grad_(False)
    engine = accelerator.prepare(share_weights(accelerator, scorer))
    # Where there is no optimizer, what gathers weights in modules' hooks stands in its place.
    vars(scorer)[GATHERING] = engine.optimizer
    return scorer


def gather_whole(scorer: PairScorer) -> None:
    """Have every rank hold all weights from now on, one weight at a time."""
    vars(scorer).pop(GATHERING).destroy()  # its hooks would give them away after each use
    parameters: list[Any] = list(scorer.parameters())
    for parameter in parameters:
        if parameter.ds_status.name != "AVAILABLE":  # small ones may be whole
            parameter.all_gather([parameter])
