"""Signs that a checkpoint got worse, in what was measured of it, and those of them that keep it from leaving. Pure."""

from collections.abc import Sequence

from dpo_core.contract.benchmarks import Benchmarks
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import AnswerPair, EvaluateResult
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.metric_names import KEPT, label_of, of_set
from dpo_core.contract.outcome import Outcome, paired_outcome, told_together
from dpo_core.contract.warning_signs import TITLES, Sign, WarningBounds, figures_of, signs_of
from tasks.gate.config import GateConfig
from tasks.gate.loops import without_loops
from tasks.gate.rules import GateCheck, check_benchmarks, check_judgement, check_rules, check_sets


def outcomes_of(
    result: EvaluateResult, benchmarks: Benchmarks | None = None, judgement: JudgeFigures | None = None
) -> tuple[Outcome, ...]:
    """Return what is counted in answers, before and after, told together: instructions kept, where prompts of the mixture
    or of a named set have any, answers that are no loops, where some are, what a judge prefers, and tasks."""
    by_set = {"": result.answers, **result.set_answers}
    kept = (
        *(kept_outcome(label_of(of_set(name, KEPT)), answers) for name, answers in by_set.items()),
        *(
            without_loops(f"{name + ': ' if name else ''}answers without loops", answers)
            for name, answers in by_set.items()
        ),
    )
    preferred = (judgement.outcome,) if judgement else ()
    scored = benchmarks.outcomes if benchmarks else ()
    return told_together((*(outcome for outcome in kept if outcome), *preferred, *scored))


def kept_outcome(label: str, answers: Sequence[AnswerPair]) -> Outcome | None:
    """Return how many answers keep their instructions, before and after; None where no prompt has any."""
    judged = (
        (answer.before_passes, answer.after_passes)
        for answer in answers
        if answer.before_passes is not None and answer.after_passes is not None
    )
    return paired_outcome(label, judged)


def signs_in(
    bounds: WarningBounds,
    result: EvaluateResult,
    benchmarks: Benchmarks | None = None,
    judgement: JudgeFigures | None = None,
) -> tuple[Sign, ...]:
    """Return the signs that evaluation, benchmarks and judge show."""
    return signs_of(bounds, result.before, result.after, outcomes_of(result, benchmarks, judgement))


def checks_of(
    gate: GateConfig,
    evaluation: EvaluationConfig,
    result: EvaluateResult,
    benchmarks: Benchmarks | None = None,
    judgement: JudgeFigures | None = None,
) -> tuple[GateCheck, ...]:
    """Return the gate's rules, and a check for each sign that is to stop the run. One that was not measured does not
    hold."""
    bounds = evaluation.warnings
    shown = {sign.name: sign for sign in signs_in(bounds, result, benchmarks, judgement)}
    figures = figures_of(result.before, result.after, outcomes_of(result, benchmarks, judgement))
    return (
        *check_rules(gate, result.before, result.after),
        *check_sets(gate, result.before, result.after),
        *check_judgement(gate, judgement),
        *check_benchmarks(gate, benchmarks),
        *(
            GateCheck(
                rule=f"no sign of {TITLES[name]}",
                value=figures.get(name),
                bound=bounds.bound_of(name),
                passed=name in figures and name not in shown,
                detail="" if name in figures else "the evaluation did not measure it",
            )
            for name in bounds.stop
        ),
    )
