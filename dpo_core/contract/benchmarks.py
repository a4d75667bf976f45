"""Scores of tasks of lm-evaluation-harness: of one checkpoint, and of two beside each other.

The same documents are put to both checkpoints, so the difference has an error of its own, that of the differences of
documents (Miller, Adding Error Bars to Evals, arXiv 2411.00640), which is often far below the two errors of the scores.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from dpo_core.contract.outcome import Outcome, chance_of, sign_test
from dpo_core.contract.section import Section
from dpo_core.contract.store import fingerprint, hash_files

LM_EVAL_VERSION = "0.4.13"
"""Part of what a score is: versions differ in prompts, in filters and in what they count."""
BENCHMARKS_FILE = "benchmarks.json"  # a run's scores before and after, in its folder
PREFIX = "benchmarks/"  # what names of metrics of tasks begin with
BYTECODE_FOLDER = "__pycache__"
Part = tuple[float, float]
"""A document's sum and count of a metric: the score is the quotient of both sums."""


class MetricScore(Section):
    """One metric of a task. ``parts``: what each document gives to it; none where the score is not a mean of them."""

    name: str  # metric and filter as lm-evaluation-harness writes them: "exact_match,strict-match"
    value: float
    stderr: float | None = None
    better: int = 0  # sign of a wanted change
    parts: tuple[Part, ...] = ()


class TaskScores(Section):
    """What one checkpoint scores on a task, or on a group of tasks. The first metric is the task's main one."""

    task: str
    version: str = ""
    part_of: str | None = None  # the group that was asked for
    num_fewshot: int | None = None
    documents: tuple[str, ...] = ()  # what names them, in the order of ``parts``
    metrics: tuple[MetricScore, ...]


class BenchmarkScore(Section):
    """One metric of a task before and after training. ``paired_stderr`` is that of the difference, ``chance`` how often it
    would be as large without one; None where that is not known from the documents."""

    task: str
    metric: str
    is_main: bool
    part_of: str | None = None
    num_documents: int
    better: int
    before: float
    before_stderr: float | None
    after: float
    after_stderr: float | None
    paired_stderr: float | None
    chance: float | None = None

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def label(self) -> str:
        """Return "gsm8k exact_match (strict-match)"."""
        metric, _, chosen = self.metric.partition(",")
        return f"{self.task} {metric}" + (f" ({chosen})" if chosen not in ("", "none") else "")

    @property
    def outcome(self) -> Outcome | None:
        """Whether chance alone would move it as far; None where that is not known, or where less is better."""
        if self.paired_stderr is None or self.better <= 0:
            return None
        chance = self.chance
        if chance is None:  # of a version that did not write it
            chance = chance_of(self.change, self.paired_stderr, self.num_documents)
        return Outcome(self.label, self.before, self.after, chance)


class Benchmarks(Section):
    """``benchmarks.json``: how tasks were put, and what came out."""

    lm_eval: str
    limit: int | None = None
    num_fewshot: int | None = None
    chat_template: bool = True
    max_length_tokens: int | None = None
    scores: tuple[BenchmarkScore, ...]

    @property
    def main(self) -> tuple[BenchmarkScore, ...]:
        """The main metric of each task that was asked for."""
        return tuple(score for score in self.scores if score.is_main and score.part_of is None)

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What can be told better or worse by, of each task that was asked for."""
        return tuple(outcome for score in self.main if (outcome := score.outcome) is not None)

    def find(self, task: str, metric: str | None = None) -> BenchmarkScore | None:
        """Return a task's metric, by default its main one; None if it was not measured."""
        return next(
            (
                score
                for score in self.scores
                if score.task == task and (score.is_main if metric is None else score.metric == metric)
            ),
            None,
        )

    def metrics(self, when: Literal["before", "after"]) -> dict[str, float]:
        """Return main metrics by the names that sweeps and hand-offs have for them; those where more is better."""
        return {PREFIX + score.task: getattr(score, when) for score in self.main if score.better > 0}

    @property
    def errors(self) -> dict[str, float]:
        """Return the standard errors of ``metrics("after")``, of those that have one."""
        found = {PREFIX + score.task: score.after_stderr for score in self.main if score.better > 0}
        return {name: error for name, error in found.items() if error is not None}


