"""The grid of a sweep: which members it makes, and what it refuses before anything runs."""

from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.contract.errors import ConfigError
from flows.settings.overrides import load_yaml, validated
from flows.settings.sweep_config import DIMENSIONS, SweepConfig, members_of

STAGE = {
    "name": "grid",
    "checkpoint": {"source": "org/model"},
    "data": {"sources": [{"source": "org/set"}]},
    "train": {"num_epochs": 2},
}


def sweep(grid: dict, **sections: dict) -> SweepConfig:
    return validated({**STAGE, **sections, "sweep": grid}, "sweep.yaml", SweepConfig)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "loss": st.lists(st.sampled_from(["dpo", "dpo_norm", "simpo", "ipo"]), min_size=1, unique=True),
            "beta": st.lists(st.floats(1e-3, 10), min_size=1, max_size=3, unique=True),
            "learning_rate": st.lists(st.floats(1e-8, 1e-3), min_size=1, max_size=3, unique=True),
            "seed": st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
        },
    ).filter(bool)
)
def test_every_combination_is_one_member_and_nothing_else_changes(grid):
    config = sweep(grid)
    members = members_of(config)
    assert len(members) == prod(len(values) for values in grid.values())
    assert [member.number for member in members] == list(range(1, len(members) + 1))
    assert len({tuple(member.settings.items()) for member in members}) == len(members)
    assert len({member.config.name for member in members}) == len(members)
    for member in members:
        for name, (section, field) in DIMENSIONS.items():
            expected = member.settings[name] if name in grid else getattr(getattr(config, section), field)
            if name == "beta" and "beta" not in grid:  # the recipe leaves it empty
                expected = member.config.loss.traits.usual_beta
            assert getattr(getattr(member.config, section), field) == expected
        assert member.config.data == config.data
        assert member.config.checkpoint == config.checkpoint


def test_the_deployment_s_form_holds_a_sweep_that_runs():
    deployments = load_yaml(Path(__file__).parents[3] / "prefect.yaml")["deployments"]
    (found,) = [
        deployment for deployment in deployments if deployment["entrypoint"] == "flows/dpo_sweep.py:dpo_sweep"
    ]
    assert len(members_of(validated(found["parameters"]["config"], "prefect.yaml", SweepConfig))) == 4


def test_members_of_several_objectives_have_each_its_usual_beta_unless_the_recipe_names_one():
    several = {"loss": ["dpo", "simpo"]}
    assert [member.config.loss.beta for member in members_of(sweep(several))] == [0.1, 2.0]
    assert [member.config.loss.beta for member in members_of(sweep(several, loss={"beta": 0.5}))] == [
        0.5,
        0.5,
    ]


def test_a_member_in_words():
    members = members_of(sweep({"beta": [5.0, 0.1], "learning_rate": [5e-7], "loss": ["dpo"]}))
    assert [member.label for member in members] == [
        "loss dpo, beta 5, learning rate 5e-07",
        "loss dpo, beta 0.1, learning rate 5e-07",
    ]


@pytest.mark.parametrize(
    ("grid", "sections", "message"),
    [
        ({}, {}, "the sweep has no values"),
        ({"beta": [1, 1.0]}, {}, "sweep.beta names a value twice"),
        (
            {"beta": [1 + i / 999 for i in range(33)], "seed": [*range(33)]},
            {},
            r"1,089 members \(33 beta, 33 seed\)",
        ),
        ({"beta": [0]}, {}, r"sweep\.beta\.0 is 0"),
        ({"bta": [1]}, {}, r"sweep\.bta is not known \(did you mean beta\?\)"),
        ({"metric": "rewards/margins", "beta": [1]}, {}, "expected one of 'rewards/accuracies'"),
        ({"seed": [1, 2]}, {"train": {"num_epochs": 1}}, "would train the same model several times"),
        ({"loss": ["dpo", "exo_pair"]}, {}, "the member with loss exo_pair is no valid run"),
        ({"beta": [0.1]}, {"losses": [{"name": "dpo"}]}, "sweep.loss and sweep.beta are values of loss"),
        ({"loss": ["simpo"]}, {"reference": {"source": "org/other"}}, "simpo uses no reference"),
    ],
)
def test_what_is_no_sweep_is_refused_with_a_sentence(grid, sections, message):
    with pytest.raises(ConfigError, match=message):
        sweep(grid, **sections)


def test_seeds_of_an_adapter_do_change_something():
    assert len(members_of(sweep({"seed": [1, 2]}, train={"num_epochs": 1}, adapter={"kind": "lora"}))) == 2


def test_a_winner_by_a_judge_needs_one():
    grid = {"beta": [0.1, 0.5], "metric": "judge/win_rate"}
    with pytest.raises(ConfigError, match="judge/win_rate needs somebody who judges"):
        sweep(grid)
    judged = sweep(grid, judge={"kind": "reward_model", "model": "org/rm"})
    assert all(member.config.judge.is_on for member in members_of(judged))
