"""Recipes and --set: values as YAML, and errors that name field, value and what is allowed."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.contract.errors import ConfigError
from flows.settings.overrides import apply_overrides, read_recipe, validated
from flows.settings.stage_config import StageConfig
from flows.settings.sweep_config import SweepConfig

MINIMAL = {"checkpoint": {"source": "org/model"}, "data": {"sources": [{"source": "org/set"}]}}


def error_of(values: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        validated(values, "recipe.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("loss.beta=0.1", lambda c: c.loss.beta, 0.1),
        ("loss.name=simpo", lambda c: c.loss.name, "simpo"),
        ("optim.learning_rate=1e-6", lambda c: c.optim.learning_rate, 1e-6),  # YAML 1.1 reads 1e-6 as text
        ("train.checkpoint_every=50", lambda c: c.train.checkpoint_every, 50),
        ("train.gradient_checkpointing=true", lambda c: c.train.gradient_checkpointing, True),
        ("train.per_device_batch_pairs=", lambda c: c.train.per_device_batch_pairs, None),
        ("data.sources.0.amount=100", lambda c: c.data.sources[0].amount, "100"),
        ("data.sources.0.amount=0.5", lambda c: c.data.sources[0].amount, "0.5"),
        ("data.sources=[{source: a/b}, {source: c/d}]", lambda c: len(c.data.sources), 2),
        (
            "data.sources.0.columns={chosen: winner}",
            lambda c: c.data.sources[0].columns,
            {"chosen": "winner"},
        ),
        ("name=x=y", lambda c: c.name, None),
    ],
)
def test_a_value_is_read_as_yaml(override, read, expected):
    if expected is None and override.startswith("name"):
        with pytest.raises(ConfigError, match="name is 'x=y'"):
            validated(apply_overrides(MINIMAL, [override]), "recipe")
    else:
        assert read(validated(apply_overrides(MINIMAL, [override]), "recipe")) == expected


def test_later_overrides_win_and_the_input_stays_as_it_was():
    values = {"loss": {"beta": 1.0}}
    assert apply_overrides(values, ["loss.beta=2", "loss.beta=3"]) == {"loss": {"beta": 3}}
    assert values == {"loss": {"beta": 1.0}}


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_every_number_python_prints_is_understood(beta):
    assert validated(apply_overrides(MINIMAL, [f"loss.beta={beta!r}"]), "recipe").loss.beta == pytest.approx(
        beta
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.beta", "expected section.field=value"),
        ("=3", "expected section.field=value"),
        ("loss.beta=[1", "not valid YAML"),
        ("data.sources.7.amount=3", "no place in a list of 1"),
        ("name.x=3", "nothing below 'a'"),
    ],
)
def test_a_malformed_override_is_named(override, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        apply_overrides({**MINIMAL, "name": "a"}, [override])


def test_a_misspelt_setting_gets_a_suggestion():
    assert "loss.betta is not known (did you mean beta?)" in error_of({**MINIMAL, "loss": {"betta": 1}})
    assert "los is not known (did you mean loss?)" in error_of({**MINIMAL, "los": {"beta": 1}})
    assert "did you mean optim.learning_rate?" in error_of({**MINIMAL, "train": {"learning_rate": 1}})
    misspelt = {**MINIMAL, "data": {"sources": [{"source": "a/b", "amoumt": 1}]}}
    assert "data.sources.0.amoumt is not known (did you mean amount?)" in error_of(misspelt)


def test_wrong_values_say_what_was_got_and_what_is_allowed():
    assert "loss.beta is 0: should be greater than 0" in error_of({**MINIMAL, "loss": {"beta": 0}})
    message = error_of({**MINIMAL, "loss": {"name": "dpoo"}})
    assert "loss.name is 'dpoo', expected one of 'dpo', 'dpo_norm', 'simpo', 'ipo', 'wpo'" in message
    assert "checkpoint is missing" in error_of({"data": MINIMAL["data"]})
    assert "loss: ipo defines no label smoothing" in error_of(
        {**MINIMAL, "loss": {"name": "ipo", "label_smoothing": 0.1}}
    )


@pytest.mark.parametrize(
    "other",
    [
        {"compute": {"sharding": "zero3"}},
        {"adapter": {"kind": "lora"}},
        {"optim": {"optimizer": "adamw_8bit"}},
    ],
)
def test_pure_bf16_is_refused_where_its_masters_are_not_kept(other):
    assert (
        validated({**MINIMAL, "train": {"precision": "bf16_pure"}}, "recipe.yaml").train.precision
        == "bf16_pure"
    )
    assert "Use train.precision bf16" in error_of({**MINIMAL, "train": {"precision": "bf16_pure"}, **other})


def test_trackers_are_refused_where_the_image_holds_none():
    tracked = {**MINIMAL, "tracking": {"trackers": ["tensorboard"]}}
    assert validated(tracked, "recipe.yaml").tracking.trackers == ("tensorboard",)
    assert "holds no trackers; set image.use" in error_of({**tracked, "compute": {"launcher": "docker"}})
    own = {"compute": {"launcher": "docker"}, "image": {"use": "sha256:" + "a" * 64}}
    assert validated({**tracked, **own}, "recipe.yaml").image.use


def test_all_problems_are_told_at_once():
    assert error_of({**MINIMAL, "loss": {"name": "dop"}}).startswith(
        "recipe.yaml has a problem: loss.name is 'dop'"
    )
    assert "recipe.yaml has 2 problems: " in error_of({**MINIMAL, "loss": {"beta": -1, "nme": "dpo"}})


def test_a_missing_recipe_lists_its_neighbours(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("a: 1")
    with pytest.raises(
        ConfigError, match=r"quikstart\.yaml does not exist. In .* there are: quickstart\.yaml"
    ):
        read_recipe(tmp_path / "quikstart.yaml", [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML: line 1"),
        ("- a\n- b", "holds list, expected sections"),
        ("", "holds NoneType"),
    ],
)
def test_a_recipe_that_is_no_recipe(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path, [])


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 9)
)
STAIRS = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 100))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(BOMB, "line 5, .*more than 20,000 values", id="a billion values"),
        pytest.param(MERGED, "line 5, .*more than 20,000 values", id="a billion merges"),
        pytest.param("a: &a [*a]", r"line 1, .*\*a refers to what it is part of", id="without end"),
        pytest.param("a: &a {<<: *a}", r"\*a refers to what it is part of", id="merged without end"),
        pytest.param("a: " + "[" * 200_000 + "]" * 5, "nested more than 32 levels deep", id="deep"),
        pytest.param(
            "".join(f"{' ' * n}a:\n" for n in range(400)), "nested more than 32 levels deep", id="deep blocks"
        ),
        pytest.param(STAIRS, "nested more than 32 levels deep", id="deep by references"),
        pytest.param(
            "name: a\ntrain:\n  seed: 1\n  seed: 2\n",
            "line 4, .*`seed` stands here a second time",
            id="twice",
        ),
        pytest.param("a: x\n" * 60_000, "longer than 262,144 characters", id="long"),
        pytest.param("a: [" + "x," * 100_000 + "]", "more than 20,000 values", id="wide"),
        pytest.param("a: 1\nb: 2026-13-41", "line 2, column 4: ValueError: month must be", id="no date"),
        pytest.param("a: " + "1" * 5000, "line 1, column 4: ValueError", id="no number of digits"),
        pytest.param("a: !!bool maybe", "line 1, column 4: KeyError: 'maybe'", id="no boolean"),
        pytest.param("a: !!timestamp maybe", "line 1, column 4: AttributeError", id="no time"),
        pytest.param("a: !!python/object/apply:os.getpid []", "could not determine a constructor", id="code"),
        pytest.param("? [1]\n: 2", "found unhashable key", id="a list as a key"),
    ],
)
@pytest.mark.parametrize("of", ["recipe", "--set"])
def test_yaml_that_stands_for_more_than_a_machine_holds_is_refused(tmp_path, text, message, of):
    (tmp_path / "recipe.yaml").write_text(text if of == "recipe" else "name: x")
    expected = f"(?s)not valid YAML.*{message}" if of == "recipe" else "the value is not valid YAML"
    started = time.process_time()
    with pytest.raises(ConfigError, match=expected):
        read_recipe(tmp_path / "recipe.yaml", [] if of == "recipe" else [f"data={text}"])
    assert time.process_time() - started < 10


def test_a_recipe_may_refer_to_its_own_values(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "checkpoint: {source: &model org/model}\nreference: {source: *model}\n"
        "data:\n  sources:\n  - &one {source: a/b, split: test}\n"
        "  - {<<: *one, source: c/d}\n"
    )
    config = read_recipe(tmp_path / "recipe.yaml", [])
    assert config.reference.source == "org/model"
    assert [(source.source, source.split) for source in config.data.sources] == [
        ("a/b", "test"),
        ("c/d", "test"),
    ]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_recipes_of_the_repository_are_valid(path):
    kind = SweepConfig if path.stem.startswith("sweep") else StageConfig
    assert read_recipe(path, [], kind).name == path.stem
