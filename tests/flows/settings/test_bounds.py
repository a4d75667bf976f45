"""Every number that a person, an event or another program may set has an upper bound that 64 bits hold.

A run's parameters are kept by the server as JSON; one whole number beyond 64 bits in them breaks its lists of runs for good.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, ValidationError

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.possible_texts import PLACES
from dpo_core.contract.source_config import DataSource
from flows.dpo_stage import dpo_stage
from flows.dpo_sweep import dpo_sweep
from flows.maintenance import failed_trigger, reap, resume_crashed, store_gc
from flows.post_training import dpo_after_sft, rlvr_after_dpo
from flows.quick_stage import dpo_quick
from flows.rlvr_intake import rlvr_intake
from flows.serve.settings import PROJECT, ServeSettings
from flows.settings.overrides import validated
from flows.settings.stage_config import StageConfig
from flows.terminal.cli import app
from tasks.handoff.schema import Tokens

FLOWS: tuple[Flow, ...] = (
    dpo_stage,
    dpo_quick,
    dpo_sweep,
    rlvr_intake,
    dpo_after_sft,
    rlvr_after_dpo,
    store_gc,
    reap,
    failed_trigger,
    resume_crashed,
)
HOLDS_64_BITS = (1 << 63) - 1
UPPER, LOWER = {"maximum", "exclusiveMaximum"}, {"minimum", "exclusiveMinimum"}
TYPES = {"type", "anyOf", "allOf", "oneOf", "$ref", "enum", "const"}


def schema_of(flow: Flow) -> dict[str, Any]:
    """The JSON Schema by which the server takes a run's parameters."""
    made = parameter_schema(flow.fn).model_dump()
    return {"type": "object", "properties": made["properties"], "definitions": made.get("definitions", {})}


def unbounded(schema: dict[str, Any], where: str, definitions: dict[str, Any]) -> Iterator[str]:
    """Places that take a number without an upper bound, or anything at all."""
    if "const" in schema or "enum" in schema:
        return
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        others = {key: value for key, value in definitions.items() if key != name}
        yield from unbounded(definitions[name], where, others) if name in definitions else ()
        return
    if schema.get("type") in ("integer", "number"):
        largest = max((schema[name] for name in UPPER & set(schema)), default=float("inf"))
        smallest = min((schema[name] for name in LOWER & set(schema)), default=float("-inf"))
        if largest > HOLDS_64_BITS or smallest < -HOLDS_64_BITS:
            yield f"{where}: from {smallest} to {largest}"
    if not TYPES & set(schema) or schema.get("additionalProperties") is True:
        yield f"{where}: anything"
    for name, inner in schema.get("properties", {}).items():
        yield from unbounded(inner, f"{where}.{name}", definitions)
    for several in ("anyOf", "allOf", "oneOf", "prefixItems"):
        for inner in schema.get(several, ()):
            yield from unbounded(inner, where, definitions)
    for one in ("items", "additionalProperties"):
        if isinstance(schema.get(one), dict):
            yield from unbounded(schema[one], f"{where}[]", definitions)


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.fn.__name__)
def test_every_number_of_a_runs_parameters_is_bounded(flow: Flow):
    schema = schema_of(flow)
    assert not list(unbounded(schema, flow.fn.__name__, schema["definitions"]))


def test_every_flow_that_can_be_deployed_is_looked_at():
    deployed = {
        deployment["entrypoint"].rpartition(":")[2]
        for deployment in yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    }
    assert deployed <= {flow.fn.__name__ for flow in FLOWS}


@pytest.mark.parametrize("model", [ServeSettings, Tokens], ids=lambda model: model.__name__)
def test_every_number_beside_a_runs_parameters_is_bounded(model: type):
    schema = model.model_json_schema()
    assert not list(unbounded(schema, model.__name__, schema.get("$defs", {})))


def numbers_of_the_command_line() -> Iterator[tuple[str, float]]:
    """Each option that takes a number, and the largest."""
    for command in app.registered_commands:
        assert command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if {int, float} & {kind, *get_args(kind)}:
                bounds = [mark.max for mark in marks if getattr(mark, "max", None) is not None]
                yield f"{command.callback.__name__} {name}", max(bounds, default=float("inf"))


def test_every_number_of_the_command_line_is_bounded():
    numbers = dict(numbers_of_the_command_line())
    assert {"gc keep", "emit_sft attempt", "intake max_download_gib"} <= set(numbers)
    assert [name for name, largest in numbers.items() if largest > HOLDS_64_BITS] == []


BEYOND: dict[str, Callable[[dict], None]] = {
    "seed": lambda config: config["data"].update(seed=1 << 64),
    "a_setting_that_may_be_empty": lambda config: config.update(train={"max_steps": 10**20}),
    "an_integer_where_a_fraction_is_usual": lambda config: config.update(loss={"beta": 10**20}),
    "an_unknown_setting": lambda config: config.update(trial=1 << 63),
    "an_amount_as_a_number": lambda config: config["data"]["sources"][0].update(amount=10**30),
}


@pytest.mark.parametrize("change", BEYOND.values(), ids=BEYOND)
def test_the_server_refuses_a_run_whose_parameters_do_not_fit_64_bits(change: Callable[[dict], None]):
    config = {"checkpoint": {"source": "a"}, "data": {"sources": [{"source": "b"}], "seed": 8}}
    validator = Draft202012Validator(schema_of(dpo_stage))
    assert not list(validator.iter_errors({"config": config}))
    change(config)
    assert list(validator.iter_errors({"config": config}))


