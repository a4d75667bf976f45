"""What is measured of a batch, summed over microbatches and ranks and then averaged over pairs. Shapes: B pairs.

Every quantity is reported once, under the name that open-instruct and TRL share, or under both names where theirs
differ (``SECOND_NAMES``). ``logps/*`` are sums over a sequence's trained tokens; ``logps_per_token/*`` are their means.
Rewards and margins are in the loss's own units.
"""

import resource
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from dpo_core.contract.metric_names import OF_A_SOURCE, SECOND_NAMES, of_source
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
    wins_B = _wins(margin_B, ties_count_half)
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


def _wins(margin_B: Tensor, ties_count_half: bool = False) -> Tensor:
    return (margin_B > 0).double() + (0.5 * (margin_B == 0) if ties_count_half else 0.0)


OF_A_PAIR = 3  # sums of a source: pairs, wins, margins


def source_sums(output: LossOutput, weight_B: Tensor, source_B: Tensor, num_sources: int) -> Tensor:
    """Return sums over the pairs of each source, float64 [num_sources, OF_A_PAIR], detached: how many, in how many of them
    chosen's reward is higher (see ``batch_sums``), and their margins. Fillers have weight 0."""
    margin_B = (output.chosen_rewards_B - output.rejected_rewards_B).detach().double()
    columns_B3 = torch.stack([torch.ones_like(margin_B), _wins(margin_B), margin_B], dim=1)
    sums = torch.zeros(num_sources, OF_A_PAIR, dtype=torch.float64, device=margin_B.device)
    return sums.index_add_(0, source_B, columns_B3 * weight_B.double()[:, None])


def source_averages(sums: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Return accuracy and margin by source of what ``source_sums`` summed; nothing of a source without a pair."""
    return {
        of_source(source, metric): value / pairs
        for source, (pairs, *values) in zip(names, sums.tolist(), strict=True)
        if pairs
        for metric, value in zip(OF_A_SOURCE, values, strict=True)
    }


def forget_peak_memory() -> None:
    """Have ``peak_memory_gib`` and ``reserved_memory_gib`` count from now on; what was resident stays counted."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gib() -> float:
    """Return the peak memory of this process so far in GiB: of the accelerator if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reserved_memory_gib() -> float | None:
    """Return the most that the accelerator's allocator has reserved so far in GiB, what it could not use included; None
    without one."""
    return torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else None
