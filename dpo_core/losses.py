"""Preference objectives as pure functions of sequence log-probabilities. Shapes: B pairs.

``LOSSES[name](policy, reference, config)`` gives per-pair losses and rewards; weighting and averaging over the batch is
the trainer's. Rewards are in the loss's own units (docs/losses.md): sums of log-probabilities for ``dpo``, ``wpo``;
means per token for ``dpo_norm``, ``simpo``, ``ipo``. Torch is the only import besides the configuration.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_core.config import LossConfig


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Sums of log-probabilities over the trained tokens of each side, and how many tokens that are. All float [B].

    A tail is the part of a sum that lies beyond the other side's length: over the trained tokens after the first
    min(chosen_tokens, rejected_tokens). It is 0 on the shorter side.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    chosen_tail_B: Tensor
    rejected_tail_B: Tensor

    def per_token(self) -> "PairLogps":
        """The same with means per token in place of sums (token counts become one)."""
        one = torch.ones_like(self.chosen_tokens_B)
        return PairLogps(self.chosen_B / self.chosen_tokens_B, self.rejected_B / self.rejected_tokens_B, one, one,
                         self.chosen_tail_B / self.chosen_tokens_B, self.rejected_tail_B / self.rejected_tokens_B)


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Per-pair loss and detached rewards, float [B]."""

    losses_B: Tensor
    chosen_rewards_B: Tensor
    rejected_rewards_B: Tensor


def _smoothed_logistic(logits_B: Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid(x) with flipped-label probability s (conservative DPO, Mitchell 2023, eq. 3). [B] -> [B]."""
    return -logsigmoid(logits_B) * (1 - label_smoothing) - logsigmoid(-logits_B) * label_smoothing


def _against_reference(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    chosen_B = config.beta * (policy.chosen_B - reference.chosen_B)
    rejected_B = config.beta * (policy.rejected_B - reference.rejected_B)
    losses_B = _smoothed_logistic(chosen_B - rejected_B, config.label_smoothing)
    return LossOutput(losses_B, chosen_B.detach(), rejected_B.detach())


def dpo(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7): -log sigmoid(beta * (logratio_chosen - logratio_rejected))."""
    return _against_reference(policy, reference, config)


def dpo_norm(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Length-normalised DPO (Tulu 3, arXiv 2411.15124, section 5.1.2, eq. 6): DPO on mean log-probabilities per token."""
    return _against_reference(policy.per_token(), reference.per_token(), config)


def simpo(policy: PairLogps, reference: PairLogps | None, config: LossConfig) -> LossOutput:
    """SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6): beta * (mean_chosen - mean_rejected) - gamma, no reference.

    ``gamma_beta_ratio`` is gamma / beta. Rewards are beta * mean log-probability.
    """
    mean = policy.per_token()
    margin_B = mean.chosen_B - mean.rejected_B - config.gamma_beta_ratio
    losses_B = _smoothed_logistic(config.beta * margin_B, config.label_smoothing)
    return LossOutput(losses_B, (config.beta * mean.chosen_B).detach(), (config.beta * mean.rejected_B).detach())


def ipo(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """IPO (Azar et al. 2023, arXiv 2310.12036, eq. 17): (logratio margin - 1 / (2 beta))^2, beta being the paper's tau.

    Deviates from the printed equation by taking means per token, as its authors' results did and as peers do.
    """
    policy, reference = policy.per_token(), reference.per_token()
    chosen_B, rejected_B = policy.chosen_B - reference.chosen_B, policy.rejected_B - reference.rejected_B
    losses_B = (chosen_B - rejected_B - 1 / (2 * config.beta)) ** 2
    return LossOutput(losses_B, (config.beta * chosen_B).detach(), (config.beta * rejected_B).detach())


def wpo(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """WPO (Zhou et al. 2024, arXiv 2406.11827, eq. 2): DPO, each pair weighted by how likely the policy finds it.

    The weight is exp(mean log-probability) of chosen times that of rejected, detached.
    """
    mean = policy.per_token()
    weight_B = torch.exp(mean.chosen_B + mean.rejected_B).detach()
    plain = _against_reference(policy, reference, config)
    return LossOutput(weight_B * plain.losses_B, plain.chosen_rewards_B, plain.rejected_rewards_B)


Loss = Callable[[PairLogps, PairLogps | None, LossConfig], LossOutput]
LOSSES: dict[str, Loss] = {"dpo": dpo, "dpo_norm": dpo_norm, "simpo": simpo, "ipo": ipo, "wpo": wpo}
