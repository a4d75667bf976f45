"""What is measured of a batch, summed over microbatches and ranks and then averaged over pairs. Shapes: B pairs.

Every quantity is reported once, under the name that open-instruct and TRL share, or under both names where theirs
differ (``SECOND_NAMES``). ``logps/*`` are sums over a sequence's trained tokens; ``logps_per_token/*`` are their means.
Rewards and margins are in the loss's own units.
"""

import resource
import sys

import torch
from torch import Tensor

from dpo_core.contract.metric_names import SECOND_NAMES
from dpo_core.loss.losses import LossOutput
from dpo_core.loss.pair_logps import PairLogps

SUMMED = (
    "loss",
    "logps/chosen",
    "logps/rejected",
    "logps_per_token/chosen",
    "logps_per_token/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "ranking/accuracies",
    "pairs",
    "tokens",
    "router_aux_loss",
)


def batch_sums(
    policy: PairLogps,
    output: LossOutput,
    weight_B: Tensor,
    ties_count_half: bool = False,
    router_loss: Tensor | None = None,
) -> Tensor:
    """Return weighted sums over the pairs of one batch, float64 [len(SUMMED)], detached.

    ``rewards/accuracies`` is the share of pairs whose chosen reward is strictly higher, as peers count it. With
    ``ties_count_half`` a tie counts one half, so that an untrained policy, whose rewards are all 0, scores 0.5.
    ``ranking/accuracies`` asks the policy alone: is chosen likelier per token than rejected. ``router_loss`` is this
    microbatch's part of the step's (``dpo_core.model.router``), no sum over pairs.
    """
    mean = policy.per_token()
    margin_B = output.chosen_rewards_B - output.rejected_rewards_B
    wins_B = (margin_B > 0).double() + (0.5 * (margin_B == 0) if ties_count_half else 0.0)
    columns = (
        output.losses_B,
        policy.chosen_B,
        policy.rejected_B,
        mean.chosen_B,
        mean.rejected_B,
        output.chosen_rewards_B,
        output.rejected_rewards_B,
        wins_B,
        mean.chosen_B > mean.rejected_B,
        torch.ones_like(weight_B),
        policy.chosen_tokens_B + policy.rejected_tokens_B,
    )
    router = weight_B.new_zeros(()) if router_loss is None else router_loss.detach()
    return torch.stack(
        [*((column.detach().double() * weight_B).sum() for column in columns), router.double()]
    )


def averages(sums: Tensor) -> dict[str, float]:
    """Return means over pairs of what ``batch_sums`` summed, with margins, averages and the peers' aliases added."""
    metrics = dict(zip(SUMMED, sums.tolist(), strict=True))
    pairs, trained_tokens, router_loss = (
        metrics.pop(name) for name in ("pairs", "tokens", "router_aux_loss")
    )
    metrics = {name: value / pairs for name, value in metrics.items()}
    metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    metrics["rewards/average"] = (metrics["rewards/chosen"] + metrics["rewards/rejected"]) / 2
    metrics["trained_tokens_per_pair"] = trained_tokens / pairs
    metrics |= (
        {"router_aux_loss": router_loss} if router_loss else {}
    )  # it is positive where there is a router
    return metrics | {alias: metrics[name] for alias, name in SECOND_NAMES.items()}


def peak_memory_gib() -> float:
    """Return the peak memory of this process so far in GiB: of the accelerator if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
