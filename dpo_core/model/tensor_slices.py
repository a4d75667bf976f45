"""Ranges of values out of safetensors files: a rank reads what it needs and no more.

Files are read, not mapped: pages of a mapped file count as the process's own memory once they were touched.

A tensor may lie in one piece, as everywhere in the field, or in pieces of its flattened values in several files. A file
of pieces says in its metadata which they are: ``parts``: JSON of name -> [first value, shape of the whole tensor], and of
some columns of a matrix's rows (tensor parallelism) -> [first value, shape, [first column, behind the last]].
"""

import contextlib
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from dpo_core.contract.errors import StoreError, from_os_error
from dpo_core.model.few_files import FewFiles, OneOfFew

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PARTS = "parts"
MOST_READ_AT_ONCE = 1 << 24  # values copied to where they belong before more are read: 64 MiB in float32
LEAST_BYTES_A_READ = 1 << 12  # a page: of rows with fewer wanted ones what lies between is read, too
LONGEST_HEADER = 100_000_000  # bytes, the format's own bound
MOST_BYTES_A_READ = 1 << 30  # the kernel gives at most 2 GiB at once


Columns = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """Values ``start`` to ``stop`` of a flattened tensor, from byte ``offset`` of a file on; with ``columns`` (first, behind
    the last) no others than these of each row in between."""

    start: int
    stop: int
    file: OneOfFew
    offset: int
    columns: Columns | None = None

    def rows(self, width: int) -> tuple[int, int]:
        """Return the rows of ``width`` values that it has columns of. -> first, behind the last"""
        return self.start // width, -(-self.stop // width)


@dataclass(slots=True)
class Slices:
    """One tensor: its dtype and shape, and where its values lie."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: list[Piece] = field(default_factory=list)

    @property
    def num_values(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def width(self) -> int:
        """Values of a row."""
        return torch.Size(self.shape[1:]).numel()

    @property
    def lies_in_columns(self) -> bool:
        """Whether each of its pieces is some columns of rows."""
        return bool(self.pieces and self.pieces[0].columns)


class TensorSlices:
    """The tensors of safetensors files, by name."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Raises ``StoreError`` for what is no safetensors file, and for a tensor whose pieces do not make a whole."""
        self._files, self.tensors = FewFiles(), dict[str, Slices]()
        try:
            for path in paths:
                self._add(path)
            for name, slices in self.tensors.items():
                check_whole(name, slices)
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        self._files.close()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read values ``start`` to ``stop`` of the flattened tensor; all of it by default. -> [stop - start] on the CPU"""
        slices = self.tensors[name]
        stop = slices.num_values if stop is None else stop
        if slices.lies_in_columns:
            first, last = start // slices.width, -(-stop // slices.width)
            before = first * slices.width
            return _rows_of_columns(slices, first, last).view(-1)[start - before : stop - before]
        values = torch.empty(stop - start, dtype=slices.dtype)
        content = _content(values)
        size = slices.dtype.itemsize
        for piece in slices.pieces:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                place = content[(first - start) * size : (last - start) * size]
                _read_exactly(piece.file, place, piece.offset + (first - piece.start) * size)
        return values

    @torch.no_grad()
    def fill(self, name: str, target: Tensor, start: int = 0, columns: Columns | None = None) -> None:
        """Copy values from ``start`` on into ``target``, whatever its dtype and device, some at a time. Where ``columns``
        are given, these of the rows that begin with the one of ``start``."""
        if columns:
            self._fill_columns(name, target, start, columns)
            return
        if not target.is_contiguous():  # it has no flat view
            target.copy_(self.read(name, start, start + target.numel()).view(target.shape))
            return
        flat = target.view(-1)
        for first in range(0, flat.numel(), MOST_READ_AT_ONCE):
            part = flat[first : first + MOST_READ_AT_ONCE]
            part.copy_(self.read(name, start + first, start + first + part.numel()))

    def _fill_columns(self, name: str, target: Tensor, start: int, columns: Columns) -> None:
        slices, width = self.tensors[name], self.tensors[name].width
        at_once = max(1, MOST_READ_AT_ONCE // width)
        for first in range(0, len(target), at_once):
            part, row = target[first : first + at_once], start // width + first
            part.copy_(self._columns(slices, name, (row, row + len(part)), columns))

    def _columns(self, slices: Slices, name: str, rows: tuple[int, int], columns: Columns) -> Tensor:
        """Some columns of some rows: nothing else is read where they lie so, or where each row has a page of them."""
        each, width = columns[1] - columns[0], slices.width
        if slices.lies_in_columns:
            return _rows_of_columns(slices, *rows, columns)
        if len(slices.pieces) > 1 or each * slices.dtype.itemsize < LEAST_BYTES_A_READ:
            return self.read(name, rows[0] * width, rows[1] * width).view(-1, width)[:, slice(*columns)]
        found, size = torch.empty(rows[1] - rows[0], each, dtype=slices.dtype), slices.dtype.itemsize
        content, piece = _content(found), slices.pieces[0]
        for number in range(len(found)):
            place = content[number * each * size : (number + 1) * each * size]
            _read_exactly(piece.file, place, piece.offset + ((rows[0] + number) * width + columns[0]) * size)
        return found

    def _add(self, path: Path) -> None:
        file = OneOfFew(path, self._files)
        try:
            header, data = _read_header(file)
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from error
        try:
            self._add_tensors(path, file, header, data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} has a header that no safetensors file has: {error!r}.") from error

    def _add_tensors(self, path: Path, file: OneOfFew, header: dict, data: int) -> None:
        parts = json.loads(header.pop("__metadata__", {}).get(PARTS, "{}"))
        for name, about in header.items():
            begin, end = about["data_offsets"]
            if (dtype := DTYPES.get(about["dtype"])) is None:
                raise StoreError(f"{path} holds {name} as {about['dtype']}, which is not read here.")
            start, shape, *more = parts.get(name, (0, about["shape"]))
            slices = self.tensors.setdefault(name, Slices(dtype, tuple(shape)))
            if (slices.dtype, slices.shape) != (dtype, tuple(shape)):
                raise StoreError(f"{path.parent} holds pieces of {name} that do not belong together.")
            num_values, columns = (end - begin) // dtype.itemsize, tuple(more[0]) if more else None
            if columns:
                each = columns[1] - columns[0]
                num_values = (num_values // each - 1) * slices.width + each
            slices.pieces.append(Piece(start, start + num_values, file, data + begin, columns))


@contextlib.contextmanager
def open_slices(paths: Iterable[Path], names: Iterable[str] | None = None) -> Iterator[TensorSlices]:
    """Open files for the time of the context. Raises ``StoreError`` unless they hold just ``names``, where given."""
    paths = list(paths)
    slices = TensorSlices(paths)
    with contextlib.closing(slices):
        if names is not None and (differing := slices.tensors.keys() ^ set(names)):
            raise StoreError(f"{paths[0]} holds other tensors than the run: {sorted(differing)[:5]}.")
        yield slices


def _read_header(file: OneOfFew) -> tuple[dict, int]:
    """The header of a safetensors file and where its values begin."""
    head = file.bytes(8, 0)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else LONGEST_HEADER + 1
    try:
        header = json.loads(file.bytes(length, 8)) if length <= LONGEST_HEADER else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise StoreError(f"{file.path} is no safetensors file.")
    return header, 8 + length


def check_whole(name: str, slices: Slices) -> None:
    """Put a tensor's pieces in order. Raises ``StoreError`` unless they are all of it, and none of it twice."""
    slices.pieces.sort(key=lambda piece: (piece.columns or (0, 0), piece.start))
    by_columns = {
        columns: list(pieces) for columns, pieces in groupby(slices.pieces, lambda piece: piece.columns)
    }
    if set(by_columns) in (set(), {None}):
        ranges, length = [(piece.start, piece.stop) for piece in slices.pieces], slices.num_values
        make_a_whole = _are_gapless(ranges, length)
    else:
        make_a_whole = None not in by_columns and _are_gapless(
            [columns for columns in by_columns if columns], slices.width
        )
        for pieces in by_columns.values():
            rows = [piece.rows(slices.width) for piece in pieces]
            make_a_whole = make_a_whole and _are_gapless(rows, slices.shape[0])
    if not make_a_whole:
        held = sum(piece.stop - piece.start for piece in slices.pieces)
        raise StoreError(
            f"The files hold {name} with a gap or an overlap: {held:,} of its {slices.num_values:,} values."
        )


