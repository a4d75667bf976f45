"""A recipe file and ``--set section.field=value`` -> ``StageConfig``, with errors that name the field and what it takes."""

import difflib
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml
from pydantic import BaseModel, ValidationError

from dpo_core.contract.errors import ConfigError
from flows.settings.bounded_yaml import MAX_CHARACTERS, load_within_limits
from flows.settings.stage_config import StageConfig

Values = dict[str, Any]
Config = TypeVar("Config", bound=BaseModel)


@overload
def read_recipe(path: Path, overrides: list[str]) -> StageConfig: ...


@overload
def read_recipe(path: Path, overrides: list[str], kind: type[Config]) -> Config: ...


def read_recipe(path: Path, overrides: list[str], kind: type[BaseModel] = StageConfig) -> BaseModel:
    """Return the recipe with the overrides applied. Raises ``ConfigError``."""
    return validated(apply_overrides(load_yaml(path), overrides), str(path), kind)


def load_yaml(path: Path) -> Values:
    """Return a YAML file as a dict. Raises ``ConfigError`` that says where it breaks."""
    try:
        with path.open(encoding="utf-8") as file:
            values = load_within_limits(file.read(MAX_CHARACTERS + 1))
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        there = f" In {path.parent} there are: {', '.join(near)}." if near else ""
        raise ConfigError(f"The recipe {path} does not exist.{there}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(
            f"The recipe {path} is not valid YAML: {where}{getattr(error, 'problem', error)}."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"The recipe {path} holds {type(values).__name__}, expected sections such as `checkpoint:` and "
            "`data:`."
        )
    return values


def apply_overrides(values: Values, overrides: list[str]) -> Values:
    """Return a copy of ``values`` with each ``a.b=value`` set; the value is read as YAML. Raises ``ConfigError``."""
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or not dotted.strip():
            raise ConfigError(f"--set {override}: expected section.field=value, e.g. --set loss.beta=0.1.")
        try:
            value = load_within_limits(text) if text else None
        except yaml.YAMLError as error:
            raise ConfigError(
                f"--set {override}: the value is not valid YAML ({getattr(error, 'problem', error)})."
            ) from error
        values = _with(values, dotted.strip().split("."), value, override)
    return values


def _with(values: Any, path: list[str], value: Any, override: str) -> Any:
    """``values`` with the item at ``path`` replaced; a number in the path is a place in a list (data.sources.0.amount)."""
    name, rest = path[0], path[1:]
    if isinstance(values, list):
        if not name.isdigit() or int(name) >= len(values):
            raise ConfigError(
                f"--set {override}: {name!r} is no place in a list of {len(values)}; expected 0 to "
                f"{len(values) - 1}."
            )
        old = values[int(name)]
        new = _with(old, rest, value, override) if rest else value
        return [*values[: int(name)], new, *values[int(name) + 1 :]]
    if not isinstance(values, dict | None):
        raise ConfigError(f"--set {override}: there is nothing below {values!r}.")
    known = values or {}
    return {**known, name: _with(known.get(name), rest, value, override) if rest else value}


@overload
def validated(values: Values, origin: str) -> StageConfig: ...


@overload
def validated(values: Values, origin: str, kind: type[Config]) -> Config: ...


def validated(values: Values, origin: str, kind: type[BaseModel] = StageConfig) -> BaseModel:
    """Return the checked config. Raises ``ConfigError`` with one line a problem: field, what was got, what is allowed."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [
            explain(problem, kind)
            for problem in error.errors(include_url=False)
            if problem["type"] != "default_factory_not_called"
        ]  # follows from another problem of its section
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{origin} has {count}: " + "; ".join(problems)) from None


def explain(problem: Any, kind: type[BaseModel] = StageConfig) -> str:
    """Return one of pydantic's problems in words for a user."""
    field = ".".join(str(part) for part in problem["loc"])
    got, context = problem["input"], problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            return f"{field} is not known{_suggestion(problem['loc'], kind)}"
        case "missing":
            return f"{field} is missing"
        case "literal_error":
            return f"{field} is {_short(got)}, expected one of {context['expected'].replace(' or ', ', ')}"
        case "value_error":
            return f"{field}: {context['error']}" if field else str(context["error"])
        case _:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            return f"{field or 'the recipe'} is {_short(got)}: {message.removeprefix('input ')}"


def _short(got: Any) -> str:
    text = repr(got)
    return text if len(text) <= 80 else text[:77] + "..."


def _suggestion(location: tuple[str | int, ...], kind: type[BaseModel]) -> str:
    """ " (did you mean ...?)" for a misspelt name, or the list of names that exist there."""
    names = field_names(location[:-1], kind)
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    if close:
        return f" (did you mean {close[0]}?)"
    elsewhere = [
        f"{section}.{location[-1]}"
        for section in field_names((), kind)
        if location[-1] in field_names((section,), kind)
    ]
    if elsewhere:
        return f" (did you mean {elsewhere[0]}?)"
    return f"; known are {', '.join(names)}" if names else ""


def field_names(location: tuple[str | int, ...], kind: type[BaseModel] = StageConfig) -> list[str]:
    """Return names of the settings at a place of the config."""
    model: type[BaseModel] | None = kind
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model else None
        model = _model_in(field.annotation) if field else None
    return list(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field's type is or holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in getattr(annotation, "__args__", ()) if (found := _model_in(inner))), None)
