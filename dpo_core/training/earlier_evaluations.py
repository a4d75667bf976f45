"""Which figures of earlier starts may stand beside those of this one.

Settings of the evaluation change no weight, so a run goes on with others: more prompts, longer answers, another set under
a name of before. Figures of those are of something else, and are left out. The mixture's own pairs are always the same: with
others it would be another run.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.metric_names import set_and_metric
from dpo_core.contract.metrics_file import Metrics
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.section import Section
from dpo_core.contract.store import fingerprint
from dpo_core.training.answers import AskedPrompts
from dpo_core.training.held_out import MeasuredPairs

MEASURED_FILE = "measured.json"
LARGEST_BYTES = 1 << 20
OF_ANSWERS = ("answers/", "checker/", "kl/")


class Measured(Section):
    """What figures are of, by set ("" stands for the mixture), each named by its content."""

    pairs: dict[str, str] = Field({}, max_length=10_000)
    answers: dict[str, str] = Field({}, max_length=10_000)

    @classmethod
    def of(cls, job: TrainJob, parts: Sequence[MeasuredPairs], prompts: AskedPrompts | None) -> "Measured":
        """Return what this start measures."""
        pairs = {}
        for part in parts:
            of, keys = part.dataset.sources, part.dataset.row_keys
            for number, name in enumerate(part.dataset.source_names if part.are_sets else ()):
                rows = np.flatnonzero(of == number)
                numbers = (
                    values[rows].astype("<f4") for values in (part.dataset.weights, part.dataset.margins)
                )
                content = keys[rows].tobytes() + b"".join(one.tobytes() for one in numbers)
                pairs[name] = hashlib.sha256(content).hexdigest()
        asked = prompts.by_set if prompts else {}
        answers = {
            name: fingerprint(
                [
                    job.evaluation.max_new_tokens,
                    [[one.prompt_ids.tolist(), list(one.constraints)] for one in some],
                ]
            )
            for name, some in asked.items()
        }
        return cls(pairs=pairs, answers=answers)

    def changed_since(self, before: "Measured") -> tuple[set[str], set[str]]:
        """Return the sets whose pairs are others than before, and those whose answers are to other prompts or of another
        length."""
        pairs = {name for name, content in self.pairs.items() if before.pairs.get(name, content) != content}
        answers = {
            name for name, content in self.answers.items() if before.answers.get(name, content) != content
        }
        return pairs, answers

    def with_earlier(self, before: "Measured") -> "Measured":
        """Return the same with what only an earlier start has measured, which a later one may measure again."""
        return Measured(pairs=before.pairs | self.pairs, answers=before.answers | self.answers)


def measured_file(job: TrainJob) -> Path:
    """Return where a run writes down what its figures are of."""
    return job.out_dir / MEASURED_FILE


def read_measured(job: TrainJob) -> Measured | None:
    """Return what earlier starts have measured; None where nothing says so, as in a run of an older version."""
    try:
        return Measured.model_validate_json(read_regular(measured_file(job), LARGEST_BYTES))
    except (OSError, ValueError):  # StoreError is a ValueError
        return None


def comparable(rows: Metrics, pairs: set[str], answers: set[str]) -> Metrics:
    """Return evaluations without figures of these sets' pairs and answers; none is left of the start's without answers."""

    def stays(name: str) -> bool:
        of, metric = set_and_metric(name)
        return of not in answers if metric.startswith(OF_ANSWERS) else not of or of not in pairs

    kept = [{name: value for name, value in row.items() if stays(name)} for row in rows]
    return [row for row in kept if row["step"] > 0 or any(map(_is_of_answers, row))]


def whole_at(step: int, rows: Metrics, earlier: Metrics, prompts: AskedPrompts | None) -> Metrics:
    """Return evaluations without that of ``step`` if figures of it were left out, or answers lack before the first step: the
    run's next look makes it again."""
    return [
        row
        for row in rows
        if row["step"] != step or (row in earlier and (step > 0 or is_baseline(row, prompts)))
    ]


def is_baseline(row: dict[str, float], prompts: AskedPrompts | None) -> bool:
    """Return whether a row holds the start's answers to all sets' prompts."""
    found = {set_and_metric(name)[0] for name in row if _is_of_answers(name)}
    asked = [name for name, some in prompts.by_set.items() if some] if prompts else []
    return row["step"] == 0 and found.issuperset(asked)


def _is_of_answers(name: str) -> bool:
    return set_and_metric(name)[1].startswith(OF_ANSWERS)
