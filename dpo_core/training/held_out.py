"""The held-out pairs: what a policy makes of them. When it is asked while it trains: ``while_training``. Shapes: N pairs of
the set."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from dpo_core.contract.jobs import EvaluateJob, TrainJob
from dpo_core.contract.loss_config import Loss
from dpo_core.contract.metric_names import (
    ACCURACY_ERROR,
    CHOSEN_LOST,
    EVALUATED,
    LENGTH_RULE,
    LOST_NATS,
    MOVED,
    OF_A_HELD_OUT_SOURCE,
    OVER_LENGTH_RULE,
    OVER_LENGTH_RULE_ERROR,
    PROMPTS,
    of_set,
    of_source,
)
from dpo_core.contract.metrics_file import EVALUATIONS_FILE
from dpo_core.contract.refs import ReferenceRef
from dpo_core.contract.warning_signs import CORRELATION, FEWEST_PAIRS
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.reference_cache import read_reference
from dpo_core.loss.losses import LossOutput, StepFacts
from dpo_core.loss.metrics import averages, batch_sums
from dpo_core.loss.objective import build_objective
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.training.step_guard import reference_logps
from dpo_core.training.step_loss import PairNumbers, check_numbers


def held_out_reference(
    reference: ReferenceRef | None, dataset: PairDataset, accelerator: Accelerator
) -> PairLogps | None:
    """Return the cached values of all held-out pairs, [N] each; None for an objective without a reference."""
    if reference is None:
        return None
    rows = read_reference(reference, "held_out", dataset.row_keys)
    return reference_logps(rows, np.arange(len(dataset)), accelerator.device)


def pair_metrics(
    loss: Loss,
    dataset: PairDataset,
    policy: PairLogps,
    reference: PairLogps | None,
    rows_N: np.ndarray | None = None,
) -> dict[str, float]:
    """Return loss, rewards, accuracies and mean log-probabilities over the held-out pairs, which the loss sees as one
    batch: over all of a set and by source, or over ``rows_N``, int64, which the values are of.

    A tie of rewards counts as half a win, so a policy that equals its reference scores 0.5.
    """
    device, numbers = policy.chosen_B.device, PairNumbers.of(dataset)
    check_numbers(loss, numbers)
    rows = np.arange(len(dataset)) if rows_N is None else rows_N
    shares = numbers.shares(rows)
    share_B = None if shares is None else torch.from_numpy(shares).to(device)
    objective = build_objective(loss, StepFacts(chosen_tokens=_chosen_tokens(policy, share_B)))
    output = objective(policy, reference, numbers.margins_of(rows, device))
    if share_B is not None:
        output = replace(output, losses_B=share_B * output.losses_B)
    one_B = torch.ones_like(policy.chosen_B)
    metrics = averages(batch_sums(policy, output, one_B, ties_count_half=True))
    metrics |= length_correlation(policy, output) | _against_chance(
        policy, reference, output, dataset.prompt_numbers[rows]
    )
    if len(dataset.source_names) > 1 and rows_N is None:
        for name, _, found in _by_source(loss, dataset, policy, reference):
            metrics |= {of_source(name, metric): found[metric] for metric in OF_A_HELD_OUT_SOURCE}
    return metrics


def _by_source(
    loss: Loss, dataset: PairDataset, policy: PairLogps, reference: PairLogps | None
) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Of each source with a pair, or of each named set: its name, its pairs, and what is measured of these alone."""
    for number, name in enumerate(dataset.source_names):
        rows = np.flatnonzero(dataset.sources == number)
        if len(rows):
            at = torch.from_numpy(rows).to(policy.chosen_B.device)
            yield name, len(rows), pair_metrics(loss, dataset, policy[at], reference and reference[at], rows)


def length_correlation(policy: PairLogps, output: LossOutput) -> dict[str, float]:
    """Return Pearson's correlation of a pair's reward margin with how many tokens longer its chosen answer is. Nothing of
    too few pairs, or where either is the same in all of them."""
    margin_B = (output.chosen_rewards_B - output.rejected_rewards_B).double()
    longer_B = (policy.chosen_tokens_B - policy.rejected_tokens_B).double()
    if len(margin_B) < FEWEST_PAIRS or margin_B.std() == 0 or longer_B.std() == 0:
        return {}
    return {CORRELATION: float(torch.corrcoef(torch.stack([margin_B, longer_B]))[0, 1])}


