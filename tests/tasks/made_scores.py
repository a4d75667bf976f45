"""Benchmarks before and after as a run leaves them, of made documents."""

from dpo_core.contract.benchmarks import Benchmarks, MetricScore, TaskScores, compared, mean_of


def task_scores(
    task: str, right: int, of: int = 100, better: int = 1, part_of: str | None = None
) -> TaskScores:
    """So many documents right, the first ones; with a second metric that is no mean of them."""
    parts = tuple((float(number < right), 1.0) for number in range(of))
    metrics = (
        MetricScore(
            name="exact_match,strict-match", value=mean_of(parts), stderr=0.05, better=better, parts=parts
        ),
        MetricScore(name="perplexity,none", value=12.5, better=-better),
    )
    return TaskScores(task=task, part_of=part_of, documents=tuple(map(str, range(of))), metrics=metrics)


def benchmarks(**right: tuple[int, int]) -> Benchmarks:
    """Documents that are right before and after, by task."""
    before, after = (tuple(task_scores(task, both[side]) for task, both in right.items()) for side in (0, 1))
    return Benchmarks(lm_eval="0.4.13", limit=100, scores=compared(before, after))
