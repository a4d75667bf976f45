"""Rows of an Arrow batch as Python values, whatever stands in columns that no preference is made of.

Such a column may hold what Python cannot: a date of the year 12000, a time in nanoseconds, a picture of megabytes. Dates
that Python knows become its own; the others, and all of their column, whole numbers as they are stored. Bytes that are no
text are counted, not copied; however they are stored (as they are, as views, once for many rows), text is text. A map is an
object.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from dpo_core.data.repeated_names import SEVERAL_VALUES, marked, value_of

BYTES_AT_ONCE = 64 << 20  # of a batch that become Python values together


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the batch's rows, one after the other. Raises ``MemoryError``."""
    num_rows = max(1, batch.num_rows * BYTES_AT_ONCE // max(BYTES_AT_ONCE, batch.nbytes))
    for first in range(0, batch.num_rows, num_rows):
        yield from _rows(batch.slice(first, num_rows))


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    columns = [_values(batch.column(number)) for number in range(batch.num_columns)]
    names = batch.schema.names
    object_of = dict if len(set(names)) == len(names) else marked
    for row in zip(*columns, strict=True) if columns else ({} for _ in range(batch.num_rows)):
        yield object_of(zip(names, row, strict=True))


def _values(column: pa.Array) -> list[Any]:
    try:
        return _plain(column)
    except MemoryError:
        raise
    except (
        Exception
    ):  # of a date beyond Python's years, a zone that it does not know, nanoseconds: each its own
        return _stored(column)


def _stored(column: pa.Array) -> list[Any]:
    """The column with dates and times as the numbers that are stored, texts as their bytes; nulls where not even that can be
    told."""
    if _has_repeated_names(column.type):
        return [SEVERAL_VALUES] * len(column)
    for leaf in (_without_times, _without_texts):
        try:
            return _plain(column.cast(_recast(column.type, leaf)))
        except MemoryError:
            raise
        except Exception:
            continue
    return [None] * len(column)


def _has_repeated_names(kind: pa.DataType) -> bool:
    """Whether objects in it have several fields of one name, which no Python object has."""
    fields = [kind.field(number) for number in range(kind.num_fields)]
    return len({field.name for field in fields}) < len(fields) or any(
        _has_repeated_names(field.type) for field in fields
    )


def _without_times(kind: pa.DataType) -> pa.DataType:
    """Whole numbers for dates and times; not for intervals (years, days, nanoseconds), of which Python has what it needs."""
    if not pa.types.is_temporal(kind) or pa.types.is_interval(kind):
        return kind
    return pa.int32() if kind.bit_width == 32 else pa.int64()


def _without_texts(kind: pa.DataType) -> pa.DataType:
    """Bytes for texts, one of which is no UTF-8: the others need not go with it. They are text again where they can be."""
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return pa.binary()
    return pa.large_binary() if pa.types.is_large_string(kind) else _without_times(kind)


def _recast(kind: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with ``leaf`` of each that holds no others."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _recast(field.type, leaf)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_recast(kind.value_type, leaf), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(_recast(kind.value_type, leaf))
    if pa.types.is_list(kind):
        return pa.list_(_recast(kind.value_type, leaf))
    if pa.types.is_map(kind):
        return pa.map_(_recast(kind.key_type, leaf), _recast(kind.item_type, leaf))
    if pa.types.is_dictionary(kind):
        return _recast(kind.value_type, leaf)
    return leaf(kind)


def _plain(column: pa.Array) -> list[Any]:
    values = column.to_pylist()
    return [_read(value, column.type) for value in values] if _is_coded(column.type) else values


def _unpacked(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves, where each that occurs is stored once for many rows."""
    while pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    return kind


def _is_bytes(kind: pa.DataType) -> bool:
    is_of_any_length = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return is_of_any_length or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind)


def _is_json(kind: pa.DataType) -> bool:
    """Whether it is JSON text, as `datasets` keeps a column whose values are of several kinds."""
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"


def _is_coded(kind: pa.DataType) -> bool:
    """Whether bytes, JSON text or maps stand anywhere in it."""
    kind = _unpacked(kind)
    if _is_bytes(kind) or _is_json(kind) or pa.types.is_map(kind):
        return True
    return any(_is_coded(kind.field(number).type) for number in range(kind.num_fields))


def _read(value: Any, kind: pa.DataType) -> Any:
    """A value without bytes, JSON text and maps: text where bytes are such, else their number."""
    kind = _unpacked(kind)
    if value is None:
        return None
    if _is_bytes(kind):
        try:
            return value.decode()  # some writers call no text a text
        except UnicodeDecodeError:
            return {"num_bytes": len(value)}
    if _is_json(kind):
        try:
            return value_of(value)
        except (ValueError, RecursionError):
            return value
    if pa.types.is_struct(kind):
        return {field.name: _read(value.get(field.name), field.type) for field in kind}
    if pa.types.is_map(kind):
        return marked(
            (str(_read(name, kind.key_type)), _read(inner, kind.item_type)) for name, inner in value
        )
    if isinstance(value, list):
        return [_read(inner, kind.field(0).type) for inner in value]
    return value
