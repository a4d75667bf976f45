"""Signs that a policy gets worse although its reward accuracy rises: each a figure, a bound, and who described it.

Loss and accuracy of held-out pairs saturate while the answers get worse (Rafailov et al., Scaling Laws for Reward Model
Overoptimization in Direct Alignment Algorithms, arXiv 2406.02900). A figure that was not measured is no sign.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from dpo_core.contract.metric_names import (
    ACCURACY,
    ACCURACY_ERROR,
    LENGTH_RULE,
    MOVED,
    OVER_LENGTH_RULE,
    OVER_LENGTH_RULE_ERROR,
    PROMPTS,
)
from dpo_core.contract.outcome import Outcome, chance_of
from dpo_core.contract.section import Section

SignName = Literal[
    "displacement", "length", "shortening", "kl", "length_correlation", "length_rule", "no_signal", "outcome"
]
Bound = Annotated[float, Field(gt=0, le=1_000_000)]
Share = Annotated[float, Field(gt=0, lt=1)]
LEVEL = 0.05  # of chance, below which a change counts, or one figure is above another
MOVED_NATS = 1.0  # a pair; below, a policy may have learnt little because it was hardly trained
FEWEST_PAIRS = 30  # for a correlation; below, 0.5 may well be chance
OF_MANY_PAIRS = ("length_correlation", "length_rule", "no_signal")  # which are not measured of fewer


class WarningBounds(Section):
    """From which figure on a run warns, in log, report and Prefect. Empty: never."""

    chosen_falls_by: Bound | None = Field(
        0.5,
        description="displacement: held-out chosen answers lost so many nats a token against the reference.",
    )
    answers_grow_to: Bound | None = Field(
        1.5,
        description="length: mean words of the greedy answers, divided by the SFT checkpoint's; of Chinese, Japanese and "
        "Thai each character counts.",
    )
    answers_shrink_to: Share | None = Field(
        0.5, description="shortening: the same ratio, from which down it is one."
    )
    kl_reaches: Bound | None = Field(
        0.5, description="kl: divergence from the reference in nats a token (evaluation.measure_kl)."
    )
    margin_follows_length: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.5,
        description="length_correlation: of a held-out pair's reward margin with how many tokens longer its chosen "
        "answer is (Pearson, either sign).",
    )
    length_decides: Annotated[float, Field(gt=0.5, le=1)] | None = Field(
        0.7,
        description="length_rule: the longer answer (or the shorter) is the chosen one in so large a share of the held-out "
        "pairs, and reward accuracy is not above that share by more than chance.",
    )
    accuracy_stays_below: Annotated[float, Field(gt=0.5, lt=1)] | None = Field(
        0.55,
        description="no_signal: reward accuracy of 30 or more held-out prompts, not above one half by more than chance, "
        "although their margins have moved by a nat and more.",
    )
    outcome_falls_at: Share | None = Field(
        0.05,
        description="outcome: what is counted in answers fell (instructions kept), and chance would do that in "
        "fewer than this share of cases.",
    )
    stop: tuple[SignName, ...] = Field(
        (),
        description="Signs that end the run: displacement, length_correlation, length_rule and no_signal while it trains, "
        "where evaluation.every is set, length, shortening, kl and outcome where answers_every is, too; all of them before "
        "anything is uploaded. Others only warn.",
    )

    def bound_of(self, name: SignName) -> float | None:
        """Return from which figure on a sign is one; None: never."""
        return {
            "displacement": self.chosen_falls_by,
            "length": self.answers_grow_to,
            "shortening": self.answers_shrink_to,
            "kl": self.kl_reaches,
            "length_correlation": self.margin_follows_length,
            "length_rule": self.length_decides,
            "no_signal": self.accuracy_stays_below,
            "outcome": self.outcome_falls_at,
        }[name]


@dataclass(frozen=True, slots=True)
class Sign:
    """A figure that has reached its bound. ``words`` say what that means and what to do."""

    name: SignName
    value: float
    bound: float
    words: str


TITLES: dict[SignName, str] = {
    "displacement": "likelihood displacement",
    "length": "answers that grow",
    "shortening": "answers that shrink",
    "kl": "distance from the reference",
    "length_correlation": "margins that follow length",
    "length_rule": "an accuracy that length alone has",
    "no_signal": "pairs that teach nothing",
    "outcome": "answers that get worse",
}
CHOSEN, CORRELATION, WORDS, KL = (
    "logps_per_token/chosen",
    "rewards/length_correlation",
    "answers/mean_words",
    "kl/per_token",
)


def signs_of(
    bounds: WarningBounds,
    before: Mapping[str, float],
    after: Mapping[str, float],
    outcomes: Sequence[Outcome] = (),
) -> tuple[Sign, ...]:
    """Return the signs that metrics ``after`` show, compared with those of the SFT checkpoint or the reference."""
    signs = []
    for name, value in figures_of(before, after, outcomes).items():
        bound = bounds.bound_of(name)
        if bound is not None and _is_reached(name, value, bound):
            worst = min(outcomes, key=_chance_of_a_fall).in_words if outcomes else ""
            worst += _accuracy_meanwhile(before, after)
            signs.append(Sign(name, value, bound, WORDS_OF[name](value, bound, worst)))
    return tuple(signs)


def figures_of(
    before: Mapping[str, float], after: Mapping[str, float], outcomes: Sequence[Outcome] = ()
) -> dict[SignName, float]:
    """Return what signs are judged by, of those that were measured: nats a token lost, a ratio of words, nats a token, a
    correlation, the accuracy of length alone (0 where the policy's is above it), accuracy (1 where it is above chance, or
    the policy has hardly moved), and the smallest probability that an outcome's fall is chance (1 where none fell)."""
    figures: dict[SignName, float] = {}
    if CHOSEN in before and CHOSEN in after:
        figures["displacement"] = before[CHOSEN] - after[CHOSEN]
    if before.get(WORDS) and WORDS in after:
        figures["length"] = figures["shortening"] = after[WORDS] / before[WORDS]
    if KL in after:
        figures["kl"] = after[KL]
    if CORRELATION in after:
        figures["length_correlation"] = after[CORRELATION]
    if {LENGTH_RULE, OVER_LENGTH_RULE, OVER_LENGTH_RULE_ERROR, PROMPTS} <= after.keys():
        is_above = _is_no_chance(after[OVER_LENGTH_RULE], after[OVER_LENGTH_RULE_ERROR], after[PROMPTS])
        figures["length_rule"] = 0.0 if is_above else after[LENGTH_RULE]
    if {ACCURACY, ACCURACY_ERROR, PROMPTS, MOVED} <= after.keys() and after[PROMPTS] >= FEWEST_PAIRS:
        is_above = _is_no_chance(after[ACCURACY] - 0.5, after[ACCURACY_ERROR], after[PROMPTS])
        figures["no_signal"] = 1.0 if is_above or after[MOVED] < MOVED_NATS else after[ACCURACY]
    if outcomes:
        figures["outcome"] = min(map(_chance_of_a_fall, outcomes))
    return figures


