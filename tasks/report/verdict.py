"""The answer that a report opens with: better, worse, or not to be told; by which figures, and at what cost."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from dpo_core.contract.benchmarks import Benchmarks
from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.metric_names import (
    ACCURACY,
    ACCURACY_ERROR,
    CHOSEN_LOST,
    LOST_NATS,
    PROMPTS,
    UNENDED,
    by_set,
    label_of,
    of_set,
    set_and_metric,
)
from dpo_core.contract.outcome import (
    Draws,
    Outcome,
    accuracy_outcome,
    chance_in_words,
    sign_test,
    told_together,
)
from dpo_core.contract.warning_signs import CHOSEN, LEVEL, TITLES, WORDS, Sign, SignName, WarningBounds
from tasks.gate.signs import outcomes_of, signs_in
from tasks.report.blocks import Block, Notice, Text, Tone
from tasks.report.equal_length import OF_LENGTH, kept_at_like_length, preferred_at_equal_length
from tasks.report.looks import ChosenBy, accuracy_label, counted, looks_of, times_looked
from tasks.report.timeline import duration
from tasks.run.device_hours import device_hours
from tasks.run.files import RunFiles
from tasks.run.followed import FollowedFiles
from tasks.run.live import warned_in_training

GUESSED = -math.log(1 << 18)  # nats a token of who guesses among as many as the largest vocabularies have
MOST_LISTED = 6  # figures in the sentence; a table has them all
# What takes away that pairs are told apart, and no more; answers of another length are left out where answers are counted.
OF_PAIRS_ALONE: tuple[SignName, ...] = ("length_rule", "no_signal", *OF_LENGTH)
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
    looks: Sequence[ChosenBy] = (),
) -> VerdictOfRun | None:
    """Return what evaluation, benchmarks and judge say of a checkpoint; None where nothing was measured.

    Worse: something counted in answers, or reward accuracy, of the mixture or of a named set, fell by more than chance, a
    figure is no number any more, or most chosen answers are lost. Better: one of them rose so, none fell, and
    no sign warns; a sign that accuracy tells nothing, or answers have another length, takes away what rests on that alone.
    Everything else is not to be told from these figures, however good some of them look.
    ``looks``: how the checkpoint was chosen, see ``looks_of``.
    """
    signs = signs_in(bounds or WarningBounds(), result, benchmarks, judgement)
    if lost := _no_numbers(result):
        return VerdictOfRun("Worse", f"no number any more: {', '.join(map(label_of, lost))}", signs)
    of_answers = outcomes_of(result, benchmarks, judgement)
    outcomes = told_together(
        [
            preferred_at_equal_length(
                kept_at_like_length(counted(one, looks), result, signs, times_looked(one, looks)),
                judgement,
                times_looked(one, looks),
            )
            for one in (*_accuracies(result), *of_answers)
        ]
    )
    unlearnt = _unlearnt(result)
    if not outcomes and not unlearnt:
        return None
    fell, rose = ([one for one in outcomes if one.fell(LEVEL)], [one for one in outcomes if one.rose(LEVEL)])
    if fell or unlearnt:
        return VerdictOfRun("Worse", ", ".join(filter(None, (_listed(fell), unlearnt))), signs)
    doubts = [sign for sign in signs if sign.name in OF_PAIRS_ALONE]
    proven = [one for one in rose if not (doubts and one.label.startswith(accuracy_label()))]
    if len(doubts) < len(signs) or (doubts and not proven):
        warned = ", ".join(TITLES[sign.name] for sign in signs)
        return VerdictOfRun(
            "Cannot tell", f"{_listed(rose) or _unmoved(outcomes)}, with signs of {warned}", signs
        )
    if not proven:
        return VerdictOfRun("Cannot tell", _unmoved(outcomes), signs)
    alone = "" if of_answers else "; nothing was counted in answers, which may be worse all the same"
    return VerdictOfRun("Better", f"{_listed(proven)}{alone}", signs)


def verdict_of_run(run: RunFiles) -> VerdictOfRun | None:
    """Return the verdict under the run's own bounds; None before the evaluation."""
    if run.evaluation is None:
        return None
    best = run.trained.best if run.trained else None
    looks = looks_of(best, run.sweep)
    return verdict_of(run.evaluation, _bounds(run), run.benchmarks, run.judgement, looks)


def verdict_blocks(run: RunFiles, followed: FollowedFiles | None = None) -> tuple[Block, ...]:
    """Return the answer, what it cost and what warns, for the top of a page; before the evaluation, what the training has
    warned of."""
    if run.evaluation is None:
        return tuple(Text(words, "warn") for words in warned_in_training(run, followed))
    if (verdict := verdict_of_run(run)) is None:
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


