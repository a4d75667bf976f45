"""How the losses of an optimizer step's microbatches come about: each by itself, or from the whole global batch.

Chosen once, in set-up. Either way the results do not depend on how the global batch is cut and dealt to ranks. Shapes: B
pairs of a microbatch, G of the global batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dpo_core.contract.loss_config import Loss
from dpo_core.data.pair_batch import PairBatch
from dpo_core.data.reference_cache import ReferenceRows
from dpo_core.engine.distributed import sum_over_ranks
from dpo_core.engine.engine import Engine
from dpo_core.loss.losses import LossOutput, StepFacts
from dpo_core.loss.objective import build_objective, loss_and_gradient, surrogate
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.training.scores import places, score_all
from dpo_core.training.step_guard import reference_logps

MicrobatchLoss = Callable[[PairLogps, PairBatch], tuple[Tensor, LossOutput]]
"""(policy, its batch) -> [B] whose weighted sum is to be back-propagated, and losses and rewards to report."""


class StepLoss(Protocol):
    """An objective over the steps of a run."""

    def begin(
        self, engine: Engine, rows: Sequence[int], batches: Sequence[PairBatch], mean_reward: float
    ) -> MicrobatchLoss:
        """Return the loss of a step. ``rows`` are the global batch's, ``batches`` this rank's part. All ranks call it
        together.
        """
        ...


@dataclass(frozen=True, slots=True)
class PairByPair:
    """A pair's loss is a matter of its own log-probabilities."""

    loss: Loss
    reference: ReferenceRows | None

    def begin(
        self, engine: Engine, rows: Sequence[int], batches: Sequence[PairBatch], mean_reward: float
    ) -> MicrobatchLoss:
        """See ``StepLoss``."""
        tokens = _chosen_tokens(engine, batches) if self.loss.any_is("token_mean") else None
        objective = build_objective(self.loss, StepFacts(mean_reward, tokens))

        def of_microbatch(policy: PairLogps, batch: PairBatch) -> tuple[Tensor, LossOutput]:
            output = objective(policy, _reference_of(self.reference, batch.row_B, policy))
            return output.losses_B, output

        return of_microbatch


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """Losses depend on all pairs of the global batch: score them without gradient, gather, take the loss's slopes once.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983). Costs one more forward pass over the batch.
    """

    loss: Loss
    reference: ReferenceRows | None

    def begin(
        self, engine: Engine, rows: Sequence[int], batches: Sequence[PairBatch], mean_reward: float
    ) -> MicrobatchLoss:
        """See ``StepLoss``."""
        rows_G = torch.as_tensor(rows, device=engine.accelerator.device)
        policy = score_all(engine.scorer, engine.accelerator, rows_G, batches)
        whole, slope = loss_and_gradient(
            build_objective(self.loss, StepFacts(mean_reward)),
            policy,
            _reference_of(self.reference, torch.as_tensor(rows), policy),
        )

        def of_microbatch(policy: PairLogps, batch: PairBatch) -> tuple[Tensor, LossOutput]:
            at_B = places(rows_G, batch.row_B)
            output = LossOutput(
                whole.losses_B[at_B], whole.chosen_rewards_B[at_B], whole.rejected_rewards_B[at_B]
            )
            return surrogate(policy, slope[at_B]), output

        return of_microbatch


def choose_step_loss(loss: Loss, reference: ReferenceRows | None) -> StepLoss:
    """Return what the objective's traits ask for."""
    return (WholeBatch if loss.any_is("whole_batch") else PairByPair)(loss, reference)


def _reference_of(reference: ReferenceRows | None, row_B: Tensor, policy: PairLogps) -> PairLogps | None:
    """The cached values beside ``policy``'s; ``row_B`` is on the host."""
    return None if reference is None else reference_logps(reference, row_B.numpy(), policy.chosen_B.device)


def _chosen_tokens(engine: Engine, batches: Sequence[PairBatch]) -> float:
    """Trained tokens of a chosen answer, mean over the global batch: the same on every rank, whatever the cut. Counts are
    whole numbers, so no order of adding them shows."""
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:  # a filler has weight 0
        sums += torch.stack([(batch.weight_B * batch.tokens_2B[::2]).sum(), batch.weight_B.sum()]).double()
    tokens, pairs = sum_over_ranks(engine.accelerator, sums.to(engine.accelerator.device)).tolist()
    return tokens / pairs
