"""A run at this moment, from files that grow, are begun anew, or hold anything."""

import json
import os
from pathlib import Path

import pytest

from dpo_core.contract.errors import StoreError
from dpo_core.contract.metrics_file import METRICS_FILE
from dpo_core.contract.progress import MARK
from tasks.report.blocks import Text
from tasks.report.page import write_report
from tasks.run.chain import TO_COME, Link, chain_of
from tasks.run.files import log_of, read_run_files
from tasks.run.folder import RunRecord, TaskRecord, read_run
from tasks.run.followed import FollowedFiles
from tasks.run.live import BYTES_OF_THE_PAST, FollowedLog, RunLook
from tests.tasks.report.made_run import config_of, make_run
from tests.tasks.run.growing_run import TOTAL, GrowingRun


def event(done: int) -> str:
    return json.dumps({MARK: "progress", "step": "train", "done": done, "total": 9, "unit": "steps"})


def test_a_log_is_read_on_from_where_it_was(tmp_path):
    path = tmp_path / "log.txt"
    log = FollowedLog(path)
    log.look()
    assert (log.event, log.last_line) == (None, "")
    path.write_text(f"# start\nhello\n{event(1)}\n{event(2)[:20]}")
    log.look()
    assert (log.event.done, log.last_line) == (1, "hello")
    with path.open("ab") as file:
        file.write(event(2)[20:].encode() + b"\nstep 3: chosen answers fall\n\xff\xfe\nstep 4: x\n")
    log.look()
    assert log.event.done == 2
    assert list(log.warnings) == ["step 3: chosen answers fall", "step 4: x"]
    assert log.last_line == "step 4: x"


