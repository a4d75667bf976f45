"""The objective of a run: a row of ``LOSSES`` bound to its settings, with what can be added to any of them. Shapes: B pairs.

Chosen once, in set-up: what is off is not in the chain.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dpo_core.contract.loss_config import LossConfig
from dpo_core.loss.losses import LOSSES, LossOutput, PairLogps

Objective = Callable[[PairLogps, PairLogps | None], LossOutput]


def build_objective(config: LossConfig, mean_reward: float = 0.0) -> Objective:
    """Build (policy, reference) -> losses and rewards. ``mean_reward`` of earlier steps is read by ``bco_pair`` alone."""
    objective: Objective = partial(LOSSES[config.name], config=config, mean_reward=mean_reward)
    if config.ld_alpha < 1:
        objective = length_desensitised(objective, config.ld_alpha)
    if config.rpo_alpha:
        objective = with_chosen_nll(objective, config.rpo_alpha)
    return objective


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

    return lambda policy, reference: objective(shortened(policy), reference and shortened(reference))


def with_chosen_nll(objective: Objective, alpha: float) -> Objective:
    """Return an objective with RPO (Pang et al. 2024, arXiv 2404.19733, eq. 1): plus ``alpha`` times chosen's negative
    log-likelihood per token.

    Per pair, so every pair weighs the same whatever its length. Rewards stay as they are.
    """

    def added(policy: PairLogps, reference: PairLogps | None) -> LossOutput:
        plain = objective(policy, reference)
        nll_B = -policy.chosen_B / policy.chosen_tokens_B
        return LossOutput(plain.losses_B + alpha * nll_B, plain.chosen_rewards_B, plain.rejected_rewards_B)

    return added


def loss_and_gradient(
    objective: Objective, policy: PairLogps, reference: PairLogps | None
) -> tuple[LossOutput, PairLogps]:
    """Return losses and rewards, and the slope of the summed losses by each of the policy's sums and tails, all
    detached.

    The slopes come as ``PairLogps`` of the same places, 0 for the token counts. With them a batch that must be seen whole
    can be trained in parts: see ``surrogate``.
    """
    inputs = [getattr(policy, name).detach().requires_grad_() for name in PairLogps.__slots__]
    with torch.enable_grad():
        output = objective(PairLogps(*inputs), reference)
        slopes = torch.autograd.grad(output.losses_B.sum(), inputs, allow_unused=True, materialize_grads=True)
    none = torch.zeros_like(slopes[0])
    slope = PairLogps(
        *(
            none if name.endswith("tokens_B") else of
            for name, of in zip(PairLogps.__slots__, slopes, strict=True)
        )
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
