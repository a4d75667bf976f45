"""Rows of real files, random access to them, and every kind of unreadable input."""

import contextlib
import gzip
import json
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_core.contract.data_jobs import FetchJob
from dpo_core.contract.drops import RowDropped
from dpo_core.contract.errors import DataError, StoreError
from dpo_core.contract.refs import ResolvedEvaluationSet, ResolvedSource
from dpo_core.contract.store import ASIDE
from dpo_core.data import json_rows, readers
from dpo_core.data.formats import READ_COLUMNS, to_pair
from dpo_core.data.sources import LAYOUT, load_source

ROWS = [{"chosen": f"c{i}", "rejected": f"r{i}", "input": i if i % 2 else None} for i in range(1100)]
MIXED = [{"chosen": "a"}, {"chosen": ["a", 1]}, {"chosen": {"x": None}, "other": 2.5}, {"chosen": "é😀"}]


def _load(path, cache, **settings):
    return load_source(
        ResolvedSource(label="set", path=path, content=f"{path}{settings}", **settings), cache / "cache"
    )


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def _write_arrow(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "a.jsonl": lambda path: path.write_text(_lines(ROWS)),
    "lines.json": lambda path: path.write_text(_lines(ROWS)),
    "blank-lines.jsonl": lambda path: path.write_text(
        "\ufeff" + "\n" + _lines(ROWS).replace("\n", "\r\n\n") + "\n"
    ),
    "array.json": lambda path: path.write_text(json.dumps(ROWS)),
    "pretty.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "wrapped.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS}, indent=1)),
    "array.jsonl": lambda path: path.write_text(json.dumps(ROWS)),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(_lines(ROWS).encode())),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "a.arrow": lambda path: _write_arrow(path, ROWS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_its_rows_by_number(tmp_path, name):
    WRITERS[name](tmp_path / name)
    rows = _load(tmp_path / name, tmp_path)
    assert len(rows) == len(ROWS)
    assert rows.columns == ("chosen", "rejected", "input")
    assert [rows[i] for i in (1099, 0, 512, 511)] == [ROWS[i] for i in (1099, 0, 512, 511)]


@pytest.mark.parametrize("name", ["a.jsonl", "lines.json", "a.jsonl.gz"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_line_longer_than_a_row_may_be_is_passed_by(tmp_path, monkeypatch, name, place):
    """It is counted as a row that is none, also where the file ends in it; a packed one may hold gigabytes."""
    monkeypatch.setattr(json_rows, "MAX_ROW_CHARACTERS", 1000)
    monkeypatch.setattr(json_rows, "MAX_WHOLE_CHARACTERS", 1000)
    lines = [json.dumps({"chosen": "a", "rejected": str(i)}) for i in range(2)]
    lines.insert(place, json.dumps({"chosen": "a", "rejected": "b" * 5000}))
    text = "\n".join(lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    rows = _load(tmp_path / name, tmp_path)
    expected = ["0", "1"]
    expected.insert(place, None)
    assert [rows[i] and rows[i]["rejected"] for i in range(3)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"chosen": "a"}, {"chosen": "' + "b" * 5000 + '"}]', "element 1 is longer than"),
        ('{"chosen": "a"} {"chosen":\n "' + "b" * 5000 + '"}', "one JSON object of more than"),
        ('{"chosen":\n "a", "data": [' + "1, " * 500 + "1]}", "too long for a row"),
        ('{"data":\n [' + '{"a": 1}, ' * 500 + '{}], "rejected": "b"}', "too long for a row"),
        ('{"data":\n [' + '{"a": 1}, ' * 500 + '{}], "rows": []}', "several lists of rows"),
        ('{"data":\n [' + '{"a": 1}, ' * 500 + "{}]} 1", "too long for a row"),
        ('{"other":\n ["' + "b" * 900 + '", 0], "more": ["' + "b" * 900 + '"]}', "too long for a row"),
        ('{"data":\n [' + '{"a": 1}, ' * 500 + "{}], 1}", "a name is expected"),
        ('{"data":\n [' + '{"a": 1}, ' * 500 + '{}], "b", 1}', "a colon is expected"),
    ],
)
def test_json_longer_than_is_read_whole_is_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(json_rows, "MAX_ROW_CHARACTERS", 1000)
    monkeypatch.setattr(json_rows, "MAX_WHOLE_CHARACTERS", 1000)
    monkeypatch.setattr(json_rows, "READ_CHARACTERS", 100)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        _load(tmp_path / "a.json", tmp_path)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_rows_of_an_object_that_is_longer_than_one_may_be_are_read_one_by_one(tmp_path, monkeypatch, size):
    monkeypatch.setattr(json_rows, "MAX_ROW_CHARACTERS", 1000)
    monkeypatch.setattr(json_rows, "MAX_WHOLE_CHARACTERS", 1000)
    monkeypatch.setattr(json_rows, "READ_CHARACTERS", size)
    whole = {"version": [1, {"a": 2}], "data": ROWS, "license": "x", "deep": {"data": [3]}}
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(whole, indent=indent))
        assert [row.value for row in readers.read_rows(tmp_path / "a.json")] == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_rows_need_not_agree_on_columns_or_types(tmp_path, name):
    (tmp_path / name).write_text(
        _lines(MIXED) if name.endswith("l") else json.dumps(MIXED, ensure_ascii=False)
    )
    rows = _load(tmp_path / name, tmp_path)
    assert [rows[i] for i in range(len(rows))] == MIXED
    assert rows.columns == ("chosen", "other")


