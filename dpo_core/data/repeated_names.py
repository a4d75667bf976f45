"""JSON objects that give one name several values, of which parsers keep the last: which was meant, nobody can tell.

``{"chosen": "a", "rejected": "b", "chosen": "c"}`` would train on c, and a alone would be lost. A name that is given the
same value again says nothing new. Of a row, the column with such an object is given as ``SEVERAL_VALUES``, so that the
row is dropped where the column counts.
"""

import json
from collections.abc import Iterable
from typing import Any, Final

# Stands for a value that cannot be told. It is JSON, as rows are text on their way, and no text, list, number or null.
SEVERAL_VALUES: Final = {"one name with several values": True}


class RepeatedName(ValueError):
    """An object gives one name several values."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these members, an ``object_pairs_hook``. Raises ``RepeatedName``."""
    made = dict(pairs)
    if len(made) < len(pairs) and SEVERAL_VALUES in marked(pairs).values():
        raise RepeatedName("one name with several values")
    return made


def marked(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these members, ``SEVERAL_VALUES`` for a name that is given more than one."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        is_new = name not in made or repr(made[name]) == repr(value)  # 1 and true are two values
        made[name] = value if is_new else SEVERAL_VALUES
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=once)


def value_of(text: str) -> Any:
    """Return what a JSON text holds. Raises ``ValueError``, ``RecursionError``, of names with several values
    ``RepeatedName``."""
    return _DECODER.decode(text)
