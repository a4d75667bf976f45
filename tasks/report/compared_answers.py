"""What each of several runs came to, better, worse or cannot tell, before any figure is called the best of them: the highest
accuracy may be that of a policy that no longer answers."""

from collections.abc import Sequence

from dpo_core.contract.warning_signs import TITLES
from tasks.report.blocks import Text
from tasks.report.verdict import TONES, VerdictOfRun, verdict_of_run
from tasks.run.files import RunFiles


def answers_of(runs: Sequence[RunFiles], labels: Sequence[str]) -> tuple[Text, ...]:
    """Return a line for each run that was evaluated, as its own report opens, with what warns."""
    found = ((label, verdict_of_run(run)) for label, run in zip(labels, runs, strict=True))
    return tuple(
        Text(f"{label}: {_with_signs(verdict)}.", TONES[verdict.answer])
        for label, verdict in found
        if verdict is not None
    )


def _with_signs(verdict: VerdictOfRun) -> str:
    """An answer that cannot be told has its signs in its own words."""
    if verdict.answer == "Cannot tell" or not verdict.signs:
        return verdict.in_words
    return f"{verdict.in_words}, with signs of {', '.join(TITLES[sign.name] for sign in verdict.signs)}"
