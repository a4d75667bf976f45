"""What an evaluation while training warns of, and which of that is to end the run."""

from collections.abc import Mapping
from dataclasses import dataclass

from dpo_core.contract.metric_names import ACCURACY
from dpo_core.contract.metrics_file import Metrics
from dpo_core.contract.warning_signs import CHOSEN, WORDS, Sign, WarningBounds, signs_of
from dpo_core.training.since_start import has_changes, outcomes_since


@dataclass(frozen=True)
class SignsInTraining:
    """``of_the_reference``: its figures of the mixture's own pairs, the same for every evaluation; none where the objective
    has no reference. ``rows``: the evaluations so far, as ``evaluations.jsonl`` has them."""

    bounds: WarningBounds
    of_the_reference: Mapping[str, float]
    has_answers: bool

    def of(self, rows: Metrics, number: int) -> tuple[Sign, ...]:
        """Return those of one evaluation: of pairs compared with the reference, or with the first one where there is no
        reference; of answers with those before the first step."""
        if not 0 <= number < len(rows) or rows[number]["step"] == 0:
            return ()
        start, first = rows[0], next((row for row in rows if CHOSEN in row), {})
        before = dict(self.of_the_reference or first)
        if ACCURACY in first and first is not rows[number]:
            before[ACCURACY] = first[ACCURACY]
        if start["step"] > 0 or WORDS not in start:
            return signs_of(self.bounds, before, rows[number])
        before[WORDS] = start[WORDS]
        looks = sum(map(has_changes, rows[: number + 1]))
        return signs_of(self.bounds, before, rows[number], outcomes_since(start, rows[number], looks))

    def new(self, rows: Metrics) -> tuple[Sign, ...]:
        """Return each that the newest evaluation shows and those before, back to the last one with answers, did not."""
        earlier: set[str] = set()
        for number in reversed(range(len(rows) - 1)):
            earlier |= {sign.name for sign in self.of(rows, number)}
            if WORDS in rows[number] or not self.has_answers:
                break
        return tuple(sign for sign in self.of(rows, len(rows) - 1) if sign.name not in earlier)

    def stopping(self, rows: Metrics) -> tuple[Sign, ...]:
        """Return those of the newest evaluation that are to end the run."""
        return tuple(sign for sign in self.of(rows, len(rows) - 1) if sign.name in self.bounds.stop)
