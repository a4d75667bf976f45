"""What an experiment tracker calls a metric. A source's name is part of some, and may hold anything: "a<b.jsonl#2".

MLflow and DVCLive make files of names and refuse those that no file of theirs can have; one refused name would cost the run
its tracker. So for them, by one rule: a character that MLflow refuses is "_", parts of a path that lead elsewhere ("", "."
and "..") are left out, of a name beyond 250 bytes the middle is; and a name that another metric has got has "_2" behind it.
"""

import re
from itertools import count

NAMED_AS_FILES = ("mlflow", "dvclive")
REFUSED = re.compile(r"[^/\w.\- :]")
LEADS_ELSEWHERE = ("", ".", "..")
LONGEST_BYTES = 250  # a file's name has 255 at most, and MLflow's 250 characters
ELLIPSIS = "..."


class TrackerNames:
    """One tracker's names for metrics: the same metric has the same at every step."""

    def __init__(self, tracker: str) -> None:
        """Begin without a name given."""
        self.tracker = tracker
        self._given: dict[str, str] = {}  # a metric's own name -> the tracker's

    def of(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return metrics under names that the tracker takes."""
        if self.tracker == "clearml":  # takes "train_" off, and would have "loss" twice
            return {name: value for name, value in metrics.items() if name != "train_loss"}
        if self.tracker not in NAMED_AS_FILES:
            return metrics
        return {self._name(name): value for name, value in metrics.items()}

    def _name(self, name: str) -> str:
        if name not in self._given:
            taken, fit = set(self._given.values()), _as_file(name)
            tries = (fit if number == 1 else f"{fit}_{number}" for number in count(1))
            self._given[name] = next(each for each in tries if each not in taken)
        return self._given[name]


def _as_file(name: str) -> str:
    parts = REFUSED.sub("_", name).split("/")
    fit = "/".join(part for part in parts if part not in LEADS_ELSEWHERE)
    encoded, room = fit.encode(), LONGEST_BYTES - len(ELLIPSIS) - len("_999")
    if len(encoded) <= LONGEST_BYTES - len("_999"):
        return fit
    start, end = encoded[: room // 2], encoded[-(room // 2) :]
    return start.decode(errors="ignore") + ELLIPSIS + end.decode(errors="ignore")
