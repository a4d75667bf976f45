"""``SweepConfig``: a stage's settings and a grid over some of them -> the sweep's members, each a whole ``StageConfig``."""

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from dpo_core.contract.benchmarks import PREFIX
from dpo_core.contract.judgement import JUDGED
from dpo_core.contract.objectives import LossName
from dpo_core.contract.quantities import Beta, LearningRate, Seed
from dpo_core.contract.section import Section
from flows.settings.stage_config import StageConfig

Setting = str | float | int
MOST_MEMBERS = 1000
# Rewards, margins and losses are in units of their own loss and beta, so members can be compared by these alone.
HeldOutMetric = Literal[
    "rewards/accuracies",
    "ranking/accuracies",
    "checker/pass_rate",
    "judge/win_rate",
    "judge/length_controlled_win_rate",
]
TaskMetric = Annotated[str, Field(pattern=f"^{PREFIX}\\S+$", max_length=220)]
# Dimension of the grid -> section and field that it sets, in the order in which members are counted.
DIMENSIONS = {
    "loss": ("loss", "name"),
    "beta": ("loss", "beta"),
    "learning_rate": ("optim", "learning_rate"),
    "seed": ("train", "seed"),
}


class GridConfig(Section):
    """Every combination of the values is a member. A dimension without values keeps the stage's own."""

    loss: tuple[LossName, ...] = Field((), description="Objectives (loss.name).")
    beta: tuple[Beta, ...] = Field(
        (),
        description="Values of loss.beta. Without any, "
        "loss.beta; where that is empty, each objective's usual one.",
    )
    learning_rate: tuple[LearningRate, ...] = Field((), description="Values of optim.learning_rate.")
    seed: tuple[Seed, ...] = Field(
        (), description="Values of train.seed: order of the second and later epochs, start of an adapter."
    )
    metric: HeldOutMetric | TaskMetric = Field(
        "rewards/accuracies",
        description="The winner has most of it on the held-out pairs or prompts, by a judge (judge/win_rate), or on a task "
        "(benchmarks/gsm8k), among the members that pass the gate.",
    )
    accelerator: str | None = Field(
        None,
        pattern=r"^[\w.-]+$",
        description="Name of the Prefect global concurrency limit "
        "that stands for the accelerators: as many members train at once as it has slots. "
        "Empty: gpu or cpu, whichever is here; none for steps that wait in a cluster's queue.",
    )

    @model_validator(mode="after")
    def _a_grid(self) -> "GridConfig":
        for name in DIMENSIONS:
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"sweep.{name} names a value twice; each member is trained once")
        if not any(getattr(self, name) for name in DIMENSIONS):
            raise ValueError(
                f"the sweep has no values; give some for {', '.join(f'sweep.{name}' for name in DIMENSIONS)}"
            )
        sizes = {name: len(values) for name in DIMENSIONS if (values := getattr(self, name))}
        if (members := prod(sizes.values())) > MOST_MEMBERS:  # each is a run, and is checked as one
            raise ValueError(
                f"the sweep has {members:,} members ({', '.join(f'{size} {name}' for name, size in sizes.items())}), more "
                f"than {MOST_MEMBERS:,}; give fewer values"
            )
        return self


class SweepConfig(StageConfig):
    """One sweep: everything a stage needs, and the grid. Only the winner is uploaded and handed off."""

    sweep: GridConfig

    @model_validator(mode="after")
    def _seeds_change_something(self) -> "SweepConfig":
        if len(self.sweep.seed) > 1 and self.train.num_epochs == 1 and self.adapter.kind == "none":
            raise ValueError(
                "sweep.seed would train the same model several times: train.seed orders the second and later "
                "epochs and starts an adapter. Set train.num_epochs above 1, or sweep something else"
            )
        return self

    @model_validator(mode="after")
    def _the_grid_changes_the_objective(self) -> "SweepConfig":
        if self.losses and (self.sweep.loss or self.sweep.beta):
            raise ValueError(
                "sweep.loss and sweep.beta are values of loss, which losses takes the place of; remove losses, or sweep "
                "something else"
            )
        return self

    @model_validator(mode="after")
    def _the_metric_s_task_is_scored(self) -> "SweepConfig":
        metric = self.sweep.metric
        if metric.startswith(JUDGED) and not self.judge.is_on:
            raise ValueError(
                f"sweep.metric {metric} needs somebody who judges; set judge.kind and judge.model"
            )
        if metric.startswith(PREFIX) and metric.removeprefix(PREFIX) not in self.benchmarks.tasks:
            raise ValueError(
                f"sweep.metric {metric} is a task that benchmarks.tasks does not name; add it there"
            )
        return self

    @model_validator(mode="after")
    def _members_are_runs(self) -> "SweepConfig":
        members_of(self)
        return self

    @property
    def stage(self) -> StageConfig:
        """The stage's settings without the grid."""
        return StageConfig.model_validate({name: getattr(self, name) for name in StageConfig.model_fields})


@dataclass(frozen=True, slots=True)
class Member:
    """One combination. ``settings``: the values of the dimensions that the grid names."""

    number: int  # from 1
    settings: dict[str, Setting]
    config: StageConfig

    @property
    def label(self) -> str:
        """ "loss dpo, beta 0.1" """
        return label_of(self.settings)


def label_of(settings: dict[str, Setting]) -> str:
    """Return a member in words."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else f'{value:g}'}"
        for name, value in settings.items()
    )


def members_of(config: SweepConfig) -> tuple[Member, ...]:
    """Return all combinations. Raises ``ValueError`` that names the first one that is no valid run."""
    named = {name: values for name in DIMENSIONS if (values := getattr(config.sweep, name))}
    members = []
    for number, values in enumerate(product(*named.values()), start=1):
        settings = dict(zip(named, values, strict=True))
        members.append(Member(number, settings, _member_config(config, number, settings)))
    return tuple(members)


def _member_config(config: SweepConfig, number: int, settings: dict[str, Setting]) -> StageConfig:
    sections = {name: getattr(config, name) for name in StageConfig.model_fields}
    for name, value in settings.items():
        section, field = DIMENSIONS[name]
        known = sections[section]
        written = (
            known if isinstance(known, dict) else known.model_dump(exclude_unset=True)
        )  # a beta left empty stays so
        sections[section] = {**written, field: value}
    try:
        return StageConfig.model_validate({**sections, "name": f"{config.name}-{number:02d}"})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise ValueError(f"the member with {label_of(settings)} is no valid run: {problem['msg']}") from None
