"""The job's sharding -> the engine. The one place that knows them all."""

from typing import TYPE_CHECKING, Required, TypedDict, cast

import torch
from accelerate import Accelerator

from dpo_core.contract.config import OptimConfig
from dpo_core.contract.jobs import Sharding
from dpo_core.engine.engine import Engine
from dpo_core.engine.master import MasterEngine
from dpo_core.engine.plain import PlainEngine
from dpo_core.model.forward import PairScorer

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

# Engines are imported where they are chosen: DeepSpeed's import takes seconds, and reads settings that must stand before.


def start_engine(
    sharding: Sharding, accelerator: Accelerator, scorer: PairScorer, optim: OptimConfig
) -> Engine:
    """Hand a loaded scorer to its back end, with a new optimizer."""
    if sharding.kind == "none" and scorer.precision == "bf16_pure":
        return MasterEngine.start(accelerator, scorer, optim)
    if sharding.kind == "none":
        return PlainEngine.start(accelerator, scorer, optim)
    if sharding.kind == "fsdp2":
        from dpo_core.engine.fsdp import FsdpEngine

        return FsdpEngine.start(accelerator, scorer, optim)
    from dpo_core.engine.zero import ZeroEngine

    return ZeroEngine.start(accelerator, scorer, optim)


def share_for_scoring(sharding: Sharding, accelerator: Accelerator, scorer: PairScorer) -> PairScorer:
    """Return a loaded scorer for forwards without gradients: its weights shared out where the back end splits them, in
    place.
    """
    if not sharding.splits_weights:
        return scorer
    if sharding.kind == "fsdp2":
        from dpo_core.engine import fsdp

        return fsdp.share_for_scoring(accelerator, scorer)
    from dpo_core.engine import zero

    return zero.share_for_scoring(accelerator, scorer)


def gather_ends(sharding: Sharding, scorer: PairScorer) -> None:
    """Have what FSDP2 gathers in the scorer's own forward (embeddings, head) whole where the model inside is called."""
    if sharding.kind == "fsdp2":
        cast("FSDPModule", scorer).unshard()  # what fully_shard makes of a module


class Loading(TypedDict, total=False):
    """Arguments that ``load_model`` and ``load_policy`` share."""

    device: Required[torch.device | str]
    read_weights: bool
    in_parts: bool


def loading(sharding: Sharding, accelerator: Accelerator) -> Loading:
    """Return arguments of ``load_model`` for this rank: where weights are split, each reads its part later, from the
    engine; where that cannot be, rank 0 reads them all to the CPU, the others none.
    """
    if not sharding.splits_weights:
        return {"device": accelerator.device}
    return {"device": "cpu", "read_weights": accelerator.is_main_process, "in_parts": True}
