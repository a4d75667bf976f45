"""The step-0 guard: before the first update the policy is the reference, so rewards are 0 and the loss that of no margin.

Random rows are scored again by the training forward and compared with the cache. What this catches: a cache of another
checkpoint, another template or another precision, a wrong mask, a damaged shard; all of them train silently otherwise.
"""

import logging
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpo_core.contract.errors import ReferenceMismatch
from dpo_core.contract.loss_config import Loss, LossSum
from dpo_core.data.pair_batch import collate, to_device
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import ReferenceRows
from dpo_core.loss.objective import build_objective
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.model.forward import pair_logps
from dpo_core.training.scores import Scoring

log = logging.getLogger(__name__)

NUM_ROWS = 8


class Moment(NamedTuple):
    """When rows are compared, for the messages."""

    name: str
    expectation: str
    cure: str


BEFORE_TRAINING = Moment(
    "step-0 guard",
    "Before the first update policy and reference must agree",
    "The reference cache is of another checkpoint, chat template or precision: delete the run's reference folder and run "
    "again.",
)
AFTER_TRAINING = Moment(
    "base check",
    "After training an adapter the policy without it must still be the reference",
    "The frozen weights were changed, so the adapter does not fit its base: this is a defect of the trainer. The "
    "checkpoints hold the adapter alone.",
)


def without_pair_terms(loss: Loss) -> Loss:
    """Return the part whose value at a zero margin is the same for every pair: wpo is dpo with weights that depend on
    the pair, and the likelihood that ``rpo_alpha`` or sft adds does, too."""
    if isinstance(loss, LossSum):
        terms = [term for term in loss.terms if not term.traits.token_mean]
        return loss.model_copy(update={"terms": tuple(map(without_pair_terms, terms))}) if terms else loss
    name = "dpo" if loss.traits.weights_pairs else loss.name
    return loss.model_copy(update={"name": name, "rpo_alpha": 0.0, "wpo_weighting": False})


def zero_margin_loss(loss: Loss) -> float:
    """Return the loss of a pair whose rewards are both 0, by the objective itself (log 2 for dpo), without terms of
    the pair."""
    none, one = torch.zeros(1), torch.ones(1)
    zero = PairLogps(none, none, one, one, none, none)
    return float(build_objective(without_pair_terms(loss))(zero, zero).losses_B)


def reference_logps(rows: ReferenceRows, numbers: np.ndarray, device: torch.device) -> PairLogps:
    """Return cached values of some rows as ``PairLogps``."""
    sums, tokens, tails = (
        to_device(torch.from_numpy(values[numbers]).float(), device)
        for values in (rows.sums, rows.tokens, rows.tails)
    )
    return PairLogps(sums[:, 0], sums[:, 1], tokens[:, 0], tokens[:, 1], tails[:, 0], tails[:, 1])


def _differences(policy: PairLogps, cached: PairLogps) -> Tensor:
    """Nats a token, of both sides and of their tails. -> [4, B]"""
    mean, cached_mean = policy.per_token(), cached.per_token()
    return torch.stack(
        [
            getattr(mean, name) - getattr(cached_mean, name)
            for name in ("chosen_B", "rejected_B", "chosen_tail_B", "rejected_tail_B")
        ]
    )


def _check_labels(number: int, policy: PairLogps, cached: PairLogps) -> None:
    """Raise ``ReferenceMismatch`` if the cache counted other tokens of the one pair."""
    ours = (int(policy.chosen_tokens_B), int(policy.rejected_tokens_B))
    theirs = (int(cached.chosen_tokens_B), int(cached.rejected_tokens_B))
    if ours != theirs:
        raise ReferenceMismatch(
            f"Row {number} trains {ours[0]} + {ours[1]} tokens, the reference cache counted {theirs[0]} + "
            f"{theirs[1]}. The cache is of other labels: delete it and run again."
        )


@torch.no_grad()
def check_step_zero(
    scoring: Scoring,
    dataset: PairDataset,
    reference: ReferenceRows,
    loss: Loss,
    seed: int,
    moment: Moment = BEFORE_TRAINING,
) -> dict[str, float]:
    """Compare random rows with the cache. Returns the guard's figures; raises ``ReferenceMismatch`` saying what differs.

    Its scorer holds the model that the reference values are said to come from.
    """
    scorer, device = scoring.scorer, scoring.accelerator.device
    objective = build_objective(without_pair_terms(loss))
    count = min(NUM_ROWS, len(dataset))
    numbers = np.random.default_rng(seed).choice(len(dataset), count, replace=False)
    cached = reference_logps(reference, numbers, device)
    differences, outputs = [], []
    for position, number in enumerate(numbers):  # one by one: the guard must not be what runs out of memory
        batch = collate([dataset[int(number)]], [int(number)], scoring.layout).to(device)
        policy = pair_logps(scorer(batch), batch.tokens_2B)
        one = cached[position : position + 1]
        _check_labels(int(number), policy, one)
        differences.append(_differences(policy, one))
        outputs.append(objective(policy, one))
    allowed = scorer.noise(scorer.precision)
    worst_B = torch.cat(differences, dim=1).abs().amax(dim=0)
    rewards = torch.cat([torch.cat([o.chosen_rewards_B, o.rejected_rewards_B]) for o in outputs])
    figures = {
        "rows": float(count),
        "largest_difference_per_token": float(worst_B.max()),
        "largest_reward": float(rewards.abs().max()),
        "loss": float(torch.cat([o.losses_B for o in outputs]).mean()),
        "zero_margin_loss": zero_margin_loss(loss),
        "allowed_difference_per_token": allowed,
    }
    if not worst_B.max() <= allowed:
        worst = int(worst_B.argmax())
        raise ReferenceMismatch(
            f"{moment.expectation}, but on row {numbers[worst]} they differ by "
            f"{float(worst_B[worst]):.3g} nats a token (allowed {allowed:g}); the loss is "
            f"{figures['loss']:.4f}, a zero margin gives {figures['zero_margin_loss']:.4f}. {moment.cure}"
        )
    log.info(
        "%s: %d rows, loss %.6f (zero margin %.6f), largest difference %.1e nats a token",
        moment.name,
        count,
        figures["loss"],
        figures["zero_margin_loss"],
        figures["largest_difference_per_token"],
    )
    return figures
