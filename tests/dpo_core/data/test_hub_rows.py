"""What can be wrong with a Hub data set, each said with its cause. A repository is a folder, read by the same loader."""

import gzip
import importlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import get_session, hf_raise_for_status

from dpo_core.contract.errors import DataError, PairlineError, RemoteError
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data.deep_json import TOO_DEEP
from dpo_core.data.hub_rows import _check_own_files, _in_words
from dpo_core.data.sources import RowStore, load_source
from tests.hub_server import serve

CLIENT = importlib.import_module(HTTPError.__module__.partition(".")[0])  # what the Hub's library is built on
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
    "converted, several subsets": (
        {"a/train/0000.parquet": ROWS, "b/train/0000.parquet": ROWS, "b/train/0001.parquet": ROWS},
        "loaded|holds the subsets a, b at this revision.*Name one with `subset`",
    ),
    "converted in part": (
        {"default/partial-train/0000.parquet": ROWS},
        "loaded|only the first part.*partial-train",
    ),
}


@pytest.mark.parametrize(("files", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_set_that_cannot_be_read_says_why(files: dict[str, bytes], sentence: str, tmp_path: Path):
    with pytest.raises(
        DataError,
        match=sentence.removeprefix("loaded|")
        if "loaded" in sentence
        else f"(?s)cannot be loaded.*{sentence}",
    ):
        loaded(tmp_path, files)


ELSEWHERE = (
    "{outside}/secrets.json",
    "{outside}/*.json",
    "../secrets.json",
    "zip://secrets.json::{outside}/a.zip",
)


@pytest.mark.parametrize("path", ELSEWHERE)
def test_files_that_are_not_the_sets_own_are_not_read(path: str, tmp_path: Path):
    """The library follows a README.md to any file that this user may read."""
    (tmp_path / "secrets.json").write_bytes(lines(row(0)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "secrets.json", "secrets.json")
    about = f"---\nconfigs:\n- {{config_name: default, data_files: '{path.format(outside=tmp_path)}'}}\n---\n"
    with pytest.raises(DataError, match="as one of its files, which it is not"):
        loaded(tmp_path, {"README.md": about.encode(), "train.jsonl": lines(row(1))})


@pytest.mark.parametrize(
    ("path", "is_own"),
    [
        ("hf://datasets/org/set@0123abc/data/a.parquet", True),
        ("hf://datasets/Org/Set@refs%2Fconvert%2Fparquet/a.parquet", True),
        ("zip://a.csv::hf://datasets/org/set@0123abc/a.zip", True),
        ("hf://datasets/org/set-private@0123abc/a.parquet", False),
        ("hf://datasets/org/set@0123abc/../other@1/a.parquet", False),
        ("hf://datasets/me/private@main/a.parquet", False),
        ("hf://buckets/org/set/a.parquet", False),
        ("https://internal.example/rows.json", False),
        ("s3://bucket/org/set/a.parquet", False),
    ],
)
def test_whose_file_an_address_names(path: str, is_own: bool):
    source = ResolvedSource(label="org/set", hub_id="org/set", content="x")
    with nullcontext() if is_own else pytest.raises(DataError, match="which it is not"):
        _check_own_files({"train": [path]}, source)


def test_a_time_that_python_does_not_know_ends_nothing(tmp_path: Path):
    table = pa.Table.from_pylist([row(0), row(1)]).append_column(
        "at", pa.array([10**15, 1], pa.timestamp("s"))
    )
    rows = loaded(tmp_path, {"train.parquet": parquet(table)})
    assert [{**rows[number], "at": None} for number in range(2)] == [
        {**row(number), "at": None} for number in range(2)
    ]


DEEP = {
    "in a column that nobody reads": ("extra", "[" * 3000 + "]" * 3000, row(9)),
    "deeper than a process bears": ("extra", "[" * 200_000 + "]" * 200_000, row(9)),
    "in the answer": ("rejected", '{"a":' * 3000 + "1" + "}" * 3000, {"rejected": TOO_DEEP}),
    "as a text": ("rejected", json.dumps("[" * 3000), {"rejected": "[" * 3000}),
    "within what is followed": ("extra", "[" * 70 + "]" * 70, row(9)),
}


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz"])
@pytest.mark.parametrize(("column", "text", "expected"), DEEP.values(), ids=DEEP)
def test_a_value_beyond_the_parsers_depth_costs_its_row_at_most(
    column: str, text: str, expected: dict, ending: str, tmp_path: Path
):
    """As in a local file: the library's reader ends at some hundred brackets, and its process at some thousand."""
    deep = json.dumps({**row(9), column: "HERE"}).replace('"HERE"', text)
    texts = [json.dumps(row(0)), deep, json.dumps({**row(1), "note": "]" * 99})]
    content = ("[" + ",".join(texts) + "]" if ending == "json" else "\n".join(texts) + "\n").encode()
    files = {f"train.{ending}": gzip.compress(content) if ending.endswith("gz") else content}
    rows = loaded(tmp_path, files)
    assert len(rows) == 3
    assert (rows[0]["prompt"], rows[2]["prompt"]) == ("p 0", "p 1")
    assert {name: rows[1][name] for name in expected} == expected


@pytest.mark.integration
def test_a_mixture_with_such_a_row_goes_on_without_it(tmp_path: Path):
    deep = json.dumps({**row(9), "rejected": "HERE"}).replace('"HERE"', "[" * 3000 + "]" * 3000).encode()
    with serve() as hub:
        hub.add_repo("org/deep", {"train.jsonl": lines(row(0), row(1)) + deep + b"\n"}, kind="dataset")
        script = tmp_path / "mix.py"
        script.write_text(MIX)
        home = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
        told = subprocess.run(
            [sys.executable, script, tmp_path],
            env={**os.environ, **home, "HF_HUB_OFFLINE": "0"},
            text=True,
            capture_output=True,
        )
    assert told.stdout.splitlines()[-1:] == ["3 2 {'not_a_preference_row': 1}"], told.stderr[-3000:]


MIX = """
import sys
from pathlib import Path
from dpo_core.contract.data_jobs import FetchJob, MixJob
from dpo_core.contract.refs import ResolvedSource
from tests.tiny_models import make_tokenizer
from tests.tiny_stage import run_here

folder = Path(sys.argv[1])
source = ResolvedSource(label="deep", hub_id="org/deep", content="org/deep@main")
make_tokenizer().save_pretrained(folder / "tokenizer")
shared = {"cache_dir": folder / "cache"}
assert run_here(FetchJob(source=source, **shared).at(folder / "fetch")).num_rows == 3
job = MixJob(sources=(source,), tokenizer_path=folder / "tokenizer", tokenizer_fingerprint="t", num_workers=1,
             held_out="0", max_dropped_fraction=1.0, **shared)
(ledger,) = run_here(job.at(folder / "mix")).per_source
print(ledger.rows_in, ledger.kept, ledger.dropped)
"""


def test_values_of_several_kinds_in_a_column_are_what_the_file_holds(tmp_path: Path):
    messages = [{"role": "assistant", "content": "a"}]
    mixed = [row(0), {**row(1), "chosen": messages}, {**row(2), "chosen": None}]
    rows = loaded(tmp_path, {"train.jsonl": lines(*mixed)})
    assert [rows[number] for number in range(3)] == mixed


def test_a_subset_of_the_hubs_own_parquet_files_is_read_by_its_folder(tmp_path: Path):
    other = parquet(pa.Table.from_pylist([row(7)]))
    files = {"a/train/0000.parquet": ROWS, "b/train/0000.parquet": other, "b/test/0000.parquet": ROWS}
    assert [loaded(tmp_path, files, subset="b")[0]["prompt"]] == ["p 7"]
    with pytest.raises(DataError, match="BuilderConfig 'c' not found"):
        loaded(tmp_path, files, subset="c")


def test_the_one_subset_of_the_hubs_own_files_needs_no_name(tmp_path: Path):
    assert (
        len(loaded(tmp_path, {"default/train/0000.parquet": ROWS, "default/train/0001.parquet": ROWS})) == 6
    )


@pytest.mark.parametrize(
    ("status", "kind", "sentence"),
    [
        (401, DataError, "does not let this token read the data set org/set .split `train`."),
        (403, DataError, "Ask for access on its page, or give a token that has it"),
        (404, DataError, r"refused a part of the data set .* \(404\)"),
        (416, DataError, r"\(416\).*delete the set from the Hub's cache"),
        (451, DataError, r"\(451\)"),
        (408, RemoteError, "did not answer"),
        (429, RemoteError, "did not answer"),
        (500, RemoteError, "did not answer"),
        (503, RemoteError, "did not answer"),
    ],
)
def test_what_the_hub_answers_says_whether_trying_again_may_help(
    status: int, kind: type[PairlineError], sentence: str
):
    """An error as the client makes it of an answer, and as the library wraps it."""
    with serve() as hub:
        hub.add_repo("org/set", {"train.jsonl": lines(row(0))}, kind="dataset")
        hub.failures["train.jsonl"] = [status]
        answer = get_session().get(f"{hub.endpoint}/datasets/org/set/resolve/main/train.jsonl")
        with pytest.raises(HfHubHTTPError) as caught:
            hf_raise_for_status(answer)
    assert_says(caught.value, kind, sentence)


@pytest.mark.parametrize(
    "error",
    [
        CLIENT.RemoteProtocolError("peer closed connection without sending complete message body"),
        CLIENT.ConnectError("no route"),
        CLIENT.ReadTimeout("timed out"),
        LocalEntryNotFoundError("neither there nor in the cache"),
        ConnectionError("Couldn't reach 'org/set' on the Hub"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_connection_that_ends_may_be_tried_again(error: Exception):
    assert_says(error, RemoteError, "did not answer for org/set")


def assert_says(error: Exception, kind: type[PairlineError], sentence: str) -> None:
    error.__context__ = FileNotFoundError(
        "org/set is not cached either"
    )  # what the library tried before it gave up
    wrapped = DatasetGenerationError("An error occurred while generating the dataset")
    wrapped.__cause__ = error
    source = ResolvedSource(label="org/set", hub_id="org/set", content="x")
    for one in (error, wrapped):
        found = _in_words(one, source)
        assert type(found) is kind
        assert re.search(sentence, str(found)), str(found)
        assert "not cached" not in str(found)
