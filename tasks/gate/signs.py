"""Signs that a checkpoint got worse, in what was measured of it, and those of them that keep it from leaving. Pure."""

from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.metric_names import MEANINGS
from dpo_core.contract.outcome import Outcome, paired_outcome
from dpo_core.contract.warning_signs import TITLES, Sign, WarningBounds, figures_of, signs_of
from tasks.gate.config import GateConfig
from tasks.gate.rules import GateCheck, check_rules


def outcomes_of(result: EvaluateResult) -> tuple[Outcome, ...]:
    """Return what is counted in answers, before and after: instructions kept, where prompts have any."""
    judged = [
        (answer.before_passes, answer.after_passes)
        for answer in result.answers
        if answer.before_passes is not None and answer.after_passes is not None
    ]
    kept = paired_outcome(MEANINGS["checker/pass_rate"].label, judged)
    return () if kept is None else (kept,)


def signs_in(bounds: WarningBounds, result: EvaluateResult) -> tuple[Sign, ...]:
    """Return the signs that the evaluation shows."""
    return signs_of(bounds, result.before, result.after, outcomes_of(result))


def checks_of(
    gate: GateConfig, evaluation: EvaluationConfig, result: EvaluateResult
) -> tuple[GateCheck, ...]:
    """Return the gate's rules, and a check for each sign that is to stop the run. One that was not measured does not
    hold."""
    bounds = evaluation.warnings
    shown = {sign.name: sign for sign in signs_in(bounds, result)}
    figures = figures_of(result.before, result.after, outcomes_of(result))
    return (
        *check_rules(gate, result.before, result.after),
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
