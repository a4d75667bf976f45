"""What an event may say of the stage that it starts: which checkpoint, and a recipe by name."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dpo_core.contract.errors import ConfigError
from flows.post_training import config_after_sft
from flows.terminal.server_commands import recipe_to_name
from tasks.events.payloads import SftCheckpointReady

MINIMAL = "{name: %s, data: {sources: [{source: rows.jsonl}]}}"
EVIL = "{name: evil, checkpoint: {allow_remote_code: [modeling_x.py]}, data: {sources: [{source: x/y}]}}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The operator's recipes, and beside them what somebody else could write."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "ours.yaml").write_text(MINIMAL % "ours")
    (recipes / "other-7b.yml").write_text(MINIMAL % "other")
    (recipes / "below").mkdir()
    (recipes / "below" / "evil.yaml").write_text(EVIL)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "evil.yaml").write_text(EVIL)
    (recipes / "link.yaml").symlink_to(tmp_path / "x" / "evil.yaml")
    return recipes


def event(recipe: str | None) -> SftCheckpointReady:
    return SftCheckpointReady(
        name="sft",
        source="/models/sft",
        weights_fingerprint="a" * 64,
        chain="chain:" + "a" * 12,
        tokenizer_fingerprint="b" * 64,
        recipe=recipe,
    )


def test_an_event_chooses_among_the_recipes_of_the_operator(folder: Path) -> None:
    assert config_after_sft(event(None), folder / "ours.yaml", [], folder).name == "ours"
    chosen = config_after_sft(
        event("other-7b.yml"), folder / "ours.yaml", ["optim.learning_rate=1.0e-5"], folder
    )
    assert (chosen.name, chosen.checkpoint.source, chosen.optim.learning_rate) == (
        "other",
        "/models/sft",
        1e-5,
    )


@pytest.mark.parametrize(
    "recipe",
    [
        "../x/evil.yaml",
        "{tmp}/x/evil.yaml",
        "below/evil.yaml",
        "./ours.yaml",
        "..",
        "",
        ".hidden.yaml",
        "ours.yaml\n",
        "file:///x/evil.yaml",
        "evil.json",
        "~/evil.yaml",
    ],
)
def test_no_path_is_a_name(folder: Path, tmp_path: Path, recipe: str) -> None:
    named = recipe.format(tmp=tmp_path)
    if not named:
        assert (
            config_after_sft(event(named), folder / "ours.yaml", [], folder).name == "ours"
        )  # as if none were named
        return
    with pytest.raises(ConfigError, match=r"expected the name of a \.yaml file in .*recipes, without a path"):
        config_after_sft(event(named), folder / "ours.yaml", [], folder)


def test_a_link_out_of_the_folder_is_no_recipe_of_it(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is a link out of"):
        config_after_sft(event("link.yaml"), folder / "ours.yaml", [], folder)
    with pytest.raises(
        ConfigError, match=r"none\.yaml does not exist.*other-7b|none\.yaml does not exist.*ours"
    ):
        config_after_sft(event("none.yaml"), folder / "ours.yaml", [], folder)


def test_code_that_an_operator_allows_is_not_whatever_an_event_brings(folder: Path) -> None:
    (folder / "code.yaml").write_text(EVIL)
    with pytest.raises(
        ConfigError, match=r"code\.yaml allows modeling_x\.py to run, whatever is in it.*@sha256:"
    ):
        config_after_sft(event("code.yaml"), folder / "ours.yaml", [], folder)
    pinned = f"modeling_x.py@sha256:{'a' * 64}"
    config = config_after_sft(
        event("code.yaml"), folder / "ours.yaml", [f"checkpoint.allow_remote_code=[{pinned}]"], folder
    )
    assert config.checkpoint.allow_remote_code == (pinned,)


def test_whoever_tells_of_a_checkpoint_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    parameters = {"recipes_folder": str(folder)}
    assert recipe_to_name(folder / "ours.yaml", parameters).name == "ours.yaml"
    assert recipe_to_name(Path("ours.yaml"), parameters) == folder / "ours.yaml"
    with pytest.raises(ConfigError, match=r"does not lie in .*set the deployment's parameter recipes_folder"):
        recipe_to_name(tmp_path / "x" / "evil.yaml", parameters)
    assert recipe_to_name(Path("recipes/quickstart.yaml"), {}).name == "quickstart.yaml"


@pytest.mark.parametrize("chain", ["x", "chain:", "chain:a b", "chain:](http://evil)", "chain:" + "a" * 65])
def test_a_chain_is_a_tag_and_nothing_else(chain: str) -> None:
    with pytest.raises(ValidationError, match="chain"):
        event(None).model_validate(event(None).model_dump() | {"chain": chain})