@pytest.mark.parametrize("amount", [10**30, "9" * 5000, "0." + "9" * 5000, float("inf"), float("nan")])
def test_an_amount_has_a_length_that_numbers_have(amount: object):
    with pytest.raises(ValidationError):
        DataSource(source="rows.jsonl", amount=amount)


@pytest.mark.parametrize(
    ("amount", "sentence"),
    [
        ("100%", "expected a proportion with a dot"),
        ("1e6", "'1e6' is no amount"),
        ("-1", "is no amount"),
        ("all", "is no amount"),
        ("1,000", "is no amount"),
        (-0.5, "'-0.5' is no amount"),
        (1e-5, "'1e-05' is no amount"),
        (1.0e6, "more than 1,000 times the set; write 1000000 for that many rows"),
        ("2000.0", "write 2000 for"),
        (10**4000, "is no amount"),
    ],
)
def test_what_is_no_amount_is_told_what_one_is(amount: object, sentence: str):
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        DataSource(source="rows.jsonl", amount=amount)


@pytest.mark.parametrize("amount", [1, 100, 0.05, 1.0, "3.0", "100", ".5", "1.", 1 / 3])
def test_amounts_that_people_write_are_taken(amount: object):
    assert DataSource(source="rows.jsonl", amount=amount).amount == str(amount)


@pytest.mark.parametrize("text", [".inf", ".nan", "1.0e+400"])
def test_no_setting_is_infinite(text: str):
    with pytest.raises(ValidationError):
        StageConfig.model_validate(
            {
                "checkpoint": {"source": "a"},
                "data": {"sources": [{"source": "b"}]},
                "loss": {"beta": float(text.removeprefix("."))},
            }
        )


BASE = {"checkpoint": {"source": "a"}, "data": {"sources": [{"source": "b"}]}}


def config_with(setting: str, value: object) -> dict:
    """Values of a run in which one setting has this value."""
    values: Any = json.loads(json.dumps(BASE))
    *sections, last = setting.split(".")
    inner = values
    for name in sections:
        inner = inner[int(name)] if isinstance(inner, list) else inner.setdefault(name, {})
    inner[last] = value
    return values


TEXTS = (
    *("checkpoint.source", "checkpoint.revision", "checkpoint.gguf_file", "data.sources.0.source"),
    *("data.sources.0.split", "reference.source", "store.root", "upload.directory", "upload.repo_id"),
    *(
        "tracking.notes",
        "handoff.probe_prompt",
        "handoff.signing_key_file",
        "image.wheelhouse",
        "compute.python",
    ),
)


@pytest.mark.parametrize("setting", [*TEXTS, "data.sources.0.columns.prompt"])
@pytest.mark.parametrize("text", ["a\0b", "a\ud800"], ids=["NUL", "half of a pair"])
def test_no_text_holds_what_no_text_can_have(setting: str, text: str):
    """Such a path ends in Python's own error where it is opened, such a text in the server's database."""
    with pytest.raises(ConfigError) as caught:
        validated(config_with(setting, text), "recipe")
    assert re.search(rf"{re.escape(setting)} (holds the character U\+(0000|D800)|is )", str(caught.value))
    str(caught.value).encode()


def test_values_that_are_nested_without_end_are_refused_in_words():
    """A depth that Python's own recursion would end, wherever it came to it first."""
    for depth in (200, 20_000):
        nested: dict = {}
        for _ in range(depth):
            nested = {"a": nested}
        with pytest.raises(
            ConfigError, match=r"data\.sources\.0\.chat_template_kwargs holds more than 100 values"
        ):
            validated(config_with("data.sources.0.chat_template_kwargs", {"n": nested}), "recipe")


@pytest.mark.parametrize("setting", [one for one in TEXTS if one.rpartition(".")[2] in PLACES])
@pytest.mark.parametrize("text", ["x" * 300, "org/" + "ä" * 150, "/" + "/".join(["y" * 200] * 40)], ids=len)
def test_no_path_is_longer_than_a_file_system_s(setting: str, text: str):
    with pytest.raises(ConfigError, match=r"longer than a path can be|at most 4096|should match|relative"):
        validated(config_with(setting, text), "recipe")


def test_the_paths_of_a_list_are_paths():
    with pytest.raises(ConfigError, match=r"benchmarks\.task_folders\.0 begins"):
        validated(config_with("benchmarks.task_folders", ["x" * 300]), "recipe")


def test_every_setting_that_is_a_path_is_known_as_one():
    def paths(model: type[BaseModel]) -> Iterator[str]:
        for name, field in model.model_fields.items():
            for kind in kinds_in(field.annotation):
                if issubclass(kind, BaseModel):
                    yield from paths(kind)
                elif issubclass(kind, Path):
                    yield name

    assert set(paths(StageConfig)) <= PLACES


def kinds_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for inner in get_args(annotation):
        yield from kinds_in(inner)


def test_a_text_of_any_length_gives_a_short_message():
    for setting in ("train.precision", "checkpoint.chat_template", "compute.launcher", "name"):
        with pytest.raises(ConfigError) as caught:
            validated(config_with(setting, "x" * 100_000), "recipe")
        assert len(str(caught.value)) < 2000
