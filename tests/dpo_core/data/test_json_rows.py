"""A file of rows is read to its end, however its rows are laid out, or what stands in the way is named."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.contract.errors import DataError
from dpo_core.data import json_rows, readers
from dpo_core.data.deep_json import TOO_DEEP


def row(number: int) -> dict:
    return {"prompt": f"p{number}", "chosen": "yes [it] is", "rejected": 'no, "never"'}


def array(*numbers: int, indent: int | None = None) -> str:
    return json.dumps([row(number) for number in numbers], indent=indent)


def line(number: int) -> str:
    return json.dumps(row(number))


READ_TO_THE_END = {
    "arrays behind each other": (array(0, 1) + "\n" + array(2, 3, 4) + "\n", 5),
    "arrays as lines": (array(0) + "\n" + array(1) + "\n" + array(2, 3), 4),
    "arrays without a break": (array(0) + array(1), 2),
    "an array, then lines": (array(0, 1) + "\n" + line(2) + "\n" + line(3), 4),
    "lines, then an array": (line(0) + "\n" + array(1, 2) + "\n" + line(3) + "\n", 4),
    "pretty arrays": (array(0, 1, indent=2) + "\n\n" + array(2, indent=1), 3),
    "pretty objects": ("\n".join(json.dumps(row(i), indent=2) for i in range(4)), 4),
    "objects on one line": (line(0) + line(1) + " " + line(2) + "\n" + line(3), 4),
    "no line break between files": (line(0) + "\n" + line(1) + line(2) + "\n" + line(3) + "\n", 4),
    "a mark at the beginning of each file": (
        "\ufeff" + line(0) + "\n\ufeff" + line(1) + "\n\ufeff" + array(2),
        3,
    ),
    "Windows": ("\ufeff" + line(0) + "\r\n\r\n" + array(1, 2, indent=1).replace("\n", "\r\n") + "\r\n", 3),
    "old Macintosh": ("\r".join(line(i) for i in range(3)), 3),
    "record separators": ("".join("\x1e" + line(i) + "\n" for i in range(3)), 3),
    "empty arrays": ("[]\n" + array(0) + "\n[ ]\n" + array(1), 2),
    "a wrapper, on a line": (json.dumps({"version": 1, "data": [row(0), row(1)]}), 2),
    "rows that hold such as look like rows": (
        "\n".join(json.dumps({"data": [row(i)] * 2, "chosen": 1}) for i in range(2)),
        2,
    ),
    "wrappers behind each other": ("\n".join(json.dumps({"data": [row(i), row(9)]}) for i in range(2)), 4),
    "pretty wrappers": ("".join(json.dumps({"rows": [row(i)] * 3}, indent=1) for i in range(3)), 9),
    "a wrapper, then lines": (json.dumps({"train": [row(0), row(1)]}) + "\n" + line(2) + "\n" + line(3), 4),
    "an array, then a wrapper": (array(0, 1) + "\n" + json.dumps({"data": [row(2), row(3)]}), 4),
    "rows of other names that hold examples": (
        "\n".join(json.dumps({"q": "?", "examples": [{"q": i}, {"q": 9}], "good": "a"}) for i in range(3)),
        3,
    ),
}


def values_of(path: Path) -> list:
    return [found.value for found in readers.read_rows(path)]


@pytest.mark.parametrize("size", [1, 7, 50, 1 << 20])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("case", READ_TO_THE_END)
def test_every_row_of_a_file_is_read(tmp_path, monkeypatch, case, name, size):
    text, expected = READ_TO_THE_END[case]
    monkeypatch.setattr(json_rows, "READ_CHARACTERS", size)
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = values_of(tmp_path / name)
    assert len(found) == expected
    if "wrapper" not in case and "hold" not in case:
        assert found == [row(number) for number in range(expected)]


IN_THE_WAY = {
    "an error page": (array(0, 1) + "\n<html>503</html>", r"line 2 is no complete JSON value.*<html>503"),
    "an error page behind lines": (
        line(0) + "\n" + line(1) + "\nInternal Server Error",
        r"line 3 .*Internal",
    ),
    "a word behind a line": (line(0) + " more\n" + line(1) + "\n", r"line 1 is no .*'more'"),
    "a bracket too many": (array(0) + "]\n", r"line 1 is no complete"),
    "a second array that is cut off": (array(0) + "\n" + array(1, 2)[:-20], r"element 1 on line 2"),
    "a third array without an end": (
        array(0) + "\n" + array(1) + "\n" + array(2)[:-1],
        r"on line 3 \(the file ends",
    ),
    "a line that is cut off in the middle": (line(0)[:-5] + "\n" + line(1) + "\n", r"line 1 is no complete"),
    "zeros of a file that was not flushed": (line(0) + "\n" + "\0" * 40, r"line 2 is no complete"),
}


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("case", IN_THE_WAY)
def test_what_is_no_json_is_named_with_its_line(tmp_path, monkeypatch, case, name, size):
    text, message = IN_THE_WAY[case]
    monkeypatch.setattr(json_rows, "READ_CHARACTERS", size)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        values_of(tmp_path / name)


SEVERAL = {
    "data and rows": {"data": [row(0)], "rows": [row(1), row(2)]},
    "data and more": {"more": [row(1), row(2)], "data": [row(0)]},
    "data and test": {"data": [row(0)], "test": [row(1)]},
    "train and extra": {
        "train": [{"q": "?", "good": "a"}],
        "test": [row(1)],
        "extra": [{"good": "b", "q": "?"}],
    },
}


@pytest.mark.parametrize("longest", [1 << 20, 8])
@pytest.mark.parametrize("names", SEVERAL)
def test_an_object_with_several_lists_of_rows_is_refused(tmp_path, monkeypatch, names, longest):
    monkeypatch.setattr(
        json_rows, "MAX_WHOLE_CHARACTERS", longest
    )  # of an object that is not read row by row
    monkeypatch.setattr(json_rows, "READ_CHARACTERS", longest)
    (tmp_path / "a.json").write_text(json.dumps(SEVERAL[names], indent=1))
    with pytest.raises(DataError, match=f"several lists of rows, {names}"):
        values_of(tmp_path / "a.json")


ONE_LIST = {
    "other splits": {"train": [row(0), row(1)], "test": [row(2)], "validation": [row(3)]},
    "what is said of the rows": {
        "data": [row(0), row(1)],
        "features": [{"name": "chosen"}],
        "notes": ["a"],
        "n": 2,
    },
    "no rows at all": {"data": [], "more": []},
}


@pytest.mark.parametrize("longest", [1 << 20, 8])
@pytest.mark.parametrize("case", ONE_LIST)
def test_an_object_with_one_list_of_rows_gives_those(tmp_path, monkeypatch, case, longest):
    monkeypatch.setattr(json_rows, "MAX_WHOLE_CHARACTERS", longest)
    monkeypatch.setattr(json_rows, "READ_CHARACTERS", longest)
    (tmp_path / "a.json").write_text(json.dumps(ONE_LIST[case], indent=1))
    assert values_of(tmp_path / "a.json") == ([] if case == "no rows at all" else [row(0), row(1)])


def test_an_element_that_is_nested_too_deeply_is_no_row_and_the_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "READ_CHARACTERS", 999)
    deep = '{"chosen": ' + "[" * 200_000 + '"]"' + "]" * 200_000 + "}"
    (tmp_path / "a.json").write_text(f"[{line(0)}, {deep}, {line(1)}]")
    assert values_of(tmp_path / "a.json") == [row(0), {"chosen": TOO_DEEP}, row(1)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    documents=st.lists(st.tuples(JSON, st.sampled_from([None, 1]), st.sampled_from(["\n", "\n\n", " \r\n"]))),
    size=st.integers(1, 40),
)
def test_any_sequence_of_values_is_read_whole(documents, size):
    text = "".join(json.dumps(value, indent=indent) + behind for value, indent, behind in documents)
    expected = [item for value, _, _ in documents for item in (value if isinstance(value, list) else [value])]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_rows, "READ_CHARACTERS", size)
        found = list(json_rows.json_rows(Path("a.jsonl"), io.StringIO(text, newline=None)))
    assert [one.value for one in found] == expected
    assert all(one.text is None or json.loads(one.text) == one.value for one in found)


# ------------------------------------------------------------------------------------------------- other kinds of files


def test_a_packed_file_of_several_parts_is_read_whole(tmp_path):
    parts = [gzip.compress((line(i) + "\n").encode()) for i in range(3)]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(parts) + b"\0" * 512)  # the zeros are tape's padding
    assert values_of(tmp_path / "a.jsonl.gz") == [row(i) for i in range(3)]


@pytest.mark.parametrize(
    "behind", [b"<html>", gzip.compress(line(1).encode(), mtime=0)[:-9]], ids=["page", "half a part"]
)
def test_a_packed_file_with_something_else_behind_it_is_damaged(tmp_path, behind):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((line(0) + "\n").encode()) + behind)
    with pytest.raises(DataError, match="damaged"):
        values_of(tmp_path / "a.jsonl.gz")


def test_a_packed_file_that_is_damaged_in_the_middle_is_an_error_of_data(tmp_path):
    content = bytearray(gzip.compress("".join(line(i * 7919 % 1000) for i in range(500)).encode()))
    content[100:140] = b"\xff" * 40
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|not UTF-8|no complete"):
        values_of(tmp_path / "a.jsonl.gz")


def arrow_bytes(numbers: list[int], writer: type) -> bytes:
    table = pa.Table.from_pylist([row(number) for number in numbers])
    sink = pa.BufferOutputStream()
    with writer(sink, table.schema) as out:
        out.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def test_an_arrow_file_and_streams_behind_each_other_are_read_whole(tmp_path):
    (tmp_path / "a.arrow").write_bytes(arrow_bytes([0, 1, 2], pa.ipc.new_file))
    assert values_of(tmp_path / "a.arrow") == [row(i) for i in range(3)]
    streams = arrow_bytes([0, 1, 2], pa.ipc.new_stream) + arrow_bytes([3, 4], pa.ipc.new_stream)
    (tmp_path / "b.arrow").write_bytes(streams)
    assert values_of(tmp_path / "b.arrow") == [row(i) for i in range(5)]


def parquet_bytes(numbers: list[int], **settings: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist([row(number) for number in numbers]), sink, row_group_size=2, **settings
    )
    return sink.getvalue()


@pytest.mark.parametrize(
    "settings", [{}, {"write_page_index": True}, {"compression": "zstd", "use_dictionary": False}]
)
def test_a_parquet_file_of_several_groups_is_read_whole(tmp_path, settings):
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(list(range(5)), **settings))
    assert values_of(tmp_path / "a.parquet") == [row(i) for i in range(5)]


@pytest.mark.parametrize(
    ("first", "second"), [([0, 1, 2], [3, 4, 5]), ([0], [1, 2, 3, 4]), ([0, 1, 2, 3], [4])]
)
def test_files_of_columns_behind_each_other_are_refused(tmp_path, first, second):
    """Their directory speaks of the last one alone, and would be read as that of the first."""
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(first) + parquet_bytes(second))
    (tmp_path / "a.arrow").write_bytes(
        arrow_bytes(first, pa.ipc.new_file) + arrow_bytes(second, pa.ipc.new_file)
    )
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(DataError, match=r"more than one .* file|no readable"):
            values_of(tmp_path / name)