def _accuracies(result: EvaluateResult) -> Iterator[Outcome]:
    """Of the mixture's own pairs, and of each named set's."""
    of_before, of_after = by_set(result.before), by_set(result.after)
    own = ("", result.before, result.after, float(result.num_pairs))
    sets = (
        (name, of_before.get(name, {}), after, after.get("pairs", 0.0)) for name, after in of_after.items()
    )
    for name, before, after, num_pairs in (own, *sets):
        if ACCURACY in before and ACCURACY in after:
            yield accuracy_outcome(
                accuracy_label(name),
                before[ACCURACY],
                after[ACCURACY],
                round(num_pairs),
                _draws(before, after),
            )


def _draws(before: Mapping[str, float], after: Mapping[str, float]) -> Draws | None:
    """None in evaluations that do not say so."""
    if not {ACCURACY_ERROR, PROMPTS} <= before.keys() & after.keys():
        return None
    return Draws(before[ACCURACY_ERROR], after[ACCURACY_ERROR], round(after[PROMPTS]))


def _no_numbers(result: EvaluateResult) -> list[str]:
    """Figures of the trained checkpoint that are no numbers, but for those that the SFT checkpoint has as none, either."""
    return [
        name
        for name, value in result.after.items()
        if not math.isfinite(value) and math.isfinite(result.before.get(name, 0.0))
    ]


def _unlearnt(result: EvaluateResult) -> str:
    """Say that a policy has lost the very answers that it should prefer, which no reward accuracy makes good; empty where it
    has not."""
    return ", ".join(filter(None, (_most_lost(result), _below_guessing(result))))


def _most_lost(result: EvaluateResult) -> str:
    """Most chosen answers are 20 times less likely at each token: more than half of the prompts, by more than chance, with
    each set counted. Of the SFT checkpoint, where another is the reference, they are not."""
    found = {name: share for name, share in result.after.items() if set_and_metric(name)[1] == CHOSEN_LOST}
    clauses = []
    for name, share in found.items():
        was, of = result.before.get(name, 0.0), set_and_metric(name)[0]
        draws = round(result.after.get(of_set(of, PROMPTS), 0.0))
        lost = round(share * draws)
        chance = min(1.0, len(found) * sign_test(lost, draws - lost))
        if lost > draws / 2 and chance < LEVEL and was <= 0.5:
            by = f"by {LOST_NATS:g} nats a token or more; above one half: {chance_in_words(chance)}"
            clauses.append(f"{label_of(name)} {was:.2f} to {share:.2f} ({by})")
    return ", ".join(clauses)


def _below_guessing(result: EvaluateResult) -> str:
    """Chosen answers are less likely than tokens that are guessed, where the SFT checkpoint's were not; also of objectives
    without a reference."""
    fell = [
        f"{label_of(name)} {result.before[name]:.1f} to {value:.1f} nats"
        for name, value in result.after.items()
        if set_and_metric(name)[1] == CHOSEN and value < GUESSED <= result.before.get(name, -math.inf)
    ]
    guessing = f"less likely than guesses among {1 << 18:,} tokens ({GUESSED:.1f})"
    return f"chosen answers are {guessing}: {', '.join(fell)}" if fell else ""


def _listed(outcomes: Sequence[Outcome]) -> str:
    """The surest first where there are many."""
    if len(outcomes) <= MOST_LISTED:
        return ", ".join(outcome.in_words for outcome in outcomes)
    surest = sorted(outcomes, key=lambda outcome: outcome.chance)[:MOST_LISTED]
    return f"{_listed(surest)} and {len(outcomes) - MOST_LISTED} more"


def _unmoved(outcomes: Sequence[Outcome]) -> str:
    return f"no more than chance would do: {_listed(outcomes)}"


def _cost(run: RunFiles, result: EvaluateResult) -> str:
    """Training's hours on what it ran on, those of all steps there, and how far the policy moved for it."""
    said = []
    seconds = run.metrics.total("step_seconds")
    where = run.steps["train"].environment if "train" in run.steps else None
    if seconds:
        count = where.num_processes if where else 1
        said.append(
            f"{duration(seconds)} of training"
            + (f" on {count} process{'' if count == 1 else 'es'} ({where.device})" if where else "")
        )
    if hours := device_hours(run):
        parts = ", ".join(f"{step} {spent:.2g}" for step, spent in hours.items())
        said.append(f"{sum(hours.values()):.2g} device hours in all ({parts})")
    if result.before.get(WORDS) and WORDS in result.after:
        unended = [metrics.get(UNENDED, 0.0) for metrics in (result.before, result.after)]
        cut = f" ({unended[0]:.0%} cut at their limit before, {unended[1]:.0%} now)" if any(unended) else ""
        said.append(f"answers {result.after[WORDS] / result.before[WORDS]:.2f} times as long{cut}")
    if (divergence := result.after.get("kl/per_token")) is not None:
        said.append(f"KL {divergence:.3g} nats a token")
    return f"Cost: {', '.join(said)}." if said else ""
