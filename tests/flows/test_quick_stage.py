"""The stage with eight settings: they land where they belong, and the recipe keeps the rest."""

import json
from pathlib import Path

import pytest

from dpo_core.contract.errors import ConfigError
from flows.quick_stage import QuickConfig, quick_config
from flows.settings.overrides import read_recipe
from flows.settings.stage_config import StageConfig

QUICKSTART = Path(__file__).parents[2] / "recipes/quickstart.yaml"


def test_its_defaults_are_those_of_the_quickstart():
    assert quick_config(QuickConfig(name="quickstart"), QUICKSTART) == read_recipe(QUICKSTART, [])


def test_every_setting_lands_in_the_recipe_and_the_recipe_keeps_the_rest():
    settings = QuickConfig(
        checkpoint="org/sft",
        data="org/pairs",
        objective="simpo",
        beta=2.0,
        learning_rate=1e-6,
        epochs=3,
        length=512,
        name="mine",
    )
    config = quick_config(settings, QUICKSTART)
    assert (config.checkpoint.source, [source.source for source in config.data.sources]) == (
        "org/sft",
        ["org/pairs"],
    )
    assert (config.loss.name, config.loss.beta, config.optim.learning_rate) == ("simpo", 2.0, 1e-6)
    assert (config.train.num_epochs, config.data.max_length_tokens, config.name) == (3, 512, "mine")
    assert (config.data.held_out, config.train.checkpoint_every, config.evaluation.num_prompts) == (
        "40",
        10,
        40,
    )


def test_what_the_operator_sets_on_top_of_the_recipe_stays():
    config = quick_config(
        QuickConfig(), QUICKSTART, ["compute.launcher=docker", f"image.use=sha256:{'a' * 64}"]
    )
    assert config.compute.launcher == "docker"


def test_settings_of_another_objective_and_another_checkpoint_do_not_stay(tmp_path: Path):
    values = {
        "checkpoint": {"source": "org/a", "revision": "v1"},
        "data": {"sources": [{"source": "org/pairs"}]},
        "loss": {"name": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.5},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(values))
    same = quick_config(QuickConfig(checkpoint="org/a", objective="simpo", beta=3.0), recipe)
    assert (same.checkpoint.revision, same.loss.gamma_beta_ratio, same.loss.beta) == ("v1", 0.5, 3.0)
    other = quick_config(QuickConfig(checkpoint="org/b", objective="dpo", beta=0.1), recipe)
    assert (other.checkpoint.revision, other.loss.gamma_beta_ratio) == (None, 0.3)


def test_what_the_stage_refuses_is_refused_in_its_words():
    with pytest.raises(ConfigError, match="exo_pair needs label smoothing"):
        quick_config(QuickConfig(objective="exo_pair"), QUICKSTART)


def test_the_form_explains_its_settings_as_that_of_all_settings_does():
    quick, whole = QuickConfig.model_json_schema()["properties"], StageConfig.model_json_schema()["$defs"]
    assert len(quick) == 8
    assert quick["beta"]["description"] == whole["LossConfig"]["properties"]["beta"]["description"]
    assert all(field["description"] for field in quick.values())
