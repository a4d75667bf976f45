"""Preference objectives as pure functions of sequence log-probabilities. Shapes: B pairs.

``LOSSES[name](policy, reference, config)`` gives per-pair losses and rewards; averaging over the batch is the trainer's,
and what can be added to any objective stands in ``objective.py``. Rewards are in the loss's own units (docs/losses.md):
beta x nats per token for ``dpo_norm``, ``simpo`` and ``ipo``, beta x nats per answer for all others; with an f-divergence
other than reverse KL, beta x f'(policy / reference) in place of nats. Torch is the only import besides the contract.

Below, r_c and r_r are the rewards of chosen and rejected, m = r_c - r_r is their margin, s is ``label_smoothing``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.objectives import OBJECTIVES, LossName, Traits
from dpo_core.loss.divergences import DIVERGENCES
from dpo_core.loss.pair_logps import PairLogps, policy_weights


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Per-pair loss and detached rewards, float [B]. The objectives that sort give losses by rank, not by pair."""

    losses_B: Tensor
    chosen_rewards_B: Tensor
    rejected_rewards_B: Tensor


def _rewards(policy: PairLogps, reference: PairLogps, config: LossConfig) -> tuple[Tensor, Tensor]:
    """beta * f'(policy / reference) of chosen and rejected; of reverse KL that is beta * (policy - reference)."""
    score = DIVERGENCES[config.f_divergence]
    return (
        config.beta * score(policy.chosen_B - reference.chosen_B, config),
        config.beta * score(policy.rejected_B - reference.rejected_B, config),
    )


def _rewards_per_token(policy: PairLogps, reference: PairLogps, config: LossConfig) -> tuple[Tensor, Tensor]:
    chosen_B, rejected_B = _rewards(policy, reference, config)
    return chosen_B / policy.chosen_tokens_B, rejected_B / policy.rejected_tokens_B


def _output(losses_B: Tensor, chosen_rewards_B: Tensor, rejected_rewards_B: Tensor) -> LossOutput:
    return LossOutput(losses_B, chosen_rewards_B.detach(), rejected_rewards_B.detach())


def _smoothed_logistic(margin_B: Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid(m) with flipped-label probability s (conservative DPO, Mitchell 2023, eq. 3). [B] -> [B]."""
    return -logsigmoid(margin_B) * (1 - label_smoothing) - logsigmoid(-margin_B) * label_smoothing


def dpo(
    policy: PairLogps, reference: PairLogps, config: LossConfig, target: Tensor | float = 0.0
) -> LossOutput:
    """Compute DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7): -log sigmoid(m - d) with target d = 0, or
    a pair's own (ODPO, Amini et al. 2024, arXiv 2402.10571)."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    margin_B = chosen_B - rejected_B - target
    return _output(_smoothed_logistic(margin_B, config.label_smoothing), chosen_B, rejected_B)


def dpo_norm(
    policy: PairLogps, reference: PairLogps, config: LossConfig, target: Tensor | float = 0.0
) -> LossOutput:
    """Compute length-normalised DPO (Tulu 3, arXiv 2411.15124, section 5.1.2, eq. 6): -log sigmoid(m - d), target d as in
    dpo, rewards per token.
    """
    chosen_B, rejected_B = _rewards_per_token(policy, reference, config)
    margin_B = chosen_B - rejected_B - target
    return _output(_smoothed_logistic(margin_B, config.label_smoothing), chosen_B, rejected_B)


def simpo(policy: PairLogps, reference: PairLogps | None, config: LossConfig) -> LossOutput:
    """Compute SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6): -log sigmoid(beta * (mean_chosen - mean_rejected) -
    gamma).

    No reference; ``gamma_beta_ratio`` is gamma / beta. Rewards are beta * mean log-probability per token.
    """
    mean = policy.per_token()
    margin_B = mean.chosen_B - mean.rejected_B - config.gamma_beta_ratio
    losses_B = _smoothed_logistic(config.beta * margin_B, config.label_smoothing)
    return _output(losses_B, config.beta * mean.chosen_B, config.beta * mean.rejected_B)


def ipo(
    policy: PairLogps, reference: PairLogps, config: LossConfig, target: Tensor | float = 0.5
) -> LossOutput:
    """Compute IPO (Azar et al. 2023, arXiv 2310.12036, eq. 17): ((m - d) / beta)^2, beta being the paper's tau,
    with target d = 1/2, or a pair's own: regression to a known difference of rewards.

    Deviates from the printed equation by rewards per token, as its authors' results did and as peers do.
    """
    chosen_B, rejected_B = _rewards_per_token(policy, reference, config)
    return _output(((chosen_B - rejected_B - target) / config.beta) ** 2, chosen_B, rejected_B)