def _are_gapless(ranges: list[tuple[int, int]], length: int) -> bool:
    """Whether sorted ranges are one from 0 to ``length``."""
    return [0, *(stop for _, stop in ranges)] == [*(start for start, _ in ranges), length]


def _content(values: Tensor) -> memoryview:
    return memoryview(values.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # see tensor_file


def _rows_of_columns(slices: Slices, first: int, last: int, wanted: Columns | None = None) -> Tensor:
    """Rows ``first`` to ``last`` of a matrix whose pieces are some columns each, or their ``wanted`` columns: of other
    pieces nothing is read."""
    left, right = wanted or (0, slices.width)
    found = torch.empty(last - first, right - left, dtype=slices.dtype)
    for piece in slices.pieces:
        assert piece.columns  # all have them
        begin, end = piece.rows(slices.width)
        lower, upper = max(first, begin), min(last, end)
        leftmost, behind = max(left, piece.columns[0]), min(right, piece.columns[1])
        if lower < upper and leftmost < behind:
            each = piece.columns[1] - piece.columns[0]
            part = torch.empty(upper - lower, each, dtype=slices.dtype)
            offset = piece.offset + (lower - begin) * each * slices.dtype.itemsize
            _read_exactly(piece.file, _content(part), offset)
            taken = part[:, leftmost - piece.columns[0] : behind - piece.columns[0]]
            found[lower - first : upper - first, leftmost - left : behind - left] = taken
    return found


def _read_exactly(file: OneOfFew, place: memoryview, offset: int) -> None:
    while place:
        got = file.read_into(place[:MOST_BYTES_A_READ], offset)
        if not got:
            raise StoreError(f"{file.path} ends before its last tensor does.")
        place, offset = place[got:], offset + got
