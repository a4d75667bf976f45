"""What every value of the contract is: a frozen group of named fields, and the walks over it.

``content_of`` is what fingerprints are made of, ``paths`` what is mounted and checked.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class NotContent:
    """Marks a field that cannot change a step's output (a path, a name, a batch shape): it stays out of fingerprints."""


@dataclass(frozen=True)
class NotContentAt:
    """Marks a field that was added later: at ``value`` a step does what it did before there was the field, and its
    fingerprint is that of before."""

    value: object


@dataclass(frozen=True)
class NotContentWhere:
    """Marks a field that cannot change a step's output where ``holds`` of the group that it belongs to."""

    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class ContentAs:
    """Marks a field that stands in fingerprints as ``written`` gives it."""

    written: Callable[[Any], object]


_SPELLING = {
    "gguf": "GGUF",
    "kl": "KL",
    "sft": "SFT",
    "grpo": "GRPO",
    "ld": "LD",
    "rpo": "RPO",
    "wpo": "WPO",
    "dpop": "DPOP",
    "bco": "BCO",
    "gib": "GiB",
    "wandb": "W&B",
}


def _label(name: str, _: object) -> str:
    """A setting's name as a form shows it: gguf_file -> GGUF file."""
    words = " ".join(_SPELLING.get(word, word) for word in name.split("_"))
    return words[0].upper() + words[1:]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    # NaN and infinity (a metric of no rows) are written as text: as JSON's null they could not be read back.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="strings",
        field_title_generator=_label,
        model_title_generator=lambda model: model.__name__.removesuffix("Config"),
    )

    def paths(self) -> Iterator[Path]:
        """Return every path in it, however deep."""
        return _paths_in([getattr(self, name) for name in type(self).model_fields])

    def with_paths(self, changed: Callable[[Path], Path]) -> Self:
        """Return the same with each of its paths as ``changed`` gives it."""
        return self.model_copy(
            update={name: _with_paths(getattr(self, name), changed) for name in type(self).model_fields}
        )


def _paths_in(value: object) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Section):
        yield from value.paths()
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _paths_in(inner)


def _with_paths(value: Any, changed: Callable[[Path], Path]) -> Any:
    if isinstance(value, Path):
        return changed(value)
    if isinstance(value, Section):
        return value.with_paths(changed)
    if isinstance(value, dict):
        return {name: _with_paths(inner, changed) for name, inner in value.items()}
    return (
        type(value)(_with_paths(inner, changed) for inner in value)
        if isinstance(value, list | tuple)
        else value
    )


def _leaves_out(mark: object, value: object, model: BaseModel) -> bool:
    if isinstance(mark, NotContentWhere):
        return mark.holds(model)
    return isinstance(mark, NotContent) or (isinstance(mark, NotContentAt) and mark.value == value)


def content_of(model: BaseModel) -> dict:
    """Return the part of a model that can change a step's output: its fields without those marked ``NotContent``, or
    marked ``NotContentAt`` the value that they have, or ``NotContentWhere`` it holds."""

    def content(value: object) -> object:
        if isinstance(value, BaseModel):
            return content_of(value)
        return [content(item) for item in value] if isinstance(value, tuple | list) else value

    kept = {}
    for name, field in type(model).model_fields.items():
        value, marks = getattr(model, name), field.metadata
        if any(_leaves_out(mark, value, model) for mark in marks):
            continue
        for mark in marks:
            value = mark.written(value) if isinstance(mark, ContentAs) else value
        kept[name] = content(value)
    return kept
