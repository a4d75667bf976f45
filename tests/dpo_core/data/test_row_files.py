"""Files of a directory: none with rows is missed without a word, and one bad value costs one row."""

import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_core.contract.errors import DataError
from dpo_core.contract.row_warnings import files_warning
from dpo_core.data.readers import read_rows
from dpo_core.data.row_files import files_of, passed_by

LINE = json.dumps({"prompt": "p", "chosen": "yes", "rejected": "no"}) + "\n"


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(LINE)
    return folder


def named(folder: Path, split: str = "train") -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_of(folder, split)]


@pytest.mark.parametrize(
    "name",
    [
        *("b.csv", "b.tsv.gz", "b.pq", "b.jsonlines", "B.JSON", "b.Json.gz", "C.JSONL"),
        *("rows.jsonl.1", "a.jsonl.aa", "b.parquet.incomplete"),
    ],
)
def test_rows_in_another_form_or_in_pieces_are_not_missed(tmp_path, name):
    with pytest.raises(DataError, match=f"{name} beside the files that are read"):
        named(folder_of(tmp_path, "a.jsonl", name))


@pytest.mark.parametrize(
    "name", ["a.jsonl~", "a.jsonl.bak", "a.jsonl.tmp", "a.jsonl.lock", "b.md", "State.JSON"]
)
def test_what_is_no_piece_of_a_set_is_passed_by(tmp_path, name):
    assert named(folder_of(tmp_path, "a.jsonl", name)) == ["a.jsonl"]


@pytest.mark.parametrize("other", ["a.jsonl.gz", "a.json", "a.parquet"])
def test_a_file_in_two_forms_is_not_taken_twice(tmp_path, other):
    folder = folder_of(
        tmp_path, "a.jsonl", "sub/a.jsonl", "a.b.jsonl", "b.jsonl.gz", "test.jsonl", "test.json"
    )
    assert named(folder) == ["a.b.jsonl", "a.jsonl", "b.jsonl.gz", "sub/a.jsonl"]
    folder_of(folder, other)
    with pytest.raises(DataError, match=r"holds a\.\S+ and a\.\S+, one name in two forms"):
        named(folder)
    assert files_of(folder / "a.jsonl", "train") == [folder / "a.jsonl"]


def test_links_are_followed_or_refused(tmp_path):
    folder, other = folder_of(tmp_path / "set", "a.jsonl"), folder_of(tmp_path / "other", "deep/c.jsonl")
    (folder / "b.jsonl").symlink_to(other / "deep" / "c.jsonl")
    assert named(folder) == ["a.jsonl", "b.jsonl"]
    (tmp_path / "texts").mkdir()
    (folder / "texts").symlink_to(tmp_path / "texts")  # without rows
    assert named(folder) == ["a.jsonl", "b.jsonl"]
    (folder / "more").symlink_to(other)
    with pytest.raises(DataError, match="holds more, a link to a directory with rows"):
        named(folder)
    (folder / "more").unlink()
    (other / "deep" / "c.jsonl").unlink()
    with pytest.raises(DataError, match=r"holds b\.jsonl, which is no file, or a link that leads nowhere"):
        named(folder)


def test_a_pipe_is_no_file_of_rows(tmp_path):
    os.mkfifo(folder_of(tmp_path, "a.jsonl") / "b.jsonl")
    with pytest.raises(DataError, match=r"holds b\.jsonl, which is no file\. "):
        named(tmp_path)


@pytest.mark.parametrize(
    ("names", "read", "others", "missing"),
    [
        (["train.jsonl", "more.jsonl", "x/rows.json"], 1, ["more.jsonl", "x/rows.json"], []),
        (["chat.jsonl", "math-dev.jsonl"], 1, ["math-dev.jsonl"], []),
        (
            ["a.jsonl", "b.tar", "c.jsonl.tar.gz", "d.zip", "e.7z", "f.tgz", "a.log.gz"],
            1,
            ["b.tar", "c.jsonl.tar.gz", "d.zip", "e.7z", "f.tgz"],
            [],
        ),
        (["train.jsonl", "test.jsonl", "validation/a.jsonl", "dev.json"], 1, [], []),
        (["data/train-00000-of-00001.jsonl", "data/test_x-00000-of-00002.jsonl"], 1, [], []),
        (["train-00001-of-00003.jsonl"], 1, [], ["train-00000-of-00003", "train-00002-of-00003"]),
        (["part-1-of-2.jsonl", "part-2-of-2.jsonl"], 2, [], []),
        (["s/part-1-of-3.jsonl", "s/part-3-of-3.jsonl"], 2, [], ["s/part-2-of-3"]),
        (["a.jsonl", "b.jsonl"], 2, [], []),
    ],
)
def test_what_is_not_read_or_not_there_is_told(tmp_path, names, read, others, missing):
    folder = folder_of(tmp_path, *names)
    assert len(named(folder)) == read
    assert passed_by(folder, "train") == (others, missing)
    said = files_warning("set", *passed_by(folder, "train"))
    assert (said is None) == (not others and not missing)
    assert all(name in said for name in (*others, *missing))


def test_a_long_list_of_files_is_cut():
    said = files_warning("set", [f"{i}.jsonl" for i in range(9)], [])
    assert said.startswith("set: 0.jsonl, 1.jsonl, 2.jsonl, 3.jsonl, 4.jsonl and 4 more are not read")


def test_a_single_file_passes_nothing_by(tmp_path):
    folder_of(tmp_path, "train-00000-of-00002.jsonl", "b.jsonl")
    assert passed_by(tmp_path / "train-00000-of-00002.jsonl", "train") == ([], [])


def test_a_stream_that_is_cut_between_two_batches_is_cut(tmp_path):
    sink, table, ends = io.BytesIO(), pa.table({"prompt": ["a", "b", "c"]}), []
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=1):
            writer.write_batch(batch)
            ends.append(sink.tell())
    whole, file = sink.getvalue(), tmp_path / "a.arrow"
    file.write_bytes(whole + whole)
    assert len(list(read_rows(file))) == 6
    for content in (whole[: ends[1]], whole + whole[: ends[1]], whole[:-8]):
        file.write_bytes(content)
        with pytest.raises(DataError, match="has no end mark: it is cut off"):
            list(read_rows(file))


def test_a_file_that_is_cut_is_not_taken_for_two(tmp_path):
    file, table = tmp_path / "a.arrow", pa.table({"prompt": ["a", "b", "c"]})
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="does not end as an Arrow file does: it is cut off"):
        list(read_rows(file))


@pytest.mark.parametrize(
    ("shape", "ending"),
    [
        ("text", "parquet"),
        ("text", "arrow"),
        ("messages", "parquet"),
        ("messages", "arrow"),
        ("dictionary", "arrow"),
    ],
)
def test_bytes_that_are_no_text_cost_their_own_row_alone(tmp_path, shape, ending):
    raw = pa.array([b"good", b"bad\xff"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    column = {
        "text": texts,
        "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1]), texts, safe=False),
        "messages": pa.ListArray.from_arrays([0, 1, 2], pa.StructArray.from_arrays([texts], ["content"])),
    }[shape]
    table, file = pa.table({"prompt": column, "chosen": ["yes", "no"]}), tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    first, second = (row.value["prompt"] for row in read_rows(file))
    if shape == "messages":
        (first,), (second,) = ((turn["content"] for turn in turns) for turns in (first, second))
    assert (first, second) == ("good", {"num_bytes": 4})
