"""Objects that wrap rows, ``{"data": [...]}`` instead of ``[...]``: which they are, and which lists would be missed."""

import re
from pathlib import Path
from typing import Any

from dpo_core.contract.errors import DataError
from dpo_core.data.deep_json import TOO_DEEP
from dpo_core.data.repeated_names import SEVERAL_VALUES

WRAPPERS = ("data", "rows", "train", "examples", "instances")
OTHER_SPLITS = ("test", "eval", "evaluation", "validation", "valid", "val", "dev")  # beside {"train": [...]}
WRAPS = re.compile(rf'{{\s*"(?:{"|".join(WRAPPERS)})"\s*:\s*\[')


def require_one_list(path: Path, wrappers: list[str], firsts: dict[str, dict]) -> None:
    """Raise ``DataError`` if an object of which the lists ``wrappers`` hold rows has more such than one. ``firsts``: the
    first objects of all of its lists."""
    found = [*wrappers, *_missed(wrappers[0], firsts)] if wrappers else []
    if len(found) > 1:
        raise DataError(
            f"{path} is one object with several lists of rows, {' and '.join(found)}. Write the rows that you want as JSON "
            "lines (.jsonl)."
        )


def may_wrap(path: Path, value: Any) -> bool:
    """Return whether it is an object that wraps rows, or one whose rows cannot be told all together."""
    if wrapped_rows(path, value) is not None:
        return True
    return isinstance(value, dict) and any(value.get(key) in (TOO_DEEP, SEVERAL_VALUES) for key in WRAPPERS)


def wrapped_rows(path: Path, value: Any) -> list | None:
    """Return the rows in an object that wraps them, None for an object that is a row itself. Raises ``DataError``."""
    if not isinstance(value, dict) or "chosen" in value or "rejected" in value:
        return None
    found = [key for key in WRAPPERS if isinstance(value.get(key), list)]
    if not found:
        return None
    require_one_list(path, found, {key: first_object(rows) for key, rows in value.items()})
    return value[found[0]]


def _missed(wrapper: str, firsts: dict[str, dict]) -> list[str]:
    """Names of what would be missed beside the list of rows that is read: lists whose ``firsts`` are rows, too, and not
    plainly another split's."""
    own = firsts.get(wrapper, {})
    return [
        name
        for name, first in firsts.items()
        if name not in WRAPPERS
        and first
        and ({"chosen", "rejected"} <= first.keys() or first.keys() == own.keys())
        and not (wrapper == "train" and name in OTHER_SPLITS)
    ]


def first_object(rows: Any) -> dict:
    """Return the first object of a list; an empty one of anything else."""
    return rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}


def surely_wrapped(path: Path, value: Any) -> list | None:
    """Return the rows in an object that wraps them among other values of a file (``cat a.json b.json``): its list holds such
    as have answers. Any other is a row, whose columns may have any name. Raises ``DataError``."""
    if (
        not isinstance(value, dict)
        or "chosen" in value
        or not any(_holds_pairs(value.get(key)) for key in WRAPPERS)
    ):
        return None
    return wrapped_rows(path, value)


def _holds_pairs(rows: Any) -> bool:
    return {"chosen", "rejected"} <= first_object(rows).keys()