def test_an_array_longer_than_the_read_buffer_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "READ_CHARACTERS", 7)
    values = [{"n": 12345678901234567890, "s": ']},[ " é'}, 1234567, {"l": [[], {}]}, "x" * 50, -1.5e3, None]
    (tmp_path / "a.json").write_text(json.dumps(values, indent=1))
    assert [row.value for row in readers.read_rows(tmp_path / "a.json")] == values


def test_a_lone_surrogate_does_not_stop_the_reading(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"chosen": "\\ud83d broken"}\n')
    assert _load(tmp_path / "a.jsonl", tmp_path)[0] == {"chosen": "\ud83d broken"}


def test_a_directory_is_read_file_by_file_in_order_of_names(tmp_path):
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.jsonl").write_text(_lines(ROWS[2:4]))
    (folder / "a.json").write_text(json.dumps(ROWS[:2]))
    pq.write_table(pa.Table.from_pylist(ROWS[4:6]), folder / "sub" / "c.parquet")
    (folder / "README.md").write_text("not data")
    (folder / ".hidden.jsonl").write_text("{}")
    rows = _load(folder, tmp_path)
    assert [rows[i] for i in range(len(rows))] == ROWS[:6]


@pytest.mark.parametrize(
    "name", ["b.jsonl.zst", "b.ndjson", "B.JSONL", "sub/b.json.xz", "b.parquet.gz", "train-2.feather"]
)
def test_rows_of_a_directory_that_are_not_read_are_not_missed_in_silence(tmp_path, name):
    folder = tmp_path / "set"
    (folder / name).parent.mkdir(parents=True)
    (folder / ("train-1.jsonl" if "train" in name else "a.jsonl")).write_text(_lines(ROWS[:2]))
    (folder / name).write_bytes(b"")
    with pytest.raises(DataError, match="would be missed"):
        _load(folder, tmp_path)
    (folder / name).rename(folder / "test.jsonl.zst")  # of another split
    assert len(_load(folder, tmp_path)) == 2


def test_a_snapshot_directory_gives_the_split_asked_for(tmp_path):
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    for split, rows in {"train_prefs": ROWS[:3], "test_prefs": ROWS[3:4], "train_sft": ROWS[4:9]}.items():
        pq.write_table(pa.Table.from_pylist(rows), data / f"{split}-00000-of-00001.parquet")
    assert len(_load(tmp_path / "set", tmp_path, split="train_prefs")) == 3
    assert len(_load(tmp_path / "set", tmp_path, split="test_prefs")) == 1
    with pytest.raises(DataError, match="test_prefs, train_prefs, train_sft"):
        _load(tmp_path / "set", tmp_path)


