"""Rows that hold more than a parser follows, and columns that Python cannot hold: text, or a drop that is named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from dpo_core.contract.data_jobs import MixJob, MixResult
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data.columnar_rows import rows_of
from dpo_core.data.json_text import from_json_text
from dpo_core.data.repeated_names import SEVERAL_VALUES
from dpo_core.data.row_columns import constraint_list
from tests.tiny_models import make_tokenizer
from tests.tiny_stage import run_here

GOOD = [{"prompt": f"p {number}", "chosen": "yes it is", "rejected": "no"} for number in range(3)]
DEPTHS = (500, 900, 1200, 5000, 200_000)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


def mixed(file: Path, tokenizer: Path, **of_source: Any) -> MixResult:
    source = ResolvedSource(label="rows", path=file, content=file.name, **of_source)
    job = MixJob(
        sources=(source,),
        tokenizer_path=tokenizer,
        tokenizer_fingerprint="t",
        held_out="0",
        num_workers=1,
        max_length_tokens=8192,
        max_dropped_fraction=1.0,
        cache_dir=file.parent / "cache",
    )
    return run_here(job.at(file.parent / "mix"))


def mixed_rows(rows: list[dict], folder: Path, tokenizer: Path) -> MixResult:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return mixed(file, tokenizer)


DEEP = {
    **{f"an answer that loops, {depth}": {"rejected": "[" * depth} for depth in DEPTHS},
    "an answer that loops in braces": {"rejected": '{"a":' * 3000},
    "an answer that closes them": {"rejected": "[" * 3000 + "]" * 3000},
    "a number of 6000 digits in an answer": {"rejected": "[" + "9" * 6000 + "]"},
    "a question about brackets": {"prompt": "[" * 3000 + " how many?", "rejected": "two"},
}


@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
def test_text_that_looks_like_deep_json_is_text(deep: dict, tmp_path: Path, tokenizer_folder: Path):
    (ledger,) = mixed_rows(
        [*GOOD, {"prompt": "nest", "chosen": "[1]", "rejected": "no", **deep}], tmp_path, tokenizer_folder
    ).per_source
    assert (ledger.rows_in, ledger.kept) == (4, 4)


@pytest.mark.parametrize("column", ["tools", "constraints", "system", "anything"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_deep_column_beside_the_answers_never_ends_the_mixture(
    column: str, depth: int, tmp_path: Path, tokenizer_folder: Path
):
    rows = [*GOOD, {"prompt": "x", "chosen": "a b", "rejected": "b", column: "[" * depth}]
    (ledger,) = mixed_rows(rows, tmp_path, tokenizer_folder).per_source
    assert ledger.rows_in == 4 == ledger.kept + sum(ledger.dropped.values())
    assert ledger.kept >= 3
    assert set(ledger.dropped) <= {"bad_tools", "bad_system", "no_label_left", "over_limits"}


@pytest.mark.parametrize(
    "column",
    [
        "prompt",
        "chosen",
        "rejected",
        "messages",
        "tools",
        "constraints",
        "system",
        "chat_template_kwargs",
        "weight",
    ],
)
def test_a_column_that_counts_and_is_too_deep_costs_its_row(
    column: str, tmp_path: Path, tokenizer_folder: Path
):
    """It is not taken for one that the row does not have."""
    deep = json.dumps({"prompt": "x", "chosen": "a b", "rejected": "b", column: "HERE"})
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({**row, "weight": 1}) + "\n" for row in GOOD)
        + deep.replace('"HERE"', "[" * 5000 + "]" * 5000)
    )
    (ledger,) = mixed(
        file, tokenizer_folder, columns={"weight": "weight"} if column == "weight" else {}
    ).per_source
    assert (ledger.rows_in, ledger.kept, sum(ledger.dropped.values())) == (4, 3, 1)


@pytest.mark.parametrize("text", ["[" * 5000, '{"a":' * 5000, "[" + "9" * 6000 + "]"])
def test_what_no_parser_follows_stays_text(text: str):
    assert from_json_text(text) is text
    assert constraint_list(text) == ()


BEYOND = pa.array([10**15, 1], pa.timestamp("s"))  # about the year 31,690,000
STRANGE: dict[str, pa.Array] = {
    "a time beyond Python's years": BEYOND,
    "a date beyond them": pa.array([3_000_000, None], pa.date32()),
    "a time of a zone that nobody knows": pa.array([1, 2], pa.timestamp("us", "Mars/Base")),
    "nanoseconds": pa.array([1, 2], pa.timestamp("ns")),
    "times in a list": pa.array([[10**15], []], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("s"))),
    "times in a message": pa.StructArray.from_arrays([BEYOND, pa.array(["a", "b"])], ["at", "by"]),
    "lengths of time": pa.array([1 << 62, 2], pa.duration("s")),
    "a picture": pa.array([b"\xff\xd8\xff", None], pa.binary()),
}


@pytest.mark.parametrize("column", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_column_that_no_preference_is_made_of_does_not_end_the_run(
    column: pa.Array, ending: str, tmp_path: Path, tokenizer_folder: Path
):
    table = pa.table({**{name: [row[name] for row in GOOD[:2]] for name in GOOD[0]}, "extra": column})
    file = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(table, file)
    else:
        pyarrow.feather.write_feather(table, file, compression="uncompressed")
    (ledger,) = mixed(file, tokenizer_folder).per_source
    assert (ledger.rows_in, ledger.kept) == (2, 2)


TEXTS = ["yes", "né", "yes"]
BYTES = pa.array([text.encode() for text in TEXTS])
HELD = {
    "views of text": pa.array(TEXTS, pa.string_view()),
    "views of bytes": pa.array([text.encode() for text in TEXTS], pa.binary_view()),
    "text, once for many rows": pa.array(TEXTS).dictionary_encode(),
    "bytes, once for many rows": BYTES.dictionary_encode(),
    "bytes, once for a run of rows": pa.RunEndEncodedArray.from_arrays(
        pa.array([1, 2, 3], pa.int32()), BYTES
    ),
}


@pytest.mark.parametrize("column", HELD.values(), ids=HELD)
def test_text_is_text_however_it_is_stored(column: pa.Array):
    assert [row["chosen"] for row in rows_of(pa.record_batch({"chosen": column}))] == TEXTS


def test_text_inside_of_messages_is_text_however_it_is_stored():
    role = pa.array([b"assistant"] * 3).dictionary_encode()
    message = pa.StructArray.from_arrays([role, HELD["views of bytes"]], ["role", "content"])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), message)
    assert [row["chosen"] for row in rows_of(pa.record_batch({"chosen": lists}))] == [
        [{"role": "assistant", "content": text}] for text in TEXTS
    ]


def test_a_map_is_an_object():
    kind = pa.map_(pa.string(), pa.binary())
    maps = pa.array([[("role", b"assistant"), ("content", b"yes")], [("a", b"1"), ("a", b"2")], None], kind)
    assert [row["chosen"] for row in rows_of(pa.record_batch({"chosen": maps}))] == [
        {"role": "assistant", "content": "yes"},
        {"a": SEVERAL_VALUES},
        None,
    ]


def test_an_interval_beside_a_strange_time_does_not_cost_the_answer():
    intervals = pa.array([(1, 2, 3), (0, 0, 0)], pa.month_day_nano_interval())
    message = pa.StructArray.from_arrays([BEYOND, intervals, pa.array(["a", "b"])], ["at", "for", "content"])
    assert [row["chosen"]["content"] for row in rows_of(pa.record_batch({"chosen": message}))] == ["a", "b"]


def test_an_answer_beside_a_strange_time_is_read_and_text_in_bytes_is_text():
    message = pa.StructArray.from_arrays([BEYOND, pa.array(["hello", "é"])], ["at", "content"])
    batch = pa.record_batch({"chosen": message, "rejected": [b"no", "né".encode()], "image": [b"\xff", None]})
    assert list(rows_of(batch)) == [
        {"chosen": {"at": 10**15, "content": "hello"}, "rejected": "no", "image": {"num_bytes": 1}},
        {"chosen": {"at": 1, "content": "é"}, "rejected": "né", "image": None},
    ]
    assert list(rows_of(pa.record_batch({"a": pa.array([], pa.int8())}))) == []


UNREAD = {
    "300 levels": "[" * 300 + "]" * 300,
    "3000 levels": "[" * 3000 + "]" * 3000,
    "3000 levels of objects": '{"a": "}", "b": [' * 3000 + "1" + "]}" * 3000,
    "a number of 70 bits": str(1 << 70),
    "a number of 5000 digits": "9" * 5000,
    "half a character": '"\\ud83d"',
    "no number": "NaN",
    "a date of the year 12000": '"12000-01-01"',
}


@pytest.mark.parametrize(
    ("name", "form"), [("rows.jsonl", "{}\n"), ("rows.json", "[{}]"), ("rows.json", '{{"data": [{}]}}')]
)
def test_json_in_a_column_that_nobody_reads_does_not_matter(
    name: str, form: str, tmp_path: Path, tokenizer_folder: Path
):
    rows = [
        json.dumps(GOOD[0] | {"prompt": kind})[:-1] + f', "extra": {text}}}' for kind, text in UNREAD.items()
    ]
    file = tmp_path / name
    file.write_text(form.format(("\n" if name == "rows.jsonl" else ",\n").join(rows)))
    (ledger,) = mixed(file, tokenizer_folder).per_source
    assert (ledger.rows_in, ledger.kept) == (len(UNREAD), len(UNREAD))
