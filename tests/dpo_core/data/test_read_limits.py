"""Sets of a few kB whose rows are gigabytes, and files that end their reader: a sentence, within the memory of a set."""

import faulthandler
import gzip
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from dpo_core.contract.errors import DataError
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data import read_limits, workers
from dpo_core.data.columnar_rows import rows_of
from dpo_core.data.sources import RowStore, load_source
from tests.waiting import wait_until


def repeated(value: str, num_rows: int) -> pa.Table:
    """The same answer in every row, stored once."""
    index = pa.array(np.zeros(num_rows, dtype=np.int32))
    columns = {"prompt": value, "chosen": "yes", "rejected": "no"}
    return pa.table(
        {name: pa.DictionaryArray.from_arrays(index, pa.array([text])) for name, text in columns.items()}
    )


def write_parquet(value: str, num_rows: int, file: Path) -> None:
    pq.write_table(
        repeated(value, num_rows),
        file,
        dictionary_pagesize_limit=1 << 30,
        compression="zstd",
        store_schema=False,
    )


def write_arrow(value: str, num_rows: int, file: Path) -> None:
    pyarrow.feather.write_feather(repeated(value, num_rows), str(file), compression="zstd")


def write_packed(value: str, num_rows: int, file: Path) -> None:
    line = f'{{"prompt": "{value}", "chosen": "yes", "rejected": "no"}}\n'.encode()
    file.write_bytes(gzip.compress(line) * num_rows)


WRITERS = {"a.parquet": write_parquet, "a.arrow": write_arrow, "a.jsonl.gz": write_packed}


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def load(file: Path) -> RowStore:
    return load_source(ResolvedSource(label=file.name, path=file, content=file.name), file.parent / "cache")


@pytest.mark.parametrize("name", WRITERS)
def test_a_small_file_of_gigabytes_is_refused_within_the_memory_of_a_set(name, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "MAX_MEMORY_BYTES", 100 << 20)
    WRITERS[name]("a" * (2 << 20), 400, tmp_path / name)
    assert (tmp_path / name).stat().st_size < (2 << 20)
    with pytest.raises(DataError, match=rf"{name} cannot be read: its rows take more than .* JSON lines"):
        load(tmp_path / name)
    assert not list((tmp_path / "cache").rglob("rows.arrow"))


@pytest.mark.parametrize("name", WRITERS)
def test_rows_that_are_far_longer_than_their_file_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(read_limits, "MAX_GROWN_CHARACTERS", 1 << 20)
    monkeypatch.setattr(read_limits, "MAX_GROWTH", 20)
    WRITERS[name]("a" * 20_000, 1000, tmp_path / name)
    with pytest.raises(DataError, match=r"No set of preferences grows 20 times"):
        load(tmp_path / name)


@pytest.mark.parametrize("name", WRITERS)
def test_a_row_that_is_longer_than_one_may_be_is_none(name, tmp_path, monkeypatch):
    monkeypatch.setattr(read_limits, "MAX_ROW_CHARACTERS", 1000)
    WRITERS[name]("a" * 2000, 2, tmp_path / name)
    store = load(tmp_path / name)
    assert [store[row] for row in range(len(store))] == [None, None]


def test_a_file_that_crashes_its_reader_is_an_error(tmp_path):
    sources = [
        ResolvedSource(label=name, path=tmp_path / f"{name}.parquet", content=name)
        for name in ("good", "bad")
    ]

    def read(source: ResolvedSource) -> None:
        if source.label == "bad":
            faulthandler.disable()  # pytest's would print this process's stack
            os.kill(os.getpid(), signal.SIGSEGV)

    with read_limits.reading(sources, read) as finish:
        finish(0)
        with pytest.raises(DataError, match="bad cannot be read"):
            finish(1)


def test_a_long_set_is_read_while_something_else_goes_on_and_no_longer(tmp_path):
    """The tokenizer is loaded meanwhile; where that fails, nobody waits for the set."""
    source = ResolvedSource(label="set", path=tmp_path / "a.parquet", content="x")

    def read(source: ResolvedSource) -> None:
        (tmp_path / "read").write_text(str(os.getpid()))
        time.sleep(600)

    def fail() -> None:
        with read_limits.reading([source], read):
            wait_until(lambda: _text(tmp_path / "read"), "it is read")
            raise ValueError("no tokenizer")

    with pytest.raises(ValueError, match="no tokenizer"):
        fail()
    with pytest.raises(ProcessLookupError):
        os.kill(int(_text(tmp_path / "read")), 0)


def test_a_column_for_which_there_is_no_memory_is_no_column_of_nulls(monkeypatch):
    """It was, while everything that a column raised was taken for a date that Python cannot hold."""

    def no_memory(column: pa.Array) -> list:
        raise MemoryError

    monkeypatch.setattr("dpo_core.data.columnar_rows._plain", no_memory)
    with pytest.raises(MemoryError):
        list(rows_of(pa.record_batch({"a": [1, 2]})))


def test_long_rows_become_values_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("dpo_core.data.columnar_rows.BYTES_AT_ONCE", 1000)
    batch = pa.record_batch({"a": ["b" * 300] * 7 + [None], "n": range(8)})
    assert list(rows_of(batch)) == batch.to_pylist()