def _accuracy_meanwhile(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """What makes a fall of answers worth a word: reward accuracy does not show it."""
    if ACCURACY not in after:
        return ""
    was = f" (before: {before[ACCURACY]:.2f})" if ACCURACY in before else ""
    return f", while reward accuracy is {after[ACCURACY]:.2f}{was}"


def why_not_measured(
    bounds: WarningBounds, num_prompts: int, measures_kl: bool, has_reference: bool = True
) -> str | None:
    """Return what a sign that is to stop the run lacks, as a sentence; None where each is measured."""
    for name in bounds.stop:
        if bounds.bound_of(name) is None:
            return f"evaluation.warnings.stop names {name}, whose bound is empty; set the bound, or leave it out of stop"
        if name in ("length", "shortening", "outcome", "kl") and num_prompts == 0:
            return f"evaluation.warnings.stop names {name}; set evaluation.num_prompts above 0"
        if name == "kl" and not measures_kl:
            return "evaluation.warnings.stop names kl; set evaluation.measure_kl to true"
        if name == "no_signal" and not has_reference:
            return (
                "evaluation.warnings.stop names no_signal, which tells how far margins moved from the reference's, and this "
                "objective has none; leave it out of stop, or choose an objective with a reference"
            )
    return None


def why_unmeasurable_here(bounds: WarningBounds, held_out_rows: int, counts_answers: bool) -> str | None:
    """Return which sign that is to stop the run no evaluation of this mixture will measure, and why, as a clause; None where
    each may be. ``counts_answers``: whether a held-out prompt has an instruction, a judge compares, or a task is scored."""
    for name in bounds.stop:
        if name == "outcome":
            if not counts_answers:
                return (
                    "outcome, and no held-out prompt has an instruction that code can check, no judge compares answers and "
                    "no benchmark is run"
                )
        elif held_out_rows < (fewest := FEWEST_PAIRS if name in OF_MANY_PAIRS else 1):
            return f"{name}, which needs {fewest} held-out pairs or more, and this mixture holds out {held_out_rows}"
    return None


def _is_no_chance(above: float, error: float, num_prompts: float) -> bool:
    return above > 0 and chance_of(above, error, round(num_prompts)) < LEVEL


def _chance_of_a_fall(outcome: Outcome) -> float:
    return outcome.counts if outcome.change < 0 else 1.0


def _is_reached(name: SignName, value: float, bound: float) -> bool:
    """A figure that is no number reaches nothing."""
    if name == "outcome":
        return value < bound
    if name in ("shortening", "no_signal"):
        return value <= bound
    return abs(value) >= bound if name == "length_correlation" else value >= bound


def _displacement(value: float, bound: float, _: str) -> str:
    return (
        f"The chosen answers of the held-out pairs lost {value:.2f} nats a token (bound {bound:g}): the policy finds even "
        "what it should prefer less likely, and what it says instead is in neither answer (Razin et al., arXiv "
        "2410.08847). A smaller learning rate, a larger beta or a term of dpop or sft counters it."
    )


def _length(value: float, bound: float, _: str) -> str:
    return (
        f"Greedy answers are {value:.2f} times as long as the SFT checkpoint's (bound {bound:g}); length is often all that "
        "a reward has found (Singhal et al., arXiv 2310.03716). Balance lengths in the data; dpo_norm, simpo or "
        "loss.ld_alpha weigh them less than sums over tokens do."
    )


def _shortening(value: float, bound: float, _: str) -> str:
    return (
        f"Greedy answers are only {value:.2f} times as long as the SFT checkpoint's (bound {bound:g}): rewards that are "
        "sums over tokens rely on length either way (Lu et al., arXiv 2406.10957), and a policy may have learnt to say "
        "less. Look at the samples; where they are as they should be, a lower answers_shrink_to says so."
    )


def _kl(value: float, bound: float, _: str) -> str:
    return (
        f"The policy is {value:.2f} nats a token from its reference (KL, bound {bound:g}), and answers get worse again as "
        "that grows (Rafailov et al., arXiv 2406.02900). A larger beta, fewer steps or a smaller learning rate hold it."
    )


def _correlation(value: float, bound: float, _: str) -> str:
    learnt = "longer" if value > 0 else "shorter"
    return (
        f"Reward margins of the held-out pairs follow length: correlation {value:+.2f} with how much longer the chosen "
        f"answer is (bound {bound:g}), so the policy may have learnt to be {learnt} (Park et al., arXiv 2403.19159). "
        "Balance lengths in the data, or use dpo_norm, simpo or loss.ld_alpha."
    )


def _length_rule(value: float, bound: float, _: str) -> str:
    return (
        f"Length alone tells chosen from rejected in {value:.2f} of the held-out pairs (bound {bound:g}), and reward "
        "accuracy is not above that by more than chance: these pairs do not show that the policy learnt anything else "
        "(Singhal et al., arXiv 2310.03716). Balance lengths in the data, and measure a set that is balanced "
        "(evaluation.sets)."
    )


def _no_signal(value: float, bound: float, _: str) -> str:
    return (
        f"The policy moved, and tells held-out pairs apart no better than a coin: reward accuracy {value:.2f} (bound "
        f"{bound:g}). It learnt what its own pairs say and nothing that holds for others; labels that are wrong in half of "
        "the pairs look so, as networks learn them by heart (Zhang et al., arXiv 1611.03530; Chowdhury et al., arXiv "
        "2403.00409). See whether chosen and rejected are what you take them for, and read some rows (pairline show-rows)."
    )


def _outcome(value: float, bound: float, worst: str) -> str:
    return (
        f"Answers got worse, whatever the held-out pairs say: {worst} (level {bound:g}; Rafailov et al., arXiv 2406.02900). "
        "Take an earlier step (train.keep_best, pairline export --step), fewer steps or a smaller learning rate."
    )


WORDS_OF: dict[SignName, Callable[[float, float, str], str]] = {
    "displacement": _displacement,
    "length": _length,
    "shortening": _shortening,
    "kl": _kl,
    "length_correlation": _correlation,
    "length_rule": _length_rule,
    "no_signal": _no_signal,
    "outcome": _outcome,
}
