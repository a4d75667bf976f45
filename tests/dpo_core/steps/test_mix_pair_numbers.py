"""Weights, margins and sources through the mix step: beside their rows, in the fingerprint where there are any."""

import math

import numpy as np
import pyarrow as pa
import pytest

from dpo_core.contract.progress import Progress
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.pair_file import ROWS_FILE, ROWS_SCHEMA
from dpo_core.steps import mix
from tests.dpo_core.steps.test_mix import _job, _questions, _row, _source


def mixed(job, split="train"):
    result = mix.run(job, Progress("mix", interval_seconds=0, sink=lambda event: None))
    return result, PairDataset.open(result.data.path, split)


def numbered(tmp_path, numbers, name="a.jsonl", first=0, **columns):
    rows = [_row(i) | of for i, of in enumerate(numbers, first)]
    source = _source(tmp_path, rows, name)
    return source.model_copy(update={"columns": columns})


def test_numbers_stay_with_their_rows_and_sources(tmp_path):
    a = numbered(tmp_path, [{"w": i + 1.0, "m": i / 2} for i in range(8)], weight="w", margin="m")
    b = numbered(tmp_path, [{}] * 4, "b.jsonl", first=8)
    data = mixed(_job(tmp_path, a, b))[1]
    rows = np.array(_questions(data))
    assert sorted(rows) == list(range(12))
    assert data.source_names == ("a.jsonl", "b.jsonl")
    assert data.sources.tolist() == (rows >= 8).astype(int).tolist()
    assert data.weights.tolist() == np.where(rows < 8, rows + 1.0, 1).tolist()
    np.testing.assert_array_equal(data.margins, np.where(rows < 8, rows / 2, math.nan).astype(np.float32))


def test_bad_numbers_are_in_the_ledger_with_their_rows(tmp_path):
    weights = [1, None, -2, 0, "0.5", math.nan, 3]
    source = numbered(tmp_path, [{"w": w} for w in weights], weight="w")
    result, data = mixed(_job(tmp_path, source, max_dropped_fraction=0.9))
    (ledger,) = result.per_source
    assert ledger.dropped == {"bad_weight": 3, "zero_weight": 1}
    assert ledger.offenders == {"bad_weight": (1, 2, 5), "zero_weight": (3,)}
    assert ledger.rows_in == ledger.kept + 4 == 7
    assert sorted(data.weights.tolist()) == [0.5, 1, 3]


def fingerprint_of(folder, numbers, **columns):
    folder.mkdir()
    return mixed(_job(folder, numbered(folder, numbers, **columns)))[0].data.fingerprint


def test_numbers_are_part_of_the_fingerprint_where_they_say_something(tmp_path):
    plain = fingerprint_of(tmp_path / "a", [{"w": 1, "m": i} for i in range(4)])
    ones = fingerprint_of(tmp_path / "b", [{"w": 1}] * 4, weight="w")
    others = [
        fingerprint_of(tmp_path / "c", [{"w": 1 + i} for i in range(4)], weight="w"),
        fingerprint_of(tmp_path / "d", [{"w": 2 + i} for i in range(4)], weight="w"),
        fingerprint_of(tmp_path / "e", [{"m": 0}] * 4, margin="m"),
        fingerprint_of(tmp_path / "f", [{"m": 1}] * 4, margin="m"),
    ]
    assert ones == plain
    assert len({plain, *others}) == 5


def test_a_column_that_a_set_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no column `w`"):
        mixed(_job(tmp_path, numbered(tmp_path, [{}] * 4, weight="w")))


def test_a_mixture_of_an_earlier_version_has_no_numbers_and_no_sources(tmp_path):
    """Its rows lack the columns; every pair counts the same."""
    data = mixed(_job(tmp_path, numbered(tmp_path, [{}] * 4)))[1]
    path = data.folder / ROWS_FILE
    old = pa.schema([field for field in ROWS_SCHEMA if field.name not in ("source", "weight", "margin")])
    with pa.ipc.open_file(path) as reader:
        table = reader.read_all().select(old.names)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, old) as writer:
        writer.write_table(table)
    data = PairDataset.open(data.folder.parent, "train")
    assert data.weights.tolist() == [1] * len(data)
    assert np.isnan(data.margins).all()
    assert data.source_names == ()