def test_train_files_are_not_mixed_with_test_files(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(_lines(ROWS[:3]))
    (tmp_path / "set" / "test.jsonl").write_text(_lines(ROWS[3:]))
    assert len(_load(tmp_path / "set", tmp_path)) == 3


def test_a_set_saved_to_disk_by_datasets_is_read(tmp_path):
    datasets.Dataset.from_list(ROWS[:5]).save_to_disk(tmp_path / "saved")
    (data,) = (tmp_path / "saved").glob("*.arrow")
    (data.parent / "cache-0123456789abcdef.arrow").write_bytes(
        data.read_bytes()
    )  # as `map` leaves them there
    rows = _load(tmp_path / "saved", tmp_path)
    assert (len(rows), rows[4]) == (5, ROWS[4])


def test_rows_that_were_fetched_in_another_form_are_fetched_again():
    """The fetch of a Hub set is looked up by its job, its rows by their form; the mixture has no network."""
    assert FetchJob.VERSION == LAYOUT


def test_rows_are_read_once_per_content(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(_lines(ROWS[:3]))
    _load(path, tmp_path)
    path.unlink()
    assert len(_load(path, tmp_path)) == 3


def test_what_killed_readers_left_of_a_set_goes_once_it_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(_lines(ROWS[:3]))
    kept = _load(path, tmp_path).folder
    shutil.rmtree(kept)
    left = [kept.with_name(f".{kept.name}.{number:016x}{ASIDE}") for number in (1, 2)]
    for folder in left:
        folder.mkdir()
        (folder / "rows.arrow").write_bytes(b"half")
    assert len(_load(path, tmp_path)) == 3
    assert not any(folder.exists() for folder in left)


def test_the_hub_loader_reads_a_repository_with_its_split_and_columns(tmp_path):
    folder = tmp_path / "repo" / "data"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS[:4]), folder / "test-00000-of-00001.parquet")
    source = ResolvedSource(label="repo", hub_id=str(tmp_path / "repo"), content="x", split="test")
    assert load_source(source, tmp_path / "cache")[3] == ROWS[3]
    with pytest.raises(DataError, match="split `train`"):
        load_source(source.model_copy(update={"split": "train", "content": "y"}), tmp_path / "cache")


def _cut(path):
    path.write_text(_lines(ROWS[:3])[:-9] + "\n")


UNREADABLE = {
    "missing.jsonl": (lambda path: None, "does not exist"),
    "a.csv": (lambda path: path.write_text("a,b"), r"Supported: \.jsonl"),
    "cut.jsonl": (_cut, r"cut\.jsonl line 3 is no complete JSON value"),
    "cut.json": (lambda path: path.write_text(json.dumps(ROWS[:3])[:-20]), r"cut\.json .*element 2"),
    "cut-object.json": (lambda path: path.write_text(json.dumps({"data": ROWS}, indent=1)[:-20]), "cut off"),
    "cut.jsonl.gz": (lambda path: path.write_bytes(gzip.compress(_lines(ROWS).encode())[:-50]), "damaged"),
    "no-gzip.jsonl.gz": (lambda path: path.write_text(_lines(ROWS)), "damaged"),
    "cut.parquet": (lambda path: path.write_bytes(b"PAR1" + b"x" * 40), "no readable Parquet file"),
    "cut.arrow": (lambda path: path.write_bytes(b"x" * 40), "no readable Arrow file"),
    "empty.jsonl": (lambda path: path.write_text(""), "is empty"),
    "blank.json": (lambda path: path.write_text("\n \n"), "is empty"),
    "empty.json": (lambda path: path.write_text("[]"), "is empty"),
    "numbers.json": (lambda path: path.write_text("[1, 2]"), "first value is a number"),
    "texts.jsonl": (lambda path: path.write_text('"a"\n"b"\n'), "first value is a text"),
    "packed.jsonl": (
        lambda path: path.write_bytes(gzip.compress(b"{}\n")),
        "gzip-compressed.* Name it .jsonl.gz",
    ),
    "zstd.json": (lambda path: path.write_bytes(b"\x28\xb5\x2f\xfd\xff"), "compressed .zstd.* Unpack it"),
    "table.jsonl": (
        lambda path: pq.write_table(pa.table({"a": [1]}), path),
        "a Parquet file.* Name it .parquet",
    ),
    "latin1.jsonl": (lambda path: path.write_bytes(b'{"chosen": "\xe9"}\n'), "not UTF-8"),
    "directory.jsonl": (lambda path: path.mkdir(), "holds no data file"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_input_is_an_error_that_says_where(tmp_path, name):
    write, message = UNREADABLE[name]
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as raised:
        _load(tmp_path / name, tmp_path)
    assert name.split(".")[0] in str(raised.value) or "set is empty" in str(raised.value)
    assert not list((tmp_path / "cache").glob("rows/*/rows.arrow"))


def test_an_unknown_column_is_named_beside_the_existing_ones(tmp_path):
    (tmp_path / "a.jsonl").write_text(_lines(ROWS[:2]))
    with pytest.raises(DataError, match=r"no column `winner`.*chosen, rejected, input"):
        _load(tmp_path / "a.jsonl", tmp_path, columns={"chosen": "winner"})


def test_a_column_map_the_wrong_way_round_is_explained(tmp_path):
    (tmp_path / "a.jsonl").write_text(_lines(ROWS[:2]))
    with pytest.raises(DataError, match=r"names `winner`, which is none of ours: prompt, chosen"):
        _load(tmp_path / "a.jsonl", tmp_path, columns={"winner": "chosen"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"split": "test"}, "only the split `train`"), ({"subset": "en"}, "no subset `en`")],
)
def test_a_local_file_has_neither_splits_nor_subsets(tmp_path, settings, message):
    (tmp_path / "a.jsonl").write_text(_lines(ROWS[:2]))
    with pytest.raises(DataError, match=message):
        _load(tmp_path / "a.jsonl", tmp_path, **settings)