def mean_of(parts: Iterable[Part]) -> float:
    """Return the score that documents give; not a number of none."""
    sums, counts = zip(*parts, strict=True) if (parts := tuple(parts)) else ((), ())
    return math.fsum(sums) / math.fsum(counts) if math.fsum(counts) else math.nan


def paired_stderr(before: Sequence[Part], after: Sequence[Part]) -> float | None:
    """Return the standard error of the difference of two scores over the same documents; None of fewer than two, or
    where they do not count the same.

    With s and c a document's sum and count, d the difference of its sums and D = sum(d) / sum(c) that of the scores, it is
    sqrt(n / (n - 1) sum((d - D c)^2)) / sum(c): of documents that count 1 each, the usual error of the mean of d.
    """
    size = len(before)
    if size < 2 or [count for _, count in before] != [count for _, count in after]:
        return None
    counts = [count for _, count in before]
    total = math.fsum(counts)
    if not total > 0:
        return None
    differences = _differences(before, after)
    change = math.fsum(differences) / total
    squares = math.fsum(
        (difference - change * count) ** 2 for difference, count in zip(differences, counts, strict=True)
    )
    return math.sqrt(size / (size - 1) * squares) / total


def paired_chance(before: Sequence[Part], after: Sequence[Part]) -> float | None:
    """Return how often the difference would be as large if training had changed nothing; None where ``paired_stderr`` is.

    Of documents that are right or wrong the exact sign test on those that changed (McNemar 1947): of four documents three
    that turn right are three standard errors, and chance in a quarter of all cases. Of others Student's t.
    """
    if (stderr := paired_stderr(before, after)) is None:
        return None
    moved = [difference for difference in _differences(before, after) if difference]
    if len({count for _, count in before}) == 1 and len({abs(difference) for difference in moved}) == 1:
        gained = sum(difference > 0 for difference in moved)
        return sign_test(gained, len(moved) - gained)
    return chance_of(mean_of(after) - mean_of(before), stderr, len(before), len(moved))


def _differences(before: Sequence[Part], after: Sequence[Part]) -> list[float]:
    """Of each document's sum."""
    return [new - old for (old, _), (new, _) in zip(before, after, strict=True)]


def compared(before: Sequence[TaskScores], after: Sequence[TaskScores]) -> tuple[BenchmarkScore, ...]:
    """Return each metric that both have, before and after, task by task."""
    later = {scores.task: scores for scores in after}
    return tuple(
        score for old in before if old.task in later for score in _compared_task(old, later[old.task])
    )


def _compared_task(before: TaskScores, after: TaskScores) -> Iterable[BenchmarkScore]:
    later = {metric.name: metric for metric in after.metrics}
    for place, old in enumerate(before.metrics):
        if (new := later.get(old.name)) is None:
            continue
        same = before.documents == after.documents
        yield BenchmarkScore(
            task=before.task,
            metric=old.name,
            is_main=place == 0,
            part_of=before.part_of,
            num_documents=len(before.documents),
            better=old.better,
            before=old.value,
            before_stderr=old.stderr,
            after=new.value,
            after_stderr=new.stderr,
            paired_stderr=paired_stderr(old.parts, new.parts) if same else None,
            chance=paired_chance(old.parts, new.parts) if same else None,
        )


def content_of_folder(folder: Path) -> str:
    """Return what names the content of a folder of tasks: its files and their names, but for what Python leaves there."""
    hashes = hash_files(folder).items()
    return fingerprint(
        {name: sha256 for name, sha256 in hashes if BYTECODE_FOLDER not in PurePosixPath(name).parts}
    )
