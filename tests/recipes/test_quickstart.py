"""The quickstart recipe and its preference set keep what their README promises."""

import json
from pathlib import Path

import pytest

from dpo_core.data.checkers import passes
from dpo_core.data.formats import to_pair
from flows.settings.overrides import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
PREFERENCES = RECIPES / "quickstart" / "preferences.jsonl"


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [json.loads(line) for line in PREFERENCES.read_text().splitlines()]


def test_recipe_is_valid_and_names_the_set() -> None:
    config = read_recipe(RECIPES / "quickstart.yaml", [])
    assert [RECIPES.parent / source.source for source in config.data.sources] == [PREFERENCES]
    assert config.upload.repo_id is None, "the demo publishes nothing"


def test_set_is_small_enough_for_a_repository() -> None:
    assert PREFERENCES.stat().st_size < 2_000_000


def test_chosen_keeps_the_instructions_and_rejected_does_not(rows: list[dict]) -> None:
    assert len(rows) >= 300
    for number, row in enumerate(rows):
        assert row["constraints"], number
        assert passes(row["chosen"][-1]["content"], row["constraints"]), number
        assert not passes(row["rejected"][-1]["content"], row["constraints"]), number


def test_mix_step_recognises_every_row(rows: list[dict]) -> None:
    for row in rows:
        name, pair = to_pair(row)
        assert name == "prompt_messages"
        assert [turn["role"] for turn in pair.chosen] == ["user", "assistant"]
        assert pair.constraints == tuple(row["constraints"])


def test_no_pair_stands_twice(rows: list[dict]) -> None:
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == len(rows)


def test_length_alone_does_not_tell_chosen_from_rejected(rows: list[dict]) -> None:
    """Guessing the shorter answer, or the longer one, must be wrong often enough; the README states how often."""
    shorter = [len(row["chosen"][-1]["content"]) < len(row["rejected"][-1]["content"]) for row in rows]
    assert 0.2 < sum(shorter) / len(rows) < 0.8
