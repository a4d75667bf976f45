"""How the losses of an optimizer step's microbatches come about: each by itself, or from the whole global batch.

Chosen once, in set-up. Either way the results do not depend on how the global batch is cut and dealt to ranks. Shapes: B
pairs of a microbatch, G of the global batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.loss_config import Loss
from dpo_core.data.pair_batch import PairBatch, to_device
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import ReferenceRows
from dpo_core.engine.distributed import sum_over_shares
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
class PairNumbers:
    """What the rows say of their pairs besides text: weights and target margins, float32 [N]; None where no row has one."""

    weights: np.ndarray | None = None
    margins: np.ndarray | None = None

    @classmethod
    def of(cls, dataset: PairDataset) -> "PairNumbers":
        """Take those of a set."""
        weights, margins = dataset.weights, dataset.margins
        return cls(None if np.all(weights == 1) else weights, None if np.all(np.isnan(margins)) else margins)

    def shares(self, rows: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """Return what each of an optimizer step's pairs counts, float32 [len(rows)], 1 on average: a pair's share of the
        gradient is its weight by the sum of the step's, whatever the step is cut into."""
        if self.weights is None:
            return None
        weights = self.weights[np.asarray(rows)].astype(np.float64)
        return (weights / weights.mean()).astype(np.float32)

    def margins_of(self, rows: np.ndarray, device: torch.device) -> Tensor | None:
        """Return the target margins of some rows, NaN where a row has none; None where none of the set has."""
        return None if self.margins is None else to_device(torch.from_numpy(self.margins[rows]), device)


NO_NUMBERS = PairNumbers()


@dataclass(frozen=True, slots=True)
class PairByPair:
    """A pair's loss is a matter of its own log-probabilities, and of what its row says."""

    loss: Loss
    reference: ReferenceRows | None
    numbers: PairNumbers = NO_NUMBERS

    def begin(
        self, engine: Engine, rows: Sequence[int], batches: Sequence[PairBatch], mean_reward: float
    ) -> MicrobatchLoss:
        """See ``StepLoss``."""
        shares = self.numbers.shares(rows)
        share_of = {} if shares is None else dict(zip(rows, shares.tolist(), strict=True))
        tokens = _chosen_tokens(engine, batches, share_of) if self.loss.any_is("token_mean") else None
        objective = build_objective(self.loss, StepFacts(mean_reward, tokens))

        def of_microbatch(policy: PairLogps, batch: PairBatch) -> tuple[Tensor, LossOutput]:
            margin_B = self.numbers.margins_of(batch.row_B.numpy(), policy.chosen_B.device)
            output = objective(policy, _reference_of(self.reference, batch.row_B, policy), margin_B)
            if share_of:
                share_B = torch.tensor([share_of[row] for row in batch.row_B.tolist()])
                output = replace(
                    output, losses_B=to_device(share_B, policy.chosen_B.device) * output.losses_B
                )
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


def choose_step_loss(loss: Loss, reference: ReferenceRows | None, dataset: PairDataset) -> StepLoss:
    """Return what the objective's traits ask for. Raises ``ConfigError`` if rows have what it would ignore."""
    numbers = PairNumbers.of(dataset)
    check_numbers(loss, numbers)
    return WholeBatch(loss, reference) if loss.any_is("whole_batch") else PairByPair(loss, reference, numbers)


def check_numbers(loss: Loss, numbers: PairNumbers) -> None:
    """Raise ``ConfigError`` if rows have a weight or a margin that the objective would ignore."""
    for name, are_there, is_ignored in (
        ("weights", numbers.weights is not None, loss.ignores_weights),
        ("margins", numbers.margins is not None, loss.ignores_margins),
    ):
        if are_there and is_ignored:
            raise ConfigError(
                f"The mixture's pairs have {name}, which {loss.title} would ignore. Choose another objective."
            )


def _reference_of(reference: ReferenceRows | None, row_B: Tensor, policy: PairLogps) -> PairLogps | None:
    """The cached values beside ``policy``'s; ``row_B`` is on the host."""
    return None if reference is None else reference_logps(reference, row_B.numpy(), policy.chosen_B.device)


def _chosen_tokens(engine: Engine, batches: Sequence[PairBatch], share_of: dict[int, float]) -> float:
    """Trained tokens of a chosen answer, mean over the global batch, each counting its share: the same on every rank,
    whatever the cut."""
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:  # a filler has weight 0
        share_B = torch.tensor([share_of.get(row, 1.0) for row in batch.row_B.tolist()], dtype=torch.float64)
        share_B *= batch.weight_B
        sums += torch.stack([(share_B * batch.tokens_2B[::2]).sum(), share_B.sum()])
    tokens, pairs = sum_over_shares(engine.accelerator, sums.to(engine.accelerator.device)).tolist()
    return tokens / pairs
