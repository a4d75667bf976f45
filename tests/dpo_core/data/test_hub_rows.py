"""What can be wrong with a Hub data set, each said with its cause. A repository is a folder, read by the same loader."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_core.contract.errors import DataError
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data.sources import RowStore, load_source

STALE = """---
dataset_info:
  features:
  - {name: prompt, dtype: string}
  - {name: chosen, dtype: string}
  - {name: rejected, dtype: string}
  splits:
  - {name: train, num_bytes: 99, num_examples: 77}
---
"""


def row(number: int) -> dict:
    return {"prompt": f"p {number}", "chosen": "yes", "rejected": "no"}


def lines(*rows: dict) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in rows).encode()


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


ROWS = parquet(pa.Table.from_pylist([row(number) for number in range(3)]))


def loaded(folder: Path, files: dict[str, bytes], **fields: str) -> RowStore:
    for name, content in files.items():
        path = folder / "repo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    source = ResolvedSource(label="org/set", hub_id=str(folder / "repo"), content=str(folder), **fields)
    return load_source(source, folder / "cache")


REFUSED = {
    "a loading script": (
        {"repo.py": b"import datasets\n", "README.md": b"hi\n"},
        "made by a Python script.*refs/convert/parquet",
    ),
    "counts that its files do not have": (
        {"README.md": STALE.encode(), "data/train-00000-of-00001.parquet": ROWS},
        "rows that its README.md promises.*77.*3",
    ),
    "files with other columns": (
        {"a.jsonl": lines(row(0)), "b.jsonl": lines({**row(1), "score": 3})},
        "do not have the same columns.*score",
    ),
    "a damaged file": ({"train.parquet": b"PAR1" + bytes(60)}, "cannot be loaded.*[Pp]arquet"),
    "another split": ({"test.jsonl": lines(row(0))}, 'Unknown split "train"'),
    "subsets to choose from": (
        {
            "README.md": b"---\nconfigs:\n- {config_name: a, data_files: a.jsonl}\n"
            b"- {config_name: b, data_files: b.jsonl}\n---\n",
            "a.jsonl": lines(row(0)),
            "b.jsonl": lines(row(1)),
        },
        "Config name is missing",
    ),
}


@pytest.mark.parametrize(("files", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_set_that_cannot_be_read_says_why(files: dict[str, bytes], sentence: str, tmp_path: Path):
    with pytest.raises(
        DataError, match=f"(?s)cannot be loaded.*{sentence}" if "loaded" not in sentence else sentence
    ):
        loaded(tmp_path, files)


def test_a_time_that_python_does_not_know_ends_nothing(tmp_path: Path):
    table = pa.Table.from_pylist([row(0), row(1)]).append_column(
        "at", pa.array([10**15, 1], pa.timestamp("s"))
    )
    rows = loaded(tmp_path, {"train.parquet": parquet(table)})
    assert [{**rows[number], "at": None} for number in range(2)] == [
        {**row(number), "at": None} for number in range(2)
    ]


def test_values_of_several_kinds_in_a_column_are_what_the_file_holds(tmp_path: Path):
    messages = [{"role": "assistant", "content": "a"}]
    mixed = [row(0), {**row(1), "chosen": messages}, {**row(2), "chosen": None}]
    rows = loaded(tmp_path, {"train.jsonl": lines(*mixed)})
    assert [rows[number] for number in range(3)] == mixed
