"""The job's sharding -> the engine. The one place that knows them all."""

import contextlib
from collections.abc import Iterator
from typing import assert_never

import torch
from accelerate import Accelerator

from dpo_core.contract.config import BaseWeights, OptimConfig, Precision
from dpo_core.contract.float8 import TRANSFORMERS, ModelCode
from dpo_core.contract.jobs import Sharding
from dpo_core.contract.refs import CheckpointRef
from dpo_core.engine.engine import Engine
from dpo_core.engine.master import MasterEngine
from dpo_core.engine.plain import PlainEngine
from dpo_core.model.adapter import halve_frozen
from dpo_core.model.forward import PairScorer
from dpo_core.model.load import Loading, load_model, load_on_olmo_core

# Engines are imported where they are chosen: DeepSpeed's import takes seconds, and reads settings that must stand before.


def start_engine(
    sharding: Sharding, accelerator: Accelerator, scorer: PairScorer, optim: OptimConfig
) -> Engine:
    """Hand a loaded scorer to its back end, with a new optimizer."""
    match sharding.kind:
        case "none":
            engine = MasterEngine if scorer.precision == "bf16_pure" else PlainEngine
            return engine.start(accelerator, scorer, optim)
        case "fsdp2":
            from dpo_core.engine.fsdp import FsdpEngine

            return FsdpEngine.start(accelerator, scorer, optim)
        case "zero1" | "zero2" | "zero3":
            from dpo_core.engine.zero import ZeroEngine

            return ZeroEngine.start(accelerator, scorer, optim)
        case never:
            assert_never(never)


def load_for_scoring(
    checkpoint: CheckpointRef,
    precision: Precision,
    sharding: Sharding,
    accelerator: Accelerator,
    base_weights: BaseWeights = "full",
    code: ModelCode = TRANSFORMERS,
) -> PairScorer:
    """Return a checkpoint ready for forwards without gradients, its weights shared out where the back end splits them.

    In bf16 a card never holds its matrices in float32: they are read by the host and sent in bf16, as autocast would have
    them anyway, with the same numbers.
    """
    where = loading(sharding, accelerator)
    in_half = precision != "fp32" and base_weights == "full" and not sharding.splits_weights
    if in_half:
        where = {"device": "cpu"}
    if code.implementation == "olmo_core":
        model = load_on_olmo_core(checkpoint, float8=code.float8, **where)
    else:
        model = load_model(checkpoint, base_weights=base_weights, **where)
    model.requires_grad_(False)
    if in_half and precision == "bf16":
        halve_frozen(model)
    scorer = PairScorer(model, precision)  # casts by itself what is bf16 altogether
    return share_for_scoring(sharding, accelerator, scorer.to(accelerator.device) if in_half else scorer)


def share_for_scoring(sharding: Sharding, accelerator: Accelerator, scorer: PairScorer) -> PairScorer:
    """Return a loaded scorer for forwards without gradients: its weights shared out where the back end splits them, in
    place.
    """
    if not sharding.splits_weights:
        return scorer
    if sharding.kind == "fsdp2":
        from dpo_core.engine import fsdp

        return fsdp.share_for_scoring(accelerator, scorer)
    assert sharding.kind == "zero3"
    from dpo_core.engine import zero_scoring

    return zero_scoring.share_for_scoring(accelerator, scorer)


def share_within_machines(sharding: Sharding, accelerator: Accelerator, ranks: int) -> None:
    """Have the ``ranks`` of each machine share a copy of a scorer's model out. All ranks call it together, before it is
    loaded."""
    assert sharding.kind == "fsdp2"  # DeepSpeed's parts are those of all ranks
    from dpo_core.engine import fsdp_mesh

    fsdp_mesh.share_within(accelerator, sharding, ranks)


def gather_whole(sharding: Sharding, scorer: PairScorer) -> None:
    """Have every rank hold all weights of a scorer whose weights were shared out for scoring; it computes by itself then, or
    with those alone that share matrices out with it, with the same numbers. All ranks call it together."""
    if sharding.kind == "fsdp2":
        from dpo_core.engine import fsdp

        fsdp.gather_whole(scorer)
    else:
        assert sharding.kind == "zero3"
        from dpo_core.engine import zero_scoring

        zero_scoring.gather_whole(scorer)
    scorer.is_split = False


@contextlib.contextmanager
def calling_the_model(sharding: Sharding, scorer: PairScorer, device: torch.device) -> Iterator[None]:
    """Let the model inside the scorer be called by itself, without gradients, in the scorer's arithmetic: what FSDP2 gathers
    in the scorer's own forward (embeddings, head) is whole."""
    if sharding.kind == "fsdp2":
        from dpo_core.engine import fsdp

        fsdp.gather_ends(scorer)
    with scorer.arithmetic(device):
        yield


def loading(sharding: Sharding, accelerator: Accelerator) -> Loading:
    """Return arguments of ``load_model`` for this rank: where weights are split, each reads its part later, from the
    engine; where that cannot be, rank 0 reads them all to the CPU, the others none.
    """
    if not sharding.splits_weights:
        return {"device": accelerator.device}
    return {"device": "cpu", "read_weights": accelerator.is_main_process, "in_parts": True}