def test_damaged_stored_rows_are_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text(_lines(ROWS[:2]))
    _load(tmp_path / "a.jsonl", tmp_path)
    next((tmp_path / "cache").glob("rows/*/about.json")).write_text("{")
    with pytest.raises(StoreError, match="Delete it"):
        _load(tmp_path / "a.jsonl", tmp_path)


WIDE = [
    {"prompt": "p", "chosen": f"c{i}", "rejected": "r", "winner": "w", "a.b": i, "extra": [i]}
    for i in range(3)
]


@pytest.mark.parametrize("ending", ["parquet", "arrow", "folder"])
def test_columns_that_are_not_asked_for_are_not_read(tmp_path, ending):
    path = tmp_path / ("folder/rows.parquet" if ending == "folder" else f"rows.{ending}")
    path.parent.mkdir(exist_ok=True)
    (
        _write_arrow
        if ending == "arrow"
        else lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path)
    )(path, WIDE)
    source = path.parent if ending == "folder" else path
    plain = _load(source, tmp_path)
    assert plain[1] == {"prompt": "p", "chosen": "c1", "rejected": "r"}
    assert plain.columns == ("prompt", "chosen", "rejected", "winner", "a.b", "extra")  # told of in errors
    mapped = load_source(
        ResolvedSource(
            label="set", path=source, content=f"{source}{{}}", columns={"chosen": "winner", "weight": "a.b"}
        ),
        tmp_path / "cache",
    )
    assert mapped[2] == {"prompt": "p", "chosen": "c2", "rejected": "r", "winner": "w", "a.b": 2}
    fields = ResolvedEvaluationSet(label="set", path=source, content=f"{source}{{}}", fields=("extra",))
    assert load_source(fields, tmp_path / "cache")[0]["extra"] == [0]


def test_a_column_that_cannot_be_read_is_not_missed(tmp_path):
    """Its pages are spoilt: whoever reads them gets nonsense or an error."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"extra": row["chosen"] * 99} for row in WIDE]), path)
    column = pq.ParquetFile(path).metadata.row_group(0).column(5)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    with pytest.raises(OSError, match="page header"):
        pq.read_table(path)
    assert len(_load(path, tmp_path)) == 3


class _Watched(dict):
    """A row that notes what is looked at."""

    def __init__(self, row, seen):
        super().__init__(row)
        self.seen = seen

    def get(self, name, default=None):
        self.seen.add(name)
        return super().get(name, default)

    def __getitem__(self, name):
        self.seen.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"instruction": "p", "input": "i", "chosen": "c", "rejected": "r"},
        {
            "chosen": [{"role": "user", "content": "p"}] * 2,
            "rejected": [{"role": "user", "content": "p"}] * 2,
        },
        {"messages": [{"role": "user", "content": "p"}], "chosen": "c", "rejected": "r"},
        {"conversations": [{"from": "human", "value": "p"}], "chosen": "c", "rejected": "r", "system": "s"},
        {"chosen": "\n\nHuman: p\n\nAssistant: c", "rejected": "\n\nHuman: p\n\nAssistant: r"},
        {},
    ],
)
def test_no_row_is_recognised_by_a_column_that_is_not_read(row):
    seen = set()
    with contextlib.suppress(RowDropped):
        to_pair(_Watched(row, seen))
    assert seen <= READ_COLUMNS
