"""Answers from the terminal that do not arrive end in a sentence that says what to do."""

import os
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from dpo_core.contract.errors import ConfigError, RemoteError
from flows.terminal.answer_run import answer_run
from tasks.run.find import find_run
from tasks.run.folder import RunRecord

NOBODY = "http://127.0.0.1:9/api"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one run, and the address of a server that is not there."""
    record = RunRecord(name="tiny", started=datetime.now(UTC), pid=os.getpid(), flow_run_id=str(uuid4()))
    folder = tmp_path / "runs" / "20260101-000000-tiny"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(record.model_dump_json())
    monkeypatch.setattr("os.environ", os.environ | {"PREFECT_API_URL": NOBODY})
    return tmp_path


def test_an_answer_that_no_server_takes_can_be_given_again(store: Path):
    with (
        temporary_settings({PREFECT_API_URL: NOBODY, PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.raises(RemoteError, match="answer again"),
    ):
        answer_run(store, "last", "approve", "Ann", "fine")


def test_an_answer_to_a_run_that_is_not_there_says_where_to_look(store: Path):
    with pytest.raises(ConfigError, match="pairline status --store"):
        answer_run(store, "another", "approve", "Ann", "fine")


@pytest.mark.parametrize("name", ["last", "last~0", "20260101-000000-tiny"])
def test_a_run_is_found_by_every_name_that_a_report_takes(store: Path, name: str):
    assert find_run(name, store).name == "20260101-000000-tiny"
    with (
        temporary_settings({PREFECT_API_URL: NOBODY, PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.raises(RemoteError, match="answer again"),
    ):
        answer_run(store, name, "approve", "Ann", "fine")
