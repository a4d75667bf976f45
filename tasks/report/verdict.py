"""The answer that a report opens with: better, worse, or not to be told; by which figures, and at what cost."""

from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from dpo_core.contract.benchmarks import Benchmarks
from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.metric_names import MEANINGS
from dpo_core.contract.outcome import Outcome, accuracy_outcome
from dpo_core.contract.warning_signs import TITLES, WORDS, Sign, WarningBounds
from tasks.gate.signs import outcomes_of, signs_in
from tasks.report.blocks import Block, Notice, Text, Tone
from tasks.report.timeline import duration
from tasks.run.files import RunFiles

LEVEL = 0.05  # of chance, below which a change counts
ACCURACY = "rewards/accuracies"
Answer = Literal["Better", "Worse", "Cannot tell"]
TONES: dict[Answer, Tone] = {"Better": "good", "Worse": "bad", "Cannot tell": "warn"}


@dataclass(frozen=True, slots=True)
class VerdictOfRun:
    """``because``: by which figures. ``signs``: what warns of it all the same."""

    answer: Answer
    because: str
    signs: tuple[Sign, ...]

    @property
    def in_words(self) -> str:
        return f"{self.answer}: {self.because}"


def verdict_of(
    result: EvaluateResult,
    bounds: WarningBounds | None = None,
    benchmarks: Benchmarks | None = None,
    judgement: JudgeFigures | None = None,
) -> VerdictOfRun | None:
    """Return what evaluation, benchmarks and judge say of a checkpoint; None where nothing was measured.

    Worse: something counted in answers, or reward accuracy, fell by more than chance. Better: one of them rose so, none
    fell, and no sign warns. Everything else is not to be told from these figures, however good some of them look.
    """
    signs = signs_in(bounds or WarningBounds(), result, benchmarks, judgement)
    counted = outcomes_of(result, benchmarks, judgement)
    outcomes = (*_accuracy(result), *counted)
    if not outcomes:
        return None
    fell, rose = ([one for one in outcomes if one.fell(LEVEL)], [one for one in outcomes if one.rose(LEVEL)])
    if fell:
        return VerdictOfRun("Worse", _listed(fell), signs)
    if signs:
        warned = ", ".join(TITLES[sign.name] for sign in signs)
        return VerdictOfRun(
            "Cannot tell", f"{_listed(rose) or _unmoved(outcomes)}, with signs of {warned}", signs
        )
    if not rose:
        return VerdictOfRun("Cannot tell", _unmoved(outcomes), signs)
    alone = "" if counted else "; nothing was counted in answers, which may be worse all the same"
    return VerdictOfRun("Better", f"{_listed(rose)}{alone}", signs)


def verdict_of_run(run: RunFiles) -> VerdictOfRun | None:
    """Return the verdict under the run's own bounds; None before the evaluation."""
    if run.evaluation is None:
        return None
    return verdict_of(run.evaluation, _bounds(run), run.benchmarks, run.judgement)


def verdict_blocks(run: RunFiles) -> tuple[Block, ...]:
    """Return the answer, what it cost and what warns, for the top of a page; nothing before the evaluation."""
    verdict = verdict_of_run(run)
    if verdict is None or run.evaluation is None:
        return ()
    return (
        Notice(verdict.in_words, _cost(run, run.evaluation), TONES[verdict.answer]),
        *(Text(sign.words, "warn") for sign in verdict.signs),
    )


def _bounds(run: RunFiles) -> WarningBounds:
    """Those of the run's recipe, or the usual ones where another version wrote it."""
    section = run.config.get("evaluation")
    try:
        return WarningBounds.model_validate(section.get("warnings", {}) if isinstance(section, dict) else {})
    except ValidationError:
        return WarningBounds()


def _accuracy(result: EvaluateResult) -> tuple[Outcome, ...]:
    before, after = result.before.get(ACCURACY), result.after.get(ACCURACY)
    if before is None or after is None:
        return ()
    label = f"held-out {MEANINGS[ACCURACY].label}"
    return (accuracy_outcome(label, before, after, result.num_pairs),)


def _listed(outcomes: list[Outcome]) -> str:
    return ", ".join(outcome.in_words for outcome in outcomes)


def _unmoved(outcomes: tuple[Outcome, ...]) -> str:
    return f"no more than chance would do: {_listed(list(outcomes))}"


def _cost(run: RunFiles, result: EvaluateResult) -> str:
    """Training's hours on what it ran on, and how far the policy moved for it."""
    said = []
    seconds = sum(step.get("step_seconds", 0.0) for step in run.metrics)
    where = run.steps["train"].environment if "train" in run.steps else None
    if seconds:
        count = where.num_processes if where else 1
        said.append(
            f"{duration(seconds)} of training"
            + (f" on {count} process{'' if count == 1 else 'es'} ({where.device})" if where else "")
            + (f", {seconds * count / 3600:.1f} device hours" if count > 1 else "")
        )
    if result.before.get(WORDS) and WORDS in result.after:
        said.append(f"answers {result.after[WORDS] / result.before[WORDS]:.2f} times as long")
    if (divergence := result.after.get("kl/per_token")) is not None:
        said.append(f"KL {divergence:.3g} nats a token")
    return f"Cost: {', '.join(said)}." if said else ""