def test_what_an_earlier_start_said_is_over(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(f"{event(5)}\n\n# 2026-01-01 00:00:00 accelerate launch ...\n")
    log = FollowedLog(path)
    log.look()
    assert log.event is None


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_log_that_is_begun_anew_is_read_anew(tmp_path, is_replaced):
    path = tmp_path / "log.txt"
    path.write_text(f"{event(5)}\nstep 5: old\n")
    log = FollowedLog(path)
    log.look()
    if is_replaced:
        (tmp_path / "new").write_text(f"{event(5)}\nnew and longer than it was\n{event(6)}\n")
        os.replace(tmp_path / "new", path)
    else:
        path.write_text(f"{event(6)}\n")
    log.look()
    assert log.event.done == 6
    assert not log.warnings


def bytes_read() -> int:
    """By this process so far, files' and others'."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_of_a_log_of_any_length_only_its_end_is_read_and_then_what_is_new(tmp_path):
    """Also by the page of a run that trains, which is written again and again."""
    growing = GrowingRun(tmp_path)
    growing.train_to(20)
    log = log_of(read_run_files(growing.folder).steps["train"].folder)
    os.truncate(log, 100 << 20)
    growing.say("step 3: in a line that was begun long before\nstep 20: chosen answers fall")
    followed, before = FollowedFiles(), bytes_read()
    write_report(growing.folder, followed)
    first = bytes_read() - before
    assert BYTES_OF_THE_PAST < first < BYTES_OF_THE_PAST + (1 << 20)
    growing.say("step 40: margins follow length")
    before = bytes_read()
    page = write_report(growing.folder, followed)
    assert bytes_read() - before < 1 << 20
    warned = [block.text for block in page.summary if isinstance(block, Text) and block.tone == "warn"]
    assert warned == ["step 20: chosen answers fall", "step 40: margins follow length"]


def test_of_a_training_of_any_length_a_look_reads_the_steps_that_are_new(tmp_path):
    """By a page that is written again and again, and by who watches."""
    growing = GrowingRun(tmp_path)
    growing.train_to(2000)
    followed, look = FollowedFiles(), RunLook(growing.folder)
    write_report(growing.folder, followed)
    assert look.look().files.metrics.count == 2000
    size = (growing.train / METRICS_FILE).stat().st_size
    growing.train_to(2001)
    for again in (lambda: write_report(growing.folder, followed), look.look):
        before = bytes_read()
        again()
        assert bytes_read() - before < size / 2
    metrics = look.look().files.metrics
    assert (metrics.count, metrics.last["step"]) == (2001, 2001)


def test_of_what_came_since_the_last_look_no_more_is_read_either(tmp_path):
    log = FollowedLog(path := tmp_path / "log.txt")
    path.write_text("step 1: told\nstep 2: cut off he")
    log.look()
    os.truncate(path, path.stat().st_size + (100 << 20))
    with path.open("a") as file:
        file.write("re\nstep 3: new\n")
    before = bytes_read()
    log.look()
    assert bytes_read() - before < BYTES_OF_THE_PAST + (1 << 16)
    assert list(log.warnings) == ["step 1: told", "step 3: new"]


def test_a_pipe_in_place_of_a_log_makes_nobody_wait(tmp_path):
    os.mkfifo(tmp_path / "log.txt")
    log = FollowedLog(tmp_path / "log.txt")
    log.look()
    assert log.event is None


def test_a_run_is_looked_at_while_it_trains(tmp_path):
    growing = GrowingRun(tmp_path)
    look = RunLook(growing.folder)
    growing.say("loading weights")
    assert look.look().event is None
    assert look.look().last_line == "loading weights"
    growing.train_to(100, rate=2.0)
    first = look.look()
    assert first.event.done == 100
    assert 0 < first.seconds_left <= (TOTAL - 100) / 2
    assert first.files.metrics.count == 100
    growing.train_to(120)
    growing.say("step 120: held-out chosen answers fall")
    (growing.folder / "run.log").open("a").write("2026-01-01 00:00:00,000 WARNING few pairs\n")
    second = look.look()
    assert (second.event.done, second.files.metrics.count) == (120, 120)
    assert second.warnings == ("few pairs", "step 120: held-out chosen answers fall")


def test_a_run_that_has_ended_is_at_no_step(tmp_path):
    growing = GrowingRun(tmp_path)
    growing.train_to(20)
    growing.change(state="failed", error="x")
    assert RunLook(growing.folder).look().event is None


def test_a_run_that_is_removed_is_an_error(tmp_path):
    growing = GrowingRun(tmp_path)
    look = RunLook(growing.folder)
    look.look()
    (growing.folder / "run.json").unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        look.look()


def names(record: RunRecord, **sections) -> list[str]:
    config = config_of("store").model_dump(mode="json") | sections
    return [link.name for link in chain_of(record, config)]


def record(*tasks: str, name: str = "demo", state: str = "running") -> RunRecord:
    made = [
        TaskRecord(name=one, state="completed", started="2026-01-01T00:00:00Z", seconds=1) for one in tasks
    ]
    return RunRecord(name=name, state=state, started="2026-01-01T00:00:00Z", pid=os.getpid(), tasks=made)


STAGE = ["fetch checkpoint", "mix data", "cache reference", "train", "evaluate", "upload", "hand off"]


@pytest.mark.parametrize(
    ("found", "sections", "chain"),
    [
        (record(), {}, STAGE),
        (record(*STAGE[:4]), {}, STAGE),
        (record(*STAGE[:2], "train"), {}, [*STAGE[:2], *STAGE[3:]]),
        (record(), {"loss": {"name": "simpo"}}, [*STAGE[:2], *STAGE[3:]]),
        (record(*STAGE[:2], state="failed"), {}, STAGE[:2]),
        (record("train", name="demo-01"), {}, ["train", "evaluate"]),
        (record(name="demo-prepared"), {}, STAGE[:3]),
        (
            record("build image"),
            {"gate": {"approval": "person"}},
            ["build image", *STAGE[:5], "approve", *STAGE[5:]],
        ),
        (record(), {"judge": {"kind": "reward_model"}}, [*STAGE[:5], "judge", *STAGE[5:]]),
        (record(), {"evaluation": {"sets": [{"name": "a"}]}}, [STAGE[0], "mix sets", *STAGE[1:]]),
        (record(), {"gate": {"accuracy_at_least": 0.6}}, [*STAGE[:5], "gate", *STAGE[5:]]),
        (record(), {"gate": {"unknown": 1}, "loss": "?"}, STAGE),
        (
            record(),
            {"benchmarks": {"tasks": ["ifeval"]}},
            [*STAGE[:3], "benchmark of SFT", "train", "evaluate", "benchmark", *STAGE[5:]],
        ),
        (
            record(*STAGE[:3], "member 1: beta 0.1"),
            {"sweep": {}},
            [*STAGE[:3], "member 1: beta 0.1", "choose winner", *STAGE[5:]],
        ),
    ],
)
def test_the_chain_tells_what_is_still_to_come(found, sections, chain):
    assert names(found, **sections) == chain


def test_a_whole_run_has_the_tasks_that_were_expected(tmp_path):
    """Those of the stage, by their names: what a run records and what is expected are one list."""
    folder = make_run(tmp_path)
    found = read_run(folder)
    links = chain_of(found, config_of(tmp_path).model_dump(mode="json"))
    assert all(link.seconds is not None for link in links)
    begun = chain_of(found.model_copy(update={"state": "running", "tasks": found.tasks[:1]}), {})
    assert begun[1:] == tuple(Link(name, TO_COME) for name in STAGE[2:])
