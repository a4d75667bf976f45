"""The answer that a report opens with: better, worse, or not to be told; by which figures, and at what cost."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import ValidationError

from dpo_core.contract.benchmarks import Benchmarks
from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.keep_best import BestStep
from dpo_core.contract.metric_names import ANSWERED, EVALUATED, MEANINGS, label_of, split_by_source
from dpo_core.contract.outcome import Outcome, accuracy_outcome
from dpo_core.contract.warning_signs import TITLES, WORDS, Sign, WarningBounds
from tasks.gate.signs import outcomes_of, signs_in
from tasks.report.blocks import Block, Notice, Text, Tone
from tasks.report.timeline import duration
from tasks.run.files import RunFiles

LEVEL = 0.05  # of chance, below which a change counts
ACCURACY = "rewards/accuracies"
OF_PAIRS, KEPT = f"held-out {MEANINGS[ACCURACY].label}", MEANINGS["checker/pass_rate"].label
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
    best: BestStep | None = None,
) -> VerdictOfRun | None:
    """Return what evaluation, benchmarks and judge say of a checkpoint; None where nothing was measured.

    Worse: something counted in answers, or reward accuracy, fell by more than chance, or a figure is no number any more.
    Better: one of them rose so, none fell, and no sign warns. Everything else is not to be told from these figures, however
    good some of them look. ``best``: how the checkpoint was chosen, which is a look at the figures for each evaluation.
    """
    signs = signs_in(bounds or WarningBounds(), result, benchmarks, judgement)
    if lost := _no_numbers(result):
        return VerdictOfRun("Worse", f"no number any more: {', '.join(map(label_of, lost))}", signs)
    counted = tuple(
        _at_equal_length(_of_the_chosen(one, best), judgement)
        for one in outcomes_of(result, benchmarks, judgement)
    )
    outcomes = (*(_of_the_chosen(one, best) for one in _accuracy(result)), *counted)
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
    best = run.trained.best if run.trained else None
    return verdict_of(run.evaluation, _bounds(run), run.benchmarks, run.judgement, best)


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
    return (accuracy_outcome(OF_PAIRS, before, after, result.num_pairs),)


def _no_numbers(result: EvaluateResult) -> list[str]:
    """Figures of the trained checkpoint that are no numbers, but for those that the SFT checkpoint has as none, either."""
    return [
        name
        for name, value in result.after.items()
        if not math.isfinite(value) and math.isfinite(result.before.get(name, 0.0))
    ]


def _at_equal_length(outcome: Outcome, judgement: JudgeFigures | None) -> Outcome:
    """What a judge prefers, unless answers of equal length would not win: then they won by length, which is nothing better
    (Dubois et al., arXiv 2404.04475)."""
    controlled = judgement.length_controlled if judgement else None
    if controlled is None or controlled > 0.5 or outcome.change <= 0 or judgement is None:
        return outcome
    if outcome.label != judgement.outcome.label:
        return outcome
    return replace(outcome, label=f"{outcome.label}, but {controlled:.2f} of equal length,", chance=1.0)


def _of_the_chosen(outcome: Outcome, best: BestStep | None) -> Outcome:
    """The outcome of a checkpoint that was chosen by this very figure, or one of the same pairs or answers: the best of many
    looks is high by chance, so each look counts (Bonferroni), also where evaluations are much alike. What fell, fell."""
    if best is None or best.num_evaluations < 2 or outcome.change <= 0:
        return outcome
    of_pairs = best.metric in EVALUATED or split_by_source(best.metric) is not None
    chosen_by = OF_PAIRS if of_pairs else KEPT if best.metric in ANSWERED else ""
    if outcome.label != chosen_by:
        return outcome
    label = f"{outcome.label}, best of {best.num_evaluations} evaluations,"
    return replace(outcome, label=label, chance=min(1.0, best.num_evaluations * outcome.chance))


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
