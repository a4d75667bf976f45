"""What lm-evaluation-harness returns -> scores, with what each document gives to them. Imports nothing of the library."""

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpo_core.contract.benchmarks import MetricScore, Part, TaskScores, mean_of

SAME = 1e-9  # relative; sums in another order differ less
Sample = Mapping[str, Any]
"""One document as the library logs it, once for each of the task's filters."""


def scores_of(asked: str, results: Mapping[str, Any]) -> tuple[TaskScores, ...]:
    """Return the scores of the task or group ``asked``, then those of the tasks in a group."""
    samples = results["samples"]
    groups: Mapping[str, Sequence[str]] = results["group_subtasks"]
    names = sorted(results["results"], key=lambda name: name != asked)  # stable
    return tuple(
        TaskScores(
            task=name,
            version=str(results["versions"].get(name, "")),
            part_of=asked if name != asked and asked in results["results"] else None,
            num_fewshot=results["n-shot"].get(name),
            documents=tuple(
                document for task in leaves_of(name, groups) for document in documents_of(samples[task])
            ),
            metrics=tuple(_metrics(name, results, leaves_of(name, groups))),
        )
        for name in names
        if any("," in key for key in results["results"][name])
    )


def leaves_of(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the tasks that a group consists of; of a task, itself."""
    if name not in groups:
        return [name]
    return [leaf for child in groups[name] for leaf in leaves_of(child, groups)]


def documents_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Return what names each document, in their order in the set."""
    named = {sample["doc_id"]: sample["doc_hash"][:16] for sample in samples}
    return tuple(named[number] for number in sorted(named))


def _metrics(name: str, results: Mapping[str, Any], leaves: Sequence[str]) -> Iterator[MetricScore]:
    values = results["results"][name]
    directions = results["higher_is_better"].get(name) or {}
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, numbers.Real):
            continue
        stderr = values.get(f"{metric}_stderr,{chosen}")
        better = directions.get(metric)
        parts = [parts_of(results["samples"][leaf], metric, chosen) for leaf in leaves]
        yield MetricScore(
            name=key,
            value=float(value),
            stderr=float(stderr) if isinstance(stderr, numbers.Real) else None,
            better=0 if better is None else 1 if better else -1,
            parts=combined(parts, float(value)),
        )


def parts_of(samples: Sequence[Sample], metric: str, chosen: str) -> tuple[Part, ...]:
    """Return the sum and count that each document gives to a metric with the filter ``chosen``; empty where a document has
    a value that cannot be added."""
    parts: dict[int, Part] = {}
    for sample in samples:
        part = _part(sample.get(metric)) if sample["filter"] == chosen else (0.0, 0.0)
        if part is None:
            return ()
        if sample["filter"] == chosen or sample["doc_id"] not in parts:
            parts[sample["doc_id"]] = part
    return tuple(parts[number] for number in sorted(parts))


def _part(value: Any) -> Part | None:
    """A number counts once; a list of them each (IFEval's single instructions); nothing, where a task gives none, not."""
    if value is None:
        return (0.0, 0.0)
    if isinstance(value, list | tuple):
        inner = [_part(item) for item in value]
        numbers_in = [part for part in inner if part is not None and part[1] == 1]
        if len(numbers_in) < len(value):
            return None
        return (math.fsum(part[0] for part in numbers_in), float(len(value)))
    return (float(value), 1.0) if isinstance(value, numbers.Real) or _is_truth(value) else None


def _is_truth(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # NumPy's own is no number of Python's


def combined(parts_by_task: Sequence[Sequence[Part]], value: float) -> tuple[Part, ...]:
    """Return parts of all tasks whose quotient of sums is ``value``: as they are, or so weighted that each task counts the
    same. Empty where neither gives it: then it is no mean of documents."""
    if not all(parts_by_task):
        return ()
    pooled = [part for parts in parts_by_task for part in parts]
    counts = [math.fsum(count for _, count in parts) for parts in parts_by_task]
    if not all(counts):
        return ()
    weighted = [
        (total / count, number / count)
        for parts, count in zip(parts_by_task, counts, strict=True)
        for total, number in parts
    ]
    for candidate in (pooled, weighted):
        if math.isclose(mean_of(candidate), value, rel_tol=SAME, abs_tol=SAME):
            return tuple(candidate)
    return ()
