"""The files that are made of the settings, and what an editor makes of recipes by them."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from flows.settings.schema import RECIPE_SCHEMA, SWEEP_SCHEMA, recipe_schema, settings_page, sweep_schema

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))  # that of the chain gets its checkpoint from an event


@pytest.mark.parametrize(
    ("path", "made"),
    [
        (RECIPE_SCHEMA, recipe_schema),
        (SWEEP_SCHEMA, sweep_schema),
        (ROOT / "docs/settings.md", settings_page),
    ],
)
def test_what_is_made_of_the_settings_is_as_they_are(path: Path, made):
    assert path.read_text() == made() + "\n", "run `make reference`"


def problems(values: dict, schema: Path) -> list[str]:
    """What an editor would underline."""
    validator = Draft202012Validator(json.loads(schema.read_text()))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(values)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_an_editor_finds_the_schema_of_a_recipe_and_nothing_wrong_with_it(path: Path):
    head, named = path.read_text().splitlines()[0].split("$schema=")
    assert head == "# yaml-language-server: "
    values = yaml.safe_load(path.read_text())
    schema = (path.parent / named).resolve()
    assert schema == (SWEEP_SCHEMA if "sweep" in values else RECIPE_SCHEMA)
    assert problems(values, schema) == []


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ("loss", {"bta": 1}),
        ("loss", {"name": "dp"}),
        ("optim", {"learning_rate": 0}),
        ("data", {"held_out": "half"}),
        ("train", {"num_epochs": 1.5}),
        ("los", {}),
    ],
)
def test_an_editor_underlines_what_a_run_would_refuse(section: str, wrong: dict):
    values = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text())
    assert problems({**values, section: {**values.get(section, {}), **wrong}}, RECIPE_SCHEMA)