def wpo(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Compute WPO (Zhou et al. 2024, arXiv 2406.11827, eq. 2): DPO, each pair weighted by how likely the policy finds
    it."""
    plain = dpo(policy, reference, config)
    return replace(plain, losses_B=policy_weights(policy) * plain.losses_B)


def hinge(
    policy: PairLogps, reference: PairLogps, config: LossConfig, target: Tensor | float = 1.0
) -> LossOutput:
    """Compute the hinge loss (SLiC-HF, Zhao et al. 2023, arXiv 2305.10425, section 2, with DPO's rewards as in RSO, Liu
    et al. 2023, arXiv 2309.06657): max(0, d - m), target d = 1 or a pair's own."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    return _output(torch.relu(target - (chosen_B - rejected_B)), chosen_B, rejected_B)


def robust(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Compute robust DPO (Chowdhury et al. 2024, arXiv 2403.00409, section 3.1): the loss whose mean over flips of
    labels with probability s is DPO's, (-(1 - s) log sigmoid(m) + s log sigmoid(-m)) / (1 - 2s). Not bounded below."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    s, margin_B = config.label_smoothing, chosen_B - rejected_B
    losses_B = (-(1 - s) * logsigmoid(margin_B) + s * logsigmoid(-margin_B)) / (1 - 2 * s)
    return _output(losses_B, chosen_B, rejected_B)


def exo_pair(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Compute EXO on pairs (Ji et al. 2024, arXiv 2402.00856, eq. 16): the KL divergence from (1 - s, s) of
    (sigmoid(m), sigmoid(-m)), the reverse of the one that smoothed DPO minimises. beta is the paper's beta_pi, s its
    epsilon > 0."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    log_win_B, log_lose_B = logsigmoid(chosen_B - rejected_B), logsigmoid(rejected_B - chosen_B)
    losses_B = log_win_B.exp() * (log_win_B - math.log1p(-config.label_smoothing)) + log_lose_B.exp() * (
        log_lose_B - math.log(config.label_smoothing)
    )
    return _output(losses_B, chosen_B, rejected_B)


def apo_zero(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Compute APO-zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7): sigmoid(-r_c) + sigmoid(r_r), for chosen
    answers better than the policy's own. The printed equation has -sigmoid(r_c), the same less a constant 1."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    return _output(torch.sigmoid(-chosen_B) + torch.sigmoid(rejected_B), chosen_B, rejected_B)


def apo_down(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Compute APO-down (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8): sigmoid(r_c) + sigmoid(-m), for chosen
    answers worse than the policy's own. The printed equation has -sigmoid(m), the same less a constant 1."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    return _output(torch.sigmoid(chosen_B) + torch.sigmoid(rejected_B - chosen_B), chosen_B, rejected_B)


def sppo_hard(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Compute SPPO (Wu et al. 2024, arXiv 2405.00675, eq. 4.7) with win probabilities 1 and 0: each log ratio is pulled
    to plus or minus 1 / (2 beta), ((r_c - 1/2)^2 + (r_r + 1/2)^2) / beta^2. beta is the paper's 1 / eta."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    return _output(((chosen_B - 0.5) ** 2 + (rejected_B + 0.5) ** 2) / config.beta**2, chosen_B, rejected_B)


def nca_pair(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Compute NCA on pairs (Chen et al. 2024, arXiv 2402.05369, section 4.1): -log sigmoid(r_c) - (log sigmoid(-r_c)
    + log sigmoid(-r_r)) / 2. It looks at each reward by itself, so the chosen answer does not get less likely."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    losses_B = -logsigmoid(chosen_B) - 0.5 * (logsigmoid(-chosen_B) + logsigmoid(-rejected_B))
    return _output(losses_B, chosen_B, rejected_B)


def bco_pair(
    policy: PairLogps, reference: PairLogps, config: LossConfig, mean_reward: float = 0.0
) -> LossOutput:
    """Compute BCO (Jung et al. 2024, arXiv 2404.04656, section 4): -log sigmoid(r_c - d) - log sigmoid(-(r_r - d)), a
    classifier of chosen against rejected whose threshold d is the mean reward, unless ``bco_threshold`` is given.

    Deviates from the paper, whose running mean includes the batch at hand: d is the mean over all answers of earlier
    steps (0 at first), so it is the same however a batch is cut.
    """
    chosen_B, rejected_B = _rewards(policy, reference, config)
    d = mean_reward if config.bco_threshold is None else config.bco_threshold
    return _output(-logsigmoid(chosen_B - d) - logsigmoid(d - rejected_B), chosen_B, rejected_B)


def aot(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Compute unpaired AOT (Melnyk et al. 2024, arXiv 2406.05882, section 3): -log sigmoid(m) between the k-th smallest
    reward of the chosen and the k-th smallest of the rejected answers of a batch."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    margin_B = chosen_B.sort(stable=True).values - rejected_B.sort(stable=True).values
    return _output(_smoothed_logistic(margin_B, config.label_smoothing), chosen_B, rejected_B)


def aot_pair(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Compute paired AOT (Melnyk et al. 2024, arXiv 2406.05882, section 3): -log sigmoid(beta * d), d between the k-th
    smallest log-probability margin of the policy and the k-th smallest of the reference in a batch."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    own_B, theirs_B = policy.chosen_B - policy.rejected_B, reference.chosen_B - reference.rejected_B
    margin_B = config.beta * (own_B.sort(stable=True).values - theirs_B.sort(stable=True).values)
    return _output(_smoothed_logistic(margin_B, config.label_smoothing), chosen_B, rejected_B)


def discopop(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Compute DiscoPOP (Lu et al. 2024, arXiv 2406.08414, eq. 5): (1 - g) * -log sigmoid(m) + g * exp(-m), g =
    sigmoid(m / tau), tau being ``discopop_tau``. g * exp(-m) is computed as one exponential, else it is infinity times
    0 at m = -100."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    margin_B = chosen_B - rejected_B
    gate_B = margin_B / config.discopop_tau
    losses_B = -torch.sigmoid(-gate_B) * logsigmoid(margin_B) + torch.exp(logsigmoid(gate_B) - margin_B)
    return _output(losses_B, chosen_B, rejected_B)


def dpop(policy: PairLogps, reference: PairLogps, config: LossConfig) -> LossOutput:
    """Compute DPO-Positive (Pal et al. 2024, arXiv 2402.13228): -log sigmoid(m - beta * lambda *
    max(0, reference_c - policy_c)), dpo that pays for a chosen answer less likely than the reference finds
    it. lambda is ``dpop_lambda``."""
    chosen_B, rejected_B = _rewards(policy, reference, config)
    lost_B = config.dpop_lambda * torch.relu(-chosen_B)
    return _output(-logsigmoid(chosen_B - rejected_B - lost_B), chosen_B, rejected_B)


def sft(
    policy: PairLogps,
    reference: PairLogps | None,
    config: LossConfig,
    chosen_tokens: float | Tensor | None = None,
) -> LossOutput:
    """Compute the negative log-likelihood of the chosen answers, averaged over their tokens: -policy_c / n, where n is
    the optimizer step's mean number of chosen tokens a pair (``chosen_tokens``; else of the pairs at hand), so that
    the mean over pairs is the one over all the step's chosen tokens. Long answers weigh more. Rewards as in simpo."""
    mean = policy.per_token()
    losses_B = -policy.chosen_B / (policy.chosen_tokens_B.mean() if chosen_tokens is None else chosen_tokens)
    return _output(losses_B, config.beta * mean.chosen_B, config.beta * mean.rejected_B)


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What an objective may need to know of its optimizer step besides pairs."""

    mean_reward: float = 0.0  # over all answers of earlier steps, in the loss's units; for bco_pair
    chosen_tokens: float | None = (
        None  # trained tokens of a chosen answer, mean over the step's pairs; for sft
    )


NO_STEP = StepFacts()


@dataclass(frozen=True, slots=True)
class LossRow:
    """A row of ``LOSSES``: an objective's function and its traits."""

    function: Callable[..., LossOutput]
    traits: Traits

    def __call__(
        self,
        policy: PairLogps,
        reference: PairLogps | None,
        config: LossConfig,
        step: StepFacts = NO_STEP,
        margin_B: Tensor | None = None,
    ) -> LossOutput:
        """Return losses and rewards of B pairs. An objective is told what its traits say it takes.
        ``margin_B`` takes the place of the margin that it aims at, except where it is NaN."""
        extra: dict[str, object] = {"mean_reward": step.mean_reward} if self.traits.mean_reward else {}
        extra |= {"chosen_tokens": step.chosen_tokens} if self.traits.token_mean else {}
        if margin_B is not None and self.traits.target is not None:
            extra["target"] = margin_B.nan_to_num(nan=self.traits.target)
        return self.function(policy, reference, config, **extra)


FUNCTIONS: dict[LossName, Callable[..., LossOutput]] = {
    "dpo": dpo,
    "dpo_norm": dpo_norm,
    "simpo": simpo,
    "ipo": ipo,
    "wpo": wpo,
    "hinge": hinge,
    "robust": robust,
    "exo_pair": exo_pair,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "sppo_hard": sppo_hard,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "aot": aot,
    "aot_pair": aot_pair,
    "discopop": discopop,
    "dpop": dpop,
    "sft": sft,
}
LOSSES = {name: LossRow(FUNCTIONS[name], traits) for name, traits in OBJECTIVES.items()}
