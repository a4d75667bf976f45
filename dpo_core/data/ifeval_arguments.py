"""What the arguments of IFEval's instructions may be (arXiv 2311.07911), and whether a row's are."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

Relation = Literal["less than", "at least"]
Language = Literal[
    "ar", "bg", "bn", "de", "en", "es", "fa", "fi", "fr", "gu", "he", "hi", "it", "ja", "kn", "ko", "ml", "mr", "ne", "pa",
    "pl", "pt", "ru", "sw", "ta", "te", "th", "uk", "ur", "vi",
]  # fmt: skip


def misfit_of(name: str, checker: Callable[..., bool], arguments: Mapping[str, object]) -> str | None:
    """Say why ``checker`` could not be called with these arguments beside the answer, None if it could."""
    parameters = list(inspect.signature(checker).parameters.values())[1:]  # the first is the answer
    wanted = {parameter.name: parameter.annotation for parameter in parameters}
    if set(arguments) != set(wanted):
        return f"{name} takes {', '.join(wanted) or 'no arguments'}, got {', '.join(arguments) or 'none'}"
    wrong = next((key for key, value in arguments.items() if not _is(value, wanted[key])), None)
    return (
        None
        if wrong is None
        else f"{name}: {wrong} is {_short(arguments[wrong])}, expected {_called(wanted[wrong])}"
    )


def _is(value: object, kind: Any) -> bool:
    """Whether a value is of a kind; a whole number may come as 15.0 from a column with nulls."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is list:
        return type(value) is list and all(type(item) is str for item in value)
    return type(value) is kind or (kind is int and isinstance(value, float) and value.is_integer())


def _called(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return "a list of texts" if get_origin(kind) is list else kind.__name__


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
