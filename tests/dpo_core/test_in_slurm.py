"""The first program of a task: its rank, and that an older start ends once a newer one began."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dpo_core.in_slurm import address_of, main, ranks, wait_for
from tests.waiting import wait_until

GIVEN = {
    "SLURM_NTASKS": "16",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "40007",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
    "PAIRLINE_FIRST_NODE": "localhost",
}


def test_a_task_is_a_rank():
    told = ranks(GIVEN)
    assert (told["RANK"], told["LOCAL_RANK"], told["WORLD_SIZE"], told["LOCAL_WORLD_SIZE"]) == (
        "11",
        "3",
        "16",
        "8",
    )
    assert told["MASTER_ADDR"] == "localhost"
    assert 20_000 <= int(told["MASTER_PORT"]) < 32_000


def test_another_start_takes_another_port():
    assert ranks(GIVEN)["MASTER_PORT"] != ranks(GIVEN | {"SLURM_RESTART_COUNT": "1"})["MASTER_PORT"]


def test_one_process_is_told_no_rank():
    assert ranks(GIVEN | {"SLURM_NTASKS": "1"}) == {}


def test_a_node_without_a_name_is_reached_by_its_address():
    assert address_of("no-such-host.invalid", "10.0.0.7") == "10.0.0.7"


def start_task(record, name: str, before: str, script: str) -> subprocess.Popen:
    (record / name / "ranks").mkdir(parents=True)
    (record / "attempt").write_text(name)
    environment = os.environ | GIVEN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    argv = [
        sys.executable,
        "-m",
        "dpo_core.in_slurm",
        str(record / name),
        before,
        sys.executable,
        "-c",
        script,
    ]
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_rank_dies_with_its_first_program(tmp_path):
    """Whatever kills that: the next start could not tell a rank that lives on from one that is gone."""
    task = start_task(tmp_path, "key.0", "", "import time; print('up', flush=True); time.sleep(60)")
    assert task.stdout is not None
    assert task.stdout.readline() == "up\n"
    task.kill()
    assert task.communicate(timeout=30)[0] == ""  # the pipe ends with the last that holds it


def test_a_newer_start_ends_the_older_and_begins_after_it(tmp_path):
    script = f"import time; open({str(tmp_path / 'times')!r}, 'a').write(f'{{time.time()}}\\n'); time.sleep(SECONDS)"
    ghost = start_task(tmp_path, "key.0", "", script.replace("SECONDS", "600"))
    until = time.monotonic() + 20
    while not (tmp_path / "times").exists() and time.monotonic() < until:
        time.sleep(0.05)
    heir = start_task(tmp_path, "key.1", str(tmp_path / "key.0"), script.replace("SECONDS", "0"))
    said, _ = ghost.communicate(timeout=120)
    heir.communicate(timeout=120)
    assert (ghost.returncode, heir.returncode) == (75, 0)
    assert "A newer start of this step has begun" in said
    end = json.loads((tmp_path / "key.0/ranks/rank-0.json").read_text())
    assert end["code"] == 75
    assert float((tmp_path / "times").read_text().split()[1]) >= end["time"] - 0.5


def test_a_task_that_has_said_how_it_ended_is_not_waited_for(tmp_path):
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks/rank-0.json").write_text('{"rank": 0, "code": 0}')
    began = time.monotonic()
    wait_for(tmp_path, seconds=10)
    assert time.monotonic() - began < 5


def test_a_task_that_says_nothing_is_waited_for_though_its_batch_script_has_ended(tmp_path):
    """As on a node that was lost. One that was killed outright costs the next start no more than these seconds."""
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks/rank-0.json").write_text('{"rank": 0}')
    (tmp_path / "exit").write_text("0 1")
    began = time.monotonic()
    wait_for(tmp_path, seconds=1)
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("code", [0, 7])
def test_the_commands_exit_code_is_the_tasks(tmp_path, code: int):
    task = start_task(tmp_path, "key.0", "", f"import sys; sys.exit({code})")
    task.communicate(timeout=120)
    assert task.returncode == code
    assert json.loads((tmp_path / "key.0/ranks/rank-0.json").read_text())["code"] == code


@pytest.mark.parametrize("because", ["a newer start", "the run is over"])
def test_a_task_that_begins_too_late_starts_nothing(tmp_path, monkeypatch, because: str):
    """Its node was slow, or Slurm had lost it meanwhile."""
    start = tmp_path / "key.0"
    (start / "ranks").mkdir(parents=True)
    if because == "a newer start":
        (tmp_path / "attempt").write_text("key.1")
    else:
        (start / "over").touch()
    monkeypatch.setenv("SLURM_PROCID", "0")
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = main([str(start), "", sys.executable, "-c", f"open({str(tmp_path / 'began')!r}, 'w')"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 75
    assert not (tmp_path / "began").exists()
    assert json.loads((start / "ranks/rank-0.json").read_text())["code"] == 75


def test_a_task_whose_run_is_over_is_ended(tmp_path):
    """On a lost node, of a job that was cancelled: no newer start will tell it."""
    ghost = start_task(tmp_path, "key.0", "", "import time; print('up', flush=True); time.sleep(600)")
    assert ghost.stdout
    assert ghost.stdout.readline() == "up\n"
    (tmp_path / "key.0/over").touch()
    ghost.communicate(timeout=120)
    assert ghost.returncode == 75


@pytest.mark.parametrize("is_early", [False, True], ids=["at work", "before it began"])
def test_what_a_task_alone_is_asked_its_command_hears(tmp_path, is_early: bool):
    """Where Slurm tracks processes by cgroups, it signals no other one of a task's."""
    script = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(20))\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )
    before = tmp_path / "key.0"
    (before / "ranks").mkdir(parents=True)
    if is_early:  # it waits for one that lives
        (before / "ranks/rank-0.json").write_text('{"rank": 0}')
    task = start_task(tmp_path, "key.1", str(before), script)
    written = tmp_path / "key.1/ranks/rank-0.json"
    if is_early:
        wait_until(written.exists, "the task")
        task.send_signal(signal.SIGTERM)
        (before / "ranks/rank-0.json").write_text('{"rank": 0, "code": 0}')
    else:
        assert task.stdout is not None
        assert task.stdout.readline() == "up\n"
        task.send_signal(signal.SIGTERM)
    code = task.wait(timeout=30)
    assert code in ((20, 128 + signal.SIGTERM) if is_early else (20,))
    assert json.loads(written.read_text())["code"] in (20, -signal.SIGTERM)


STOPS = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(20)); "
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); "


@pytest.mark.parametrize(("answer", "seconds", "code"), [(STOPS, "60", 20), (DEAF, "1", 75), (STOPS, "", 75)])
def test_a_run_that_is_over_leaves_the_seconds_that_it_says_for_a_checkpoint(
    tmp_path, answer: str, seconds: str, code: int
):
    script = f"import signal, sys, time; {answer}print('up', flush=True); time.sleep(600)"
    task = start_task(tmp_path, "key.0", "", script)
    assert task.stdout is not None
    assert task.stdout.readline() == "up\n"
    (tmp_path / "key.0/over").write_text(seconds)
    task.communicate(timeout=120)
    assert task.returncode == code
    assert json.loads((tmp_path / "key.0/ranks/rank-0.json").read_text())["code"] == code
