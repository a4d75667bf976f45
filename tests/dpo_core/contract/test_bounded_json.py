"""JSON of megabytes that would be gigabytes as Python values, in every file of others that the orchestrator reads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_core.contract import bounded_json
from dpo_core.contract.errors import CheckpointError, HandoffRefused
from dpo_core.contract.regular_file import TooLong
from tasks.checkpoint.own_files import read_json_file
from tasks.checkpoint.safetensors_header import read_header
from tasks.handoff.schema import read_handoff
from tasks.run.files import _json
from tasks.run.garbage import named_in

DENSE = '{"a": [' + "[]," * 4_000 + "[]]}"
READERS: dict[str, Callable[[Path], object]] = {
    "config.json": read_json_file,
    "handoff.json": read_handoff,
    "model.safetensors": read_header,
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_json, "MAX_MARKS", 2_000)


@pytest.mark.parametrize("text", [DENSE, "[" + '{"":0},' * 2_000 + "0]", "[" + "0," * 2_000 + "0]"])
def test_more_values_than_a_file_holds_are_not_made(text: str):
    with pytest.raises(TooLong, match="more than 2,000 values"):
        bounded_json.bounded_json(text.encode())


def test_what_is_within_the_bound_is_what_json_reads():
    value = {"a": [1, {"b": ","}], "text": "a long one " * 1_000}
    assert bounded_json.bounded_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_them(name: str, tmp_path: Path):
    length = len(DENSE).to_bytes(8, "little") if name.endswith("safetensors") else b""
    (tmp_path / name).write_bytes(length + DENSE.encode())
    with pytest.raises((CheckpointError, HandoffRefused), match="values"):
        READERS[name](tmp_path / name)


def test_a_step_s_files_lead_nowhere(tmp_path: Path):
    (tmp_path / "result.json").write_text(DENSE)
    assert _json(tmp_path / "result.json") is None
    assert list(named_in(tmp_path, tmp_path)) == []
