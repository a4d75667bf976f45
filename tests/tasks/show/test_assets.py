"""Assets: what a run made itself, under keys that stay, with what it was made from; never a failure."""

from prefect.assets import Asset

from dpo_core.contract.errors import StepCrashed
from dpo_core.contract.store import write_json
from tasks.run.files import read_run_files
from tasks.run.folder import RUN_FILE, read_run
from tasks.show.assets import MATERIALIZED, REFERENCED, emit_assets, materializations
from tests.tasks.report.made_run import HEX, make_run


def test_a_run_tells_of_what_it_made(tmp_path):
    made = {
        one.asset.key: one
        for one in materializations(read_run_files(make_run(tmp_path, label="my set.jsonl")))
    }
    assert set(made) == {"pairline://demo/mixture", "pairline://demo/reference", "pairline://demo/checkpoint"}
    checkpoint = made["pairline://demo/checkpoint"]
    assert checkpoint.metadata["fingerprint"] == HEX
    assert checkpoint.asset.properties.url.startswith("hf://org/dpo@")
    assert {asset.key for asset in checkpoint.made_from} == {
        "pairline://demo/reference",
        "pairline://demo/mixture",
        "source://org/sft",
    }
    assert {asset.key for asset in made["pairline://demo/mixture"].made_from} == {
        "source://my-set.jsonl",
        "source://org/sft",
    }


def test_a_failed_run_tells_of_what_it_had_made(tmp_path):
    made = materializations(read_run_files(make_run(tmp_path, fails=StepCrashed("x"))))
    assert [one.asset.key for one in made] == ["pairline://demo/mixture", "pairline://demo/reference"]


def test_what_was_found_done_is_not_told_again(tmp_path):
    folder = make_run(tmp_path)
    record = read_run(folder)
    write_json(
        folder / RUN_FILE,
        record.model_copy(update={"jobs": [job.model_copy(update={"reused": True}) for job in record.jobs]}),
    )
    assert materializations(read_run_files(folder)) == []


def test_the_events_are_those_of_prefects_own_assets(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr("tasks.show.assets.emit_event", lambda **event: sent.append(event))
    emit_assets(make_run(tmp_path))
    by_kind = {
        kind: [event for event in sent if event["event"] == kind] for kind in (MATERIALIZED, REFERENCED)
    }
    assert len(by_kind[MATERIALIZED]) == 3
    assert len(by_kind[MATERIALIZED]) + len(by_kind[REFERENCED]) == len(sent)
    for event in sent:
        Asset(key=event["resource"]["prefect.resource.id"])  # a key that Prefect accepts
    assert all(event["related"] for event in by_kind[MATERIALIZED])


def test_events_that_cannot_be_sent_fail_nothing(tmp_path, monkeypatch, caplog):
    def no_server(**event):
        raise ConnectionError("nobody listens")

    monkeypatch.setattr("tasks.show.assets.emit_event", no_server)
    emit_assets(make_run(tmp_path))
    assert "nobody listens" in caplog.text
    emit_assets(tmp_path / "no run")
