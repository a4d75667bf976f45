"""No name of a source costs a tracker its run, and no two sources share a curve."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.contract.metric_names import of_source
from dpo_core.training.tracker_names import TrackerNames

MARGIN = "rewards/margins"
ODD = (
    "pairs.jsonl#2",
    "a+b (1).jsonl",
    "a<b.jsonl",
    "a>b.jsonl",
    "/data/pairs.jsonl",
    "//data/./pairs.jsonl",
    "../pairs.jsonl",
    "../../../pairs.jsonl",
    "a" * 300,
    "b" * 300,
    "c/" * 150,
    "海" * 100,
)


@pytest.mark.parametrize("tracker", ["mlflow", "dvclive"])
def test_names_that_become_files_are_fit_for_it(tracker):
    metrics = {of_source(label, MARGIN): float(number) for number, label in enumerate(ODD)}
    named = TrackerNames(tracker).of(metrics)
    check(named)
    assert list(named.values()) == list(metrics.values())
    assert [name.removeprefix("by_source/").removesuffix(f"/{MARGIN}") for name in named][:5] == [
        "pairs.jsonl_2",
        "a_b _1_.jsonl",
        "a_b.jsonl",
        f"a_b.jsonl/{MARGIN}_2",
        "data/pairs.jsonl",
    ]


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=8))
def test_any_names_are(labels):
    metrics = {of_source(label, MARGIN): 1.0 for label in labels}
    named = TrackerNames("mlflow").of(metrics)
    check(named)
    assert len(named) == len(metrics)


def check(names) -> None:
    """By MLflow's own rules and a file system's."""
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

    for name in names:
        _validate_metric_name(name)
        assert len(name) <= MAX_ENTITY_KEY_LENGTH
        assert max(len(part.encode()) for part in Path(name).parts) <= 255


def test_a_metric_keeps_its_name_where_another_is_missing():
    """A batch may hold no pair of a source."""
    first, second = (of_source(label, MARGIN) for label in ("a<b", "a>b"))
    names = TrackerNames("mlflow")
    one, two = names.of({first: 1.0, second: 2.0})
    assert one != two
    assert list(names.of({second: 2.0})) == [two]
    assert list(names.of({first: 1.0})) == [one]


def test_names_that_are_fit_and_those_of_other_trackers_stay():
    plain = {"loss": 1.0, "eval/rewards/margins": 0.5, of_source("org/a-b_c.jsonl", MARGIN): 0.0}
    assert TrackerNames("mlflow").of(plain) == plain
    odd = {of_source(label, MARGIN): 1.0 for label in ODD}
    for tracker in ("tensorboard", "wandb", "trackio"):
        assert TrackerNames(tracker).of(odd) == odd