def _against_chance(
    policy: PairLogps, reference: PairLogps | None, output: LossOutput, prompts_B: np.ndarray
) -> dict[str, float]:
    """Return how sure the accuracy is, how far the policy has moved for it, how many chosen answers it has lost, and how far
    accuracy is above that of a rule which looks at nothing but length: the longer answer is the better one, or the shorter,
    whichever the pairs have oftener (Singhal et al., arXiv 2310.03716, find that this explains most of what reward models
    learn). ``prompts_B``: the number of each pair's prompt.
    """
    margin_B = (output.chosen_rewards_B - output.rejected_rewards_B).double().cpu().numpy()
    longer_B = (policy.chosen_tokens_B - policy.rejected_tokens_B).cpu().numpy()
    wins_B, rule_B = ((one > 0) + 0.5 * (one == 0) for one in (margin_B, longer_B))
    found = {PROMPTS: float(len(np.unique(prompts_B)))}
    if reference is not None:
        moved_B = policy.chosen_B - policy.rejected_B - (reference.chosen_B - reference.rejected_B)
        found[MOVED] = float(moved_B.double().abs().mean())
        fell_B = (reference.chosen_B - policy.chosen_B) / policy.chosen_tokens_B
        found[CHOSEN_LOST] = float((fell_B >= LOST_NATS).double().mean())
    if (error := clustered_stderr(wins_B, prompts_B)) is not None:
        found[ACCURACY_ERROR] = error
    if len(wins_B) < FEWEST_PAIRS:
        return found
    rule_B = rule_B if rule_B.mean() >= 0.5 else 1 - rule_B
    above_B = wins_B - rule_B
    found |= {LENGTH_RULE: float(rule_B.mean()), OVER_LENGTH_RULE: float(above_B.mean())}
    if (error := clustered_stderr(above_B, prompts_B)) is not None:
        found[OVER_LENGTH_RULE_ERROR] = error
    return found


def clustered_stderr(values_N: np.ndarray, clusters_N: np.ndarray) -> float | None:
    """Return the standard error of the mean of values that are drawn cluster by cluster (Miller, Adding Error Bars to Evals,
    arXiv 2411.00640, section 2.2); where each is a cluster of its own the usual one. None of fewer than two."""
    _, cluster_N = np.unique(clusters_N, return_inverse=True)
    if len(values_N) == 0 or (count := int(cluster_N.max()) + 1) < 2:
        return None
    sums = np.bincount(cluster_N, weights=values_N - values_N.mean())
    return math.sqrt(count / (count - 1) * float(np.square(sums).sum())) / len(values_N)


def _chosen_tokens(policy: PairLogps, share_B: torch.Tensor | None) -> float:
    """Tokens of a chosen answer, mean over the pairs, each counting its share."""
    counts_B = policy.chosen_tokens_B.double()
    return float((counts_B if share_B is None else share_B * counts_B).mean())


@dataclass(frozen=True, slots=True)
class MeasuredPairs:
    """Pairs that are measured and not trained on: the mixture's own held-out ones, or those of the named sets."""

    dataset: PairDataset
    reference: PairLogps | None
    are_sets: bool = False

    def metrics(self, loss: Loss, policy: PairLogps, reference: PairLogps | None) -> dict[str, float]:
        """Return what ``pair_metrics`` finds, of sets each by itself under its name."""
        if not self.are_sets:
            return pair_metrics(loss, self.dataset, policy, reference)
        metrics: dict[str, float] = {}
        for name, pairs, found in _by_source(loss, self.dataset, policy, reference):
            metrics |= {of_set(name, metric): value for metric, value in found.items()}
            metrics[of_set(name, "pairs")] = float(pairs)
        return metrics

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What is measured of them while training: of a source, where it has a pair."""
        dataset = self.dataset
        counts = np.bincount(dataset.sources, minlength=len(dataset.source_names))
        found = [name for name, count in zip(dataset.source_names, counts, strict=True) if count]
        if self.are_sets:
            return tuple(of_set(name, metric) for name in found for metric in EVALUATED)
        several = len(dataset.source_names) > 1
        by_source = (
            (of_source(name, metric) for name in found for metric in OF_A_HELD_OUT_SOURCE) if several else ()
        )
        return (*EVALUATED, *by_source)


def measured_pairs(job: TrainJob | EvaluateJob, accelerator: Accelerator) -> tuple[MeasuredPairs, ...]:
    """Return the held-out pairs of a job's mixture and those of its sets, where there are any, with the reference's cached
    values. Raises ``StoreError``."""
    found = [(job.data, job.reference, False)]
    found += [(job.sets.data, job.sets.reference, True)] if job.sets else []
    parts = []
    for data, reference, are_sets in found:
        dataset = PairDataset.open(data.path, "held_out")
        if len(dataset):
            values = held_out_reference(reference, dataset, accelerator)
            parts.append(MeasuredPairs(dataset, values, are_sets))
    return tuple(parts)


def evaluations_of(job: TrainJob) -> Path:
    """Return where a run's evaluations are written down, one JSON object a line."""
    return job.out_dir / EVALUATIONS_FILE
