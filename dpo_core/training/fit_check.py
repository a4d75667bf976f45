"""How many tokens a forward of training has, and whether the run's largest microbatch fits.

``train.tokens_per_forward: auto`` means on a card what its memory holds: the memory model (``step_memory``) proposes from
what is left once weights and moments are there, the run's largest microbatch is tried, and where it does not fit after
all it is halved: at once, or where weights are shared out by the next start. The sum over pairs is the same however a batch
is cut, so none of it is content.
"""

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from dpo_core.contract.errors import OutOfMemory, StepCrashed
from dpo_core.contract.exchange_memory import exchange_parts, held_gradients
from dpo_core.contract.jobs import BatchPlan, TrainJob
from dpo_core.contract.model_shape import ModelShape
from dpo_core.contract.quantities import AUTO_ON_CPU
from dpo_core.contract.step_memory import StepMemory, arithmetic_of
from dpo_core.data.order import batch_tokens, largest_microbatch
from dpo_core.data.pair_batch import collate
from dpo_core.engine.card_memory import USED_SHARE, left_on_card
from dpo_core.engine.distributed import by_every_rank, from_main
from dpo_core.engine.engine import Engine
from dpo_core.loss.metrics import forget_peak_memory, peak_memory_gib
from dpo_core.model.adapter import count_parameters
from dpo_core.model.attention import text_config
from dpo_core.training.smaller_forwards import bound_of, keep_bound

if TYPE_CHECKING:
    from dpo_core.training.trainer import Trainer

log = logging.getLogger(__name__)

OF_UNKNOWN_SHAPE = 16_384  # tokens that are tried first with a model whose memory has no estimate
MOST_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """How a rank's share of a batch is cut into forwards."""

    plan: BatchPlan
    tokens: int
    may_be_halved: bool = False  # whether a proposal, not a person, says so many


def choose_cut(job: TrainJob, engine: Engine) -> Cut:
    """Return the cut that the recipe asks for; every rank the same. Weights and moments are on the card."""
    budget, left = job.train.tokens_per_forward, left_on_card(engine.accelerator.device)
    if budget != "auto":
        return Cut(job.batch, budget)
    if left is None:
        return Cut(job.batch, AUTO_ON_CPU)
    share = job.batch.global_pairs // job.batch.num_processes
    plan = job.batch
    if job.train.per_device_batch_pairs is None:
        plan = plan.model_copy(update={"per_device_pairs": share, "accumulation": 1})
    proposals = by_every_rank(engine.accelerator, lambda *_: proposed_tokens(job, engine, left))
    bound = from_main(engine.accelerator, lambda: bound_of(job, engine.accelerator))
    tokens = min(*proposals, *([bound] if bound else []), MOST_TOKENS)
    log.info("%.1f GiB are left on the card: %d tokens a forward are tried", left / 2**30, tokens)
    return Cut(plan, tokens, may_be_halved=True)


def proposed_tokens(job: TrainJob, engine: Engine, left: int) -> int:
    """Return the tokens whose forward and backward the memory model finds room for, one at least."""
    model, kind, together = engine.scorer.model, job.sharding.kind, job.sharding.tensor_degree
    shape = ModelShape.of(text_config(model).to_dict())
    if shape is None:
        return OF_UNKNOWN_SHAPE
    shape = shape.shared_by(together)
    trained, every = count_parameters(model)
    ranks = job.batch.num_processes * together
    others = exchange_parts(
        kind, shape, every // together, trained // together, ranks > 1, job.train.precision
    )
    held = held_gradients(kind, trained, job.sharding.degree or ranks)
    room = USED_SHARE * left - held - sum(others.values())
    memory = StepMemory(
        shape,
        arithmetic_of(job.adapter, job.train.precision, kind),
        job.train.gradient_checkpointing,
        trains_all=trained == every,
        budget=round(job.train.activation_budget_gib * 2**30),
    )
    return max(1, memory.tokens_within(int(room), MOST_TOKENS))


def check_fit(trainer: "Trainer") -> dict[str, float]:
    """Run one forward and backward of the run's largest microbatch, by every rank, the gradient thrown away: where
    memory does not suffice the run ends here and not in hour six. Changes no state but the trainer's cut. -> figures

    Where ranks compute together a forward that failed leaves them out of step: nothing is asked there, as the others would
    take the question for a part of the weights, and nothing tried again but by another start, which ``StepCrashed`` asks
    for.
    """
    started, together = time.monotonic(), trainer.job.sharding.splits_weights
    forget_peak_memory()  # of loading and of the layouts' comparison, which training never takes again
    while True:
        failure = _failure(trainer)
        if failure and together:
            raise _told_the_next_start(trainer) or failure
        words = by_every_rank(
            trainer.accelerator, lambda *_, failure=failure: failure.problem if failure else ""
        )
        if not any(words):
            break
        if not (tokens := smaller(trainer)):
            # Whoever comes first reports, so each has to know where it was.
            raise failure or OutOfMemory(next(filter(None, words)))
        trainer.cut = replace(trainer.cut, tokens=tokens)
        log.info("that does not fit: %d tokens a forward are tried", tokens)
        trainer.engine.discard_gradients()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    rows = largest_rows(trainer)
    tokens = batch_tokens(trainer.pair_tokens[rows], trainer.layout)
    peak = max(by_every_rank(trainer.accelerator, lambda *_: peak_memory_gib()))
    log.info(
        "fit check: the run's largest microbatch, %d pairs of %d tokens, fits: %.1f GiB at most, of any process",
        len(rows),
        tokens,
        peak,
    )
    return {
        "fit_seconds": time.monotonic() - started,
        "fit_pairs": float(len(rows)),
        "fit_tokens": float(tokens),
        "fit_peak_gib": peak,
        "tokens_per_forward": float(trainer.cut.tokens),
    }


def smaller(trainer: "Trainer") -> int | None:
    """Return half of what the run's largest microbatch has, its longest pair at least; None where that was tried, or where
    a person has said how many."""
    lengths = trainer.pair_tokens[largest_rows(trainer)]
    tried, longest = batch_tokens(lengths, trainer.layout), int(lengths.max())
    return max(longest, tried // 2) if trainer.cut.may_be_halved and tried > longest else None


def _told_the_next_start(trainer: "Trainer") -> StepCrashed | None:
    """Leave a smaller number of tokens to the next start. -> what asks for one; None if it can be no smaller"""
    if not (tokens := smaller(trainer)):
        return None
    keep_bound(trainer.job, trainer.accelerator, tokens)
    return StepCrashed(
        "A forward of as many tokens as the card was thought to hold does not fit, and ranks that share weights out cannot "
        "try another.",
        f"The step is started again with at most {tokens:,} tokens.",
    )


def largest_rows(trainer: "Trainer") -> list[int]:
    """Return the rows of the run's largest microbatch."""
    cut, seed = trainer.cut, trainer.job.train.seed
    return list(
        largest_microbatch(
            trainer.pair_tokens, cut.plan, cut.tokens, seed, trainer.total_steps, trainer.layout
        )
    )


def _failure(trainer: "Trainer") -> OutOfMemory | None:
    """What keeps the largest microbatch from fitting; without its frames, which hold the tensors that were made."""
    rows = largest_rows(trainer)
    batch = collate([trainer.dataset[row] for row in rows], rows, trainer.layout)
    try:
        losses = trainer.step_loss.begin(trainer.engine, rows, [batch], trainer.state.mean_reward)
        with trainer.engine.accumulate(last=False):
            trainer.forward_backward(batch, losses, rows)
    except OutOfMemory as error:
        return error.with_traceback(None)
    trainer.engine.discard_gradients()
    return None
