"""Limits for reading a set of others: a few kB may be rows of terabytes, or end the library that reads them.

A Parquet or Arrow file names one long value a million times over, JSON that says ``[],`` takes twenty times its length,
and what is packed grows a thousandfold. So what is not small is read in a process of its own, which may hold so much
memory and no more, and the text of all rows is compared with the length of the files that they came from.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from dpo_core.contract.errors import DataError
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data.json_rows import MAX_ROW_CHARACTERS
from dpo_core.data.row_files import files_of
from dpo_core.data.workers import MAX_MEMORY_BYTES, Workers, can_fork

SMALL_BYTES = (
    16 << 20
)  # of JSON that is not packed: some hundred MB as Python values, so no process is started
SECONDS = 86_400.0  # of processor time, which a set of any size may take
MAX_GROWTH, MAX_GROWN_CHARACTERS = 1000, 4 << 30
TOO_LONG = "null"  # in place of the text of a row that is longer than one may be; it is counted and dropped


@contextlib.contextmanager
def reading(
    sources: Sequence[ResolvedSource], read: Callable[[ResolvedSource], None]
) -> Iterator[Callable[[int], None]]:
    """Have a process ``read`` the sources that are not small, which leaves their rows on disk, while the block goes on.

    Yields what waits until source number n is read, or reads it, and passes on what that raises; ``DataError`` if it takes
    more memory than a set may, or if the library that it uses crashes.
    """
    large = [number for number, source in enumerate(sources) if can_fork() and not _is_small(source)]
    workers: Workers[ResolvedSource, None] = Workers(read, 1)
    begun = dict(zip(large, workers.begin([sources[number] for number in large], SECONDS), strict=True))

    def finish(number: int) -> None:
        if number not in begun:
            read(sources[number])
            return
        try:
            begun[number].result()
        except BrokenProcessPool as error:
            workers.end()
            raise (_over(sources[number]) if workers.went_over() else workers.crashed()) from error

    try:
        yield finish
    finally:
        workers.end()


def _over(source: ResolvedSource) -> DataError:
    return DataError(
        f"{source.label} cannot be read: its rows take more than {MAX_MEMORY_BYTES >> 30} GiB of memory, or end the "
        "library that reads them. A small file may unpack to that. If you trust it, write its rows as JSON lines "
        f"(.jsonl), none of them over {MAX_ROW_CHARACTERS >> 20} Mi characters; else use another set."
    )


def _is_small(source: ResolvedSource) -> bool:
    sizes = [(file.suffix, file.stat().st_size) for file in _files(source)]
    return (
        bool(sizes)
        and all(kind in (".json", ".jsonl") for kind, _ in sizes)
        and sum(size for _, size in sizes) <= SMALL_BYTES
    )


def _files(source: ResolvedSource) -> list[Path]:
    """The local files of a source; none of a Hub set, or if its reader will say what is wrong."""
    try:
        return [] if source.path is None else files_of(source.path, source.split)
    except DataError:
        return []


def bounded_texts(texts: Iterator[str], source: ResolvedSource) -> Iterator[str]:
    """Yield the texts of rows, ``TOO_LONG`` for one that is. Raises ``DataError`` if they are too much for their files."""
    packed = sum(file.stat().st_size for file in _files(source))
    length = 0
    for text in texts:
        length += len(text)
        if packed and length > max(MAX_GROWN_CHARACTERS, MAX_GROWTH * packed):
            raise DataError(
                f"{source.label} holds {packed:,} bytes, and its rows over {length:,} characters. No set of preferences "
                f"grows {MAX_GROWTH:,} times when it is read. If you trust it, write its rows as JSON lines (.jsonl)."
            )
        yield text if len(text) <= MAX_ROW_CHARACTERS else TOO_LONG
