"""``GateConfig``: what decides whether a trained checkpoint is released, that is uploaded and handed off."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from dpo_core.contract.benchmark_config import TaskName
from dpo_core.contract.evaluation_config import EvaluationConfig, SetName
from dpo_core.contract.quantities import Seconds
from dpo_core.contract.section import Section

Approver = Literal["none", "person"]


class BenchmarkRule(Section):
    """What a task of ``benchmarks.tasks`` must show."""

    not_below_sft_by: float | None = Field(
        None, ge=0, le=1_000_000, description="The score may be worse than the SFT checkpoint's by so much."
    )
    at_least: float | None = Field(
        None, ge=-1_000_000, le=1_000_000, description="The trained checkpoint's score."
    )
    metric: str | None = Field(
        None,
        max_length=200,
        description="Metric and filter, e.g. exact_match,flexible-extract; empty: the task's first.",
    )

    def in_words(self, task: str) -> str:
        """Return "gsm8k not below SFT by 0.01"."""
        bounds = {"not below SFT by": self.not_below_sft_by, "at least": self.at_least}
        said = [f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None]
        return f"{task}{f' {self.metric}' if self.metric else ''} {' and '.join(said)}"

    @model_validator(mode="after")
    def _has_a_bound(self) -> "BenchmarkRule":
        if self.not_below_sft_by is None and self.at_least is None:
            raise ValueError("a rule of gate.benchmarks needs not_below_sft_by or at_least")
        return self


class JudgeRule(Section):
    """What the judge of `judge` must find. 0.5 is no difference from the SFT checkpoint's answers."""

    win_rate_at_least: float | None = Field(None, ge=0, le=1, description="Its mean preference.")
    length_controlled_at_least: float | None = Field(
        None, ge=0, le=1, description="The same of answers of equal length (AlpacaEval 2)."
    )

    @property
    def in_words(self) -> str:
        """Return "win rate at least 0.5"."""
        bounds = {
            "win rate at least": self.win_rate_at_least,
            "length-controlled win rate at least": self.length_controlled_at_least,
        }
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)

    @model_validator(mode="after")
    def _has_a_bound(self) -> "JudgeRule":
        if self.win_rate_at_least is None and self.length_controlled_at_least is None:
            raise ValueError("gate.judge needs win_rate_at_least or length_controlled_at_least")
        return self


class HeldOutRules(Section):
    """Rules over held-out pairs and prompts."""

    accuracy_at_least: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of held-out pairs whose chosen answer is "
        "rewarded more (rewards/accuracies; an untrained policy has 0.5).",
    )
    length_ratio_at_most: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Mean words of the greedy answers to held-out prompts, divided by the SFT checkpoint's; of Chinese, "
        "Japanese and Thai each character counts.",
    )
    kl_at_most: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="KL divergence from the reference in nats per token, measured "
        "on sampled answers (kl/per_token). Needs evaluation.measure_kl.",
    )
    checker_not_below_sft: bool = Field(
        False,
        description="Share of greedy answers that keep their prompt's verifiable "
        "constraints: not below the SFT checkpoint's.",
    )

    @property
    def judges_held_out(self) -> bool:
        """Whether a rule is on that is measured on held-out pairs or prompts."""
        return self.checker_not_below_sft or any(
            bound is not None
            for bound in (self.accuracy_at_least, self.length_ratio_at_most, self.kl_at_most)
        )

    @property
    def asks_prompts(self) -> bool:
        """Whether a rule is on that is measured on answers to held-out prompts."""
        return (
            self.length_ratio_at_most is not None or self.checker_not_below_sft or self.kl_at_most is not None
        )

    @property
    def in_words(self) -> list[str]:
        """Return each rule that is on, as a phrase."""
        bounds = [
            f"{name.replace('_', ' ')} {bound:g}"
            for name in ("accuracy_at_least", "length_ratio_at_most", "kl_at_most")
            if (bound := getattr(self, name)) is not None
        ]
        return bounds + (["checker not below SFT"] if self.checker_not_below_sft else [])


class SetRules(HeldOutRules):
    """Rules over a set of ``evaluation.sets``."""

    @model_validator(mode="after")
    def _has_a_rule(self) -> "SetRules":
        if not self.judges_held_out:
            raise ValueError(
                "rules of gate.sets need accuracy_at_least, length_ratio_at_most, kl_at_most or checker_not_below_sft"
            )
        return self


class GateConfig(HeldOutRules):
    """Rules over the held-out evaluation, and whether a person decides. All off by default. See docs/gates.md."""

    sets: dict[SetName, SetRules] = Field(
        {}, description="The same rules by set of evaluation.sets, e.g. {safety: {accuracy_at_least: 0.6}}."
    )
    judge: JudgeRule | None = Field(
        None, description="What the judge must find (judge.kind), e.g. {win_rate_at_least: 0.5}."
    )
    benchmarks: dict[TaskName, BenchmarkRule] = Field(
        {},
        description="Rules by task of benchmarks.tasks: not_below_sft_by, at_least, metric; e.g. "
        "{gsm8k: {not_below_sft_by: 0.01}}.",
    )
    approval: Approver = Field(
        "none", description="person: the run waits for someone to approve or reject the checkpoint."
    )
    wait: Literal["pause", "suspend"] = Field(
        "pause",
        description="How a run waits. pause keeps its process; suspend ends "
        "it and frees the worker, and an answer starts it anew (deployments only).",
    )
    timeout_seconds: Seconds = Field(86_400, description="An approval that takes longer ends the run.")

    @property
    def has_rules(self) -> bool:
        """Whether any rule is on."""
        return bool(self.benchmarks or self.sets) or self.judge is not None or self.judges_held_out

    @model_validator(mode="after")
    def _waiting_is_for_a_person(self) -> "GateConfig":
        if self.wait == "suspend" and self.approval == "none":
            raise ValueError(
                "gate.wait suspend means nothing without gate.approval person; set it, or leave gate.wait out"
            )
        return self


def why_unmeasurable(
    gate: GateConfig,
    evaluation: EvaluationConfig,
    held_out: str,
    tasks: Sequence[str] = (),
    has_judge: bool = False,
) -> str | None:
    """Return what would be missing in every evaluation, as a sentence; None where each rule that is on has its metric."""
    if (gate.judges_held_out or evaluation.warnings.stop) and float(held_out) == 0:
        return "the gate's rules and evaluation.warnings.stop are measured on held-out pairs; set data.held_out above 0"
    if unknown := [name for name in gate.sets if name not in {one.name for one in evaluation.sets}]:
        return f"gate.sets has rules for {unknown[0]}, which evaluation.sets does not name; add it there"
    rules = (gate, *gate.sets.values())
    if any(some.asks_prompts for some in rules) and evaluation.num_prompts == 0:
        return "rules of the gate need answers to held-out prompts; set evaluation.num_prompts above 0"
    if any(some.kl_at_most is not None for some in rules) and not evaluation.measure_kl:
        return "gate.kl_at_most needs evaluation.measure_kl; set it to true"
    if gate.judge is not None and not has_judge:
        return "gate.judge needs somebody who judges; set judge.kind and judge.model"
    if missing := [name for name in gate.benchmarks if name not in tasks]:
        return (
            f"gate.benchmarks has a rule for {missing[0]}, which benchmarks.tasks does not name; add it there"
        )
    return None
