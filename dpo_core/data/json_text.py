"""Values that rows hold as text: JSON, or messages in Python's spelling; and what of a value says nothing."""

import json
from typing import Any

from dpo_core.contract.drops import RowDropped
from dpo_core.data.python_text import of_python_text
from dpo_core.data.repeated_names import RepeatedName, value_of


def without_nulls(value: Any) -> Any:
    """Drop null fields of objects, recursively: columnar files fill every field that any row has."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def is_nothing(value: Any) -> bool:
    """Return whether a value is null, empty, or made of such alone: columnar files give a row that has no call an object of
    nulls."""
    if isinstance(value, dict | list):
        return all(map(is_nothing, value.values() if isinstance(value, dict) else value))
    return value is None or value == ""


def of_json_text(value: Any) -> tuple[Any, bool]:
    """Return what a string of JSON holds if it is an object or a list, else ``value`` itself; and whether a name has several
    values in it, so that another value than the one returned may be meant."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value, False
    for parse, is_repeated in ((value_of, False), (json.loads, True)):
        try:
            return parse(value), is_repeated
        except RepeatedName:
            continue
        except (
            ValueError,
            RecursionError,
        ):  # or nested beyond what the parser follows: "[[[[ ...", no JSON of anybody's
            break
    return value, False


def of_text(value: Any) -> tuple[Any, bool]:
    """Return ``of_json_text(value)``, also for messages in Python's spelling."""
    found, is_repeated = of_json_text(value)
    return (
        (of_python_text(value), False) if found is value and isinstance(value, str) else (found, is_repeated)
    )


def from_json_text(value: Any) -> Any:
    """Return the value that a string of JSON holds if it is an object or a list, else ``value`` itself: also where a name
    has several values, which the text keeps."""
    found, is_repeated = of_json_text(value)
    return value if is_repeated else found


def unambiguous(value: Any) -> Any:
    """Return what a string of JSON holds, or ``value`` itself. Raises ``RowDropped`` where a name has several values."""
    found, is_repeated = of_json_text(value)
    if is_repeated:
        raise RowDropped("repeated_name", f"one name with several values in {value[:60]!r}")
    return found
