"""The objective of a run: rows of ``LOSSES`` bound to their settings, with what can be added to any. Shapes: B pairs.

Chosen once, in set-up: what is off is not in the chain.
"""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from dpo_core.contract.loss_config import Loss, LossConfig
from dpo_core.loss.losses import LOSSES, NO_STEP, LossOutput, StepFacts
from dpo_core.loss.pair_logps import PairLogps, policy_weights


class Objective(Protocol):
    """(policy, reference) -> losses and rewards. ``margin_B``: pairs' own target margins, NaN where a pair has none."""

    def __call__(
        self, policy: PairLogps, reference: PairLogps | None, margin_B: Tensor | None = None, /
    ) -> LossOutput: ...


def build_objective(loss: Loss, step: StepFacts = NO_STEP) -> Objective:
    """Build (policy, reference) -> losses and rewards: of one objective, or of a weighted sum with the rewards of one of
    them."""
    if isinstance(loss, LossConfig):
        return _one_objective(loss, step)
    terms = [(weight, _one_objective(part, step)) for weight, part in loss.parts]
    return weighted_sum(terms, [part for _, part in loss.parts].index(loss.rewarding))


def _one_objective(config: LossConfig, step: StepFacts) -> Objective:
    def objective(
        policy: PairLogps, reference: PairLogps | None, margin_B: Tensor | None = None, /
    ) -> LossOutput:
        return LOSSES[config.name](policy, reference, config, step, margin_B)

    return _with_additions(objective, config)


def _with_additions(objective: Objective, config: LossConfig) -> Objective:
    if config.ld_alpha < 1:
        objective = length_desensitised(objective, config.ld_alpha)
    if config.wpo_weighting:
        objective = weighted_by_policy(objective)
    if config.rpo_alpha:
        objective = with_chosen_nll(objective, config.rpo_alpha)
    return objective


def weighted_sum(terms: list[tuple[float, Objective]], rewarding: int) -> Objective:
    """Return the sum of weight times loss (MPO, Wang et al. 2024, arXiv 2411.10442, eq. 1), with the rewards of one term.

    A term that sorts a batch gives its losses by rank, so only the sum over all pairs means something then.
    """

    def summed(
        policy: PairLogps, reference: PairLogps | None, margin_B: Tensor | None = None, /
    ) -> LossOutput:
        outputs = [objective(policy, reference, margin_B) for _, objective in terms]
        losses_B = sum(
            (weight * output.losses_B for (weight, _), output in zip(terms, outputs, strict=True)),
            start=torch.zeros_like(policy.chosen_B),
        )
        return replace(outputs[rewarding], losses_B=losses_B)

    return summed


def weighted_by_policy(objective: Objective) -> Objective:
    """Put WPO's weights (Zhou et al. 2024, arXiv 2406.11827, eq. 2) of whole answers on any objective; rewards stay."""

    def weighted(
        policy: PairLogps, reference: PairLogps | None, margin_B: Tensor | None = None, /
    ) -> LossOutput:
        plain = objective(policy, reference, margin_B)
        return replace(plain, losses_B=policy_weights(policy) * plain.losses_B)

    return weighted


def length_desensitised(objective: Objective, alpha: float) -> Objective:
    """Return an objective with LD-DPO (Liu et al. 2024, arXiv 2409.06411, section 3.3): tokens beyond the other
    answer's length weigh ``alpha``.

    Applied to policy and reference alike. Token counts stay, so means per token still divide by whole answers.
    """

    def shortened(logps: PairLogps) -> PairLogps:
        return PairLogps(
            logps.chosen_B - (1 - alpha) * logps.chosen_tail_B,
            logps.rejected_B - (1 - alpha) * logps.rejected_tail_B,
            logps.chosen_tokens_B,
            logps.rejected_tokens_B,
            alpha * logps.chosen_tail_B,
            alpha * logps.rejected_tail_B,
        )

    return lambda policy, reference, margin_B=None, /: objective(
        shortened(policy), reference and shortened(reference), margin_B
    )


def with_chosen_nll(objective: Objective, alpha: float) -> Objective:
    """Return an objective with RPO (Pang et al. 2024, arXiv 2404.19733, eq. 1): plus ``alpha`` times chosen's negative
    log-likelihood per token.

    Per pair, so every pair weighs the same whatever its length. Rewards stay as they are.
    """

    def added(
        policy: PairLogps, reference: PairLogps | None, margin_B: Tensor | None = None, /
    ) -> LossOutput:
        plain = objective(policy, reference, margin_B)
        nll_B = -policy.chosen_B / policy.chosen_tokens_B
        return replace(plain, losses_B=plain.losses_B + alpha * nll_B)

    return added


def loss_and_gradient(
    objective: Objective, policy: PairLogps, reference: PairLogps | None
) -> tuple[LossOutput, PairLogps]:
    """Return losses and rewards, and the slope of the summed losses by each of the policy's sums and tails, all
    detached.

    The slopes come as ``PairLogps`` of the same places, 0 for the token counts. With them a batch that must be seen whole
    can be trained in parts: see ``surrogate``.
    """
    inputs = [getattr(policy, name).detach().requires_grad_() for name in policy.names]
    with torch.enable_grad():
        output = objective(PairLogps(*inputs), reference)
        slopes = torch.autograd.grad(output.losses_B.sum(), inputs, allow_unused=True, materialize_grads=True)
    none = torch.zeros_like(slopes[0])
    slope = PairLogps(
        *(none if name.endswith("tokens_B") else of for name, of in zip(policy.names, slopes, strict=True))
    )
    return LossOutput(output.losses_B.detach(), output.chosen_rewards_B, output.rejected_rewards_B), slope


def surrogate(policy: PairLogps, slope: PairLogps) -> Tensor:
    """Return the sum of log-probabilities times slopes, [B]: has the gradient of the loss that the slopes belong to, not
    its value.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983): by the chain rule the parts' gradients add up to the whole's.
    """
    return (
        policy.chosen_B * slope.chosen_B
        + policy.rejected_B * slope.rejected_B
        + policy.chosen_tail_B * slope.chosen_tail_B
        + policy.rejected_tail_B * slope.rejected_tail_B
    )
