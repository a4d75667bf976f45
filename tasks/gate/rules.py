"""The gate's rules: metrics before and after -> rule, value, bound, passed. Pure.

A rule that is on and finds no value fails and says why: a checkpoint is never released because something was not measured.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from dpo_core.contract.benchmarks import Benchmarks, BenchmarkScore
from dpo_core.contract.judgement import JudgeFigures
from dpo_core.contract.metric_names import by_set
from dpo_core.contract.outcome import chance_in_words
from dpo_core.contract.section import Section
from tasks.gate.config import BenchmarkRule, GateConfig, HeldOutRules

Metrics = Mapping[str, float]
ROUNDING = 1e-9  # 0.30 - 0.31 is a little less than -0.01
GATE_FILE = "gate.json"  # the checks, in the run's folder


class GateCheck(Section):
    """One rule of the gate, applied."""

    rule: str
    value: float | None
    bound: float | None
    passed: bool
    detail: str = ""  # why there is no value or no bound, or how sure the value is


def check_rules(gate: HeldOutRules, before: Metrics, after: Metrics) -> tuple[GateCheck, ...]:
    """Return the rules that are on, in the order of ``HeldOutRules``. ``before`` are the SFT checkpoint's metrics."""
    checks = []
    if gate.accuracy_at_least is not None:
        checks.append(
            _at_least("held-out accuracy at least", after, "rewards/accuracies", gate.accuracy_at_least)
        )
    if gate.length_ratio_at_most is not None:
        checks.append(_length_ratio(before, after, gate.length_ratio_at_most))
    if gate.kl_at_most is not None:
        checks.append(
            _judged(
                "KL to reference at most",
                after.get("kl/per_token"),
                gate.kl_at_most,
                lambda value, bound: value <= bound,
                "the evaluation measured no kl/per_token",
            )
        )
    if gate.checker_not_below_sft:
        name = "checker/pass_rate"
        checks.append(_at_least("checker pass rate not below SFT", after, name, before.get(name)))
    return tuple(checks)


def check_sets(gate: GateConfig, before: Metrics, after: Metrics) -> tuple[GateCheck, ...]:
    """Return the rules of named sets, each set by its own figures."""
    of_before, of_after = by_set(before), by_set(after)
    return tuple(
        check.model_copy(update={"rule": f"{name}: {check.rule}"})
        for name, rules in gate.sets.items()
        for check in check_rules(rules, of_before.get(name, {}), of_after.get(name, {}))
    )


def check_benchmarks(gate: GateConfig, benchmarks: Benchmarks | None) -> tuple[GateCheck, ...]:
    """Return the rules of tasks, in the order of ``GateConfig``."""
    return tuple(
        check
        for task, rule in gate.benchmarks.items()
        for check in _check_task(task, rule, benchmarks.find(task, rule.metric) if benchmarks else None)
    )


def check_judgement(gate: GateConfig, judgement: JudgeFigures | None) -> tuple[GateCheck, ...]:
    """Return the rules of what a judge found, in the order of ``JudgeRule``."""
    if gate.judge is None:
        return ()
    found = (
        ("win rate at least", gate.judge.win_rate_at_least, judgement.win_rate if judgement else None),
        (
            "length-controlled win rate at least",
            gate.judge.length_controlled_at_least,
            judgement.length_controlled if judgement else None,
        ),
    )
    missing = "lengths tell nothing of so few answers" if judgement else "nobody judged"
    return tuple(
        _judged(rule, value, bound, _is_at_least, missing)
        for rule, bound, value in found
        if bound is not None
    )


def _check_task(task: str, rule: BenchmarkRule, score: BenchmarkScore | None) -> Iterator[GateCheck]:
    """Of a metric where less is better, SFT's less the trained checkpoint's is the change for the better."""
    name = score.label if score else f"{task} {rule.metric or ''}".strip()
    missing = f"benchmarks measured no {name}"
    sign = -1 if score and score.better < 0 else 1
    if rule.not_below_sft_by is not None:
        check = _judged(
            f"{name}, change for the better, at least",
            sign * score.change if score else None,
            0.0 - rule.not_below_sft_by,
            _is_at_least,
            missing,
        )
        yield check.model_copy(update={"detail": check.detail or _how_sure(score)})
    if rule.at_least is not None:
        yield _judged(
            f"{name} at least", score.after if score else None, rule.at_least, _is_at_least, missing
        )


def _is_at_least(value: float, bound: float) -> bool:
    return value >= bound or math.isclose(value, bound, rel_tol=0, abs_tol=ROUNDING)


def _at_least(rule: str, after: Metrics, name: str, bound: float | None) -> GateCheck:
    missing = f"the evaluation measured no {name}"
    if name.startswith("checker/"):
        missing += ": no held-out prompt that was answered has constraints"
    return _judged(rule, after.get(name), bound, lambda value, bound: value >= bound, missing)


def _length_ratio(before: Metrics, after: Metrics, bound: float) -> GateCheck:
    rule, name = "mean length ratio at most", "answers/mean_words"
    if name not in before or name not in after:
        return GateCheck(
            rule=rule, value=None, bound=bound, passed=False, detail=f"the evaluation measured no {name}"
        )
    if not before[name] > 0:
        return GateCheck(
            rule=rule, value=None, bound=bound, passed=False, detail="the SFT checkpoint's answers are empty"
        )
    return _judged(rule, after[name] / before[name], bound, lambda value, bound: value <= bound, "")


def _judged(
    rule: str, value: float | None, bound: float | None, holds: Callable[[float, float], bool], missing: str
) -> GateCheck:
    """NaN holds against nothing: every comparison with it is false."""
    known = value is not None and bound is not None
    passed = value is not None and bound is not None and holds(value, bound)
    detail = missing if not known else "not a number" if value != value or bound != bound else ""
    return GateCheck(rule=rule, value=value, bound=bound, passed=passed, detail=detail)


def _how_sure(score: BenchmarkScore | None) -> str:
    """How far chance alone moves a task's change: a bound within that decides by luck."""
    if score is None or score.paired_stderr is None:
        return ""
    chance = "" if score.chance is None else f", {chance_in_words(score.chance)}"
    return f"± {score.paired_stderr:.4f}{chance}"


def failed_checks(checks: Sequence[GateCheck]) -> str:
    """Return the rules that do not hold, as a phrase; empty if all do."""
    return "; ".join(
        f"{check.rule} {_number(check.bound)}: got {_number(check.value)}"
        + (f" ({check.detail})" if check.detail else "")
        for check in checks
        if not check.passed
    )


def check_table(checks: Sequence[GateCheck]) -> list[dict[str, str]]:
    """Return one row a rule, for artifacts, reports and the terminal."""
    return [
        {
            "rule": check.rule,
            "value": _number(check.value),
            "bound": _number(check.bound),
            "passed": "yes" if check.passed else "NO",
            "why": check.detail,
        }
        for check in checks
    ]


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g}"
