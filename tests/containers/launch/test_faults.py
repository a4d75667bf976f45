"""What is lost when a container, an orchestrator, the engine or the disk fails in mid-step: nothing that was done.

The figures that docs/containers.md shows are properties of these tests (`pytest --junitxml`).
"""

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dpo_core.contract.errors import StepCrashed
from tasks.launch.docker.container import container_name
from tasks.launch.docker.engine import ContainerEngine
from tasks.launch.docker.engine_answers import EngineLost
from tasks.launch.docker.reap import reap
from tasks.launch.own_folder import own_folder
from tasks.launch.run_job import run_job
from tests.containers.launch.stand_in import ROOT, ContainerStep, command_of
from tests.containers.launch.watching import (
    CHECKPOINTS_WHEN_ASKED,
    COUNTING,
    Heard,
    container_of,
    killed_orchestrator,
    run_and_hear,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


RESUMES = """
    if (folder / "checkpoint").exists():
        succeed()
    else:
        (folder / "checkpoint").write_text("half")
        print("checkpoint", flush=True)
        time.sleep(600)"""


def test_docker_kill_in_mid_step_is_a_crash_and_a_retry_resumes(make, client, record_property):
    step = make(RESUMES)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(step.run)
        wait_until(lambda: "checkpoint" in step.log_lines)
        container_of(client, step).kill()
        killed = time.monotonic()
        with pytest.raises(StepCrashed, match="killed by signal 9") as caught:
            run.result()
    assert caught.value.retryable
    record_property("seconds until it is known", time.monotonic() - killed)
    step.run()
    record_property("seconds until resumed and done", time.monotonic() - killed)
    assert step.num_starts == 2


def test_a_killed_orchestrators_container_is_adopted_without_a_lost_line(make, client, record_property):
    step = make(COUNTING.format(count=60, pause=0.05))
    killed_orchestrator(step, lines=20)
    assert container_of(client, step).status == "running"
    time.sleep(1)
    heard, started = Heard(), time.monotonic()
    with ThreadPoolExecutor() as pool:
        run = pool.submit(run_and_hear, step, heard)
        step.go_on()
        wait_until(lambda: heard.lines)
        record_property("seconds until attached", time.monotonic() - started)
        run.result()
    assert step.num_starts == 1
    assert step.log_lines == [f"line {number}" for number in range(60)]


def test_what_ended_while_nobody_watched_is_reused_or_started_anew(make, client):
    step = make("""
        print("up", flush=True)
        wait_for("go-on")
        print("unseen", flush=True)
        if (folder / "starts").read_text().count("start") == 2:
            succeed()""")
    killed_orchestrator(step, lines=1)
    step.go_on()
    wait_until(lambda: container_of(client, step).status == "exited")
    step.run()
    assert step.num_starts == 2
    assert step.log_lines == ["up", "unseen"] * 2


def test_a_container_that_somebody_removed_is_judged_by_what_it_left(make, client):
    step = make("""
        if (folder / "starts").read_text().count("start") == 2:
            succeed()
        print("up", flush=True)
        time.sleep(600)""")
    with ThreadPoolExecutor() as pool:
        for start in (1, 2):
            run = pool.submit(step.run)
            wait_until(lambda number=start: len(step.log_lines) == number)
            container_of(client, step).remove(force=True)
            if start == 1:
                with pytest.raises(StepCrashed, match="killed by signal 9"):
                    run.result()
        assert (run.result().path / "weights").read_text() == "weights"


def test_a_container_whose_inputs_lie_elsewhere_by_now_writes_its_checkpoint_before_another_starts(
    make, client, tmp_path
):
    step = make("""
        def checkpoint(*_):
            print("asked", flush=True)
            (folder / "checkpoint").write_text("written")
            sys.exit(20)
        signal.signal(signal.SIGTERM, checkpoint)
        print("up", flush=True)
        if (folder / "checkpoint").exists():
            succeed()
        else:
            time.sleep(600)""")
    killed_orchestrator(step, lines=1)
    assert container_of(client, step).status == "running"
    (tmp_path / "moved").mkdir()
    run_job(step.job.model_copy(update={"source_dir": tmp_path / "moved"}), step.launcher)
    assert step.log_lines == ["up", "asked", "up"]


def test_a_container_that_succeeded_while_nobody_watched_is_removed_when_its_result_is_reused(make, client):
    step = make('print("up", flush=True); wait_for("go-on"); print("unseen", flush=True); succeed()')
    killed_orchestrator(step, lines=1)
    left = container_of(client, step)
    step.go_on()
    wait_until(lambda: client.containers.get(left.id).status == "exited")
    step.run()
    assert step.num_starts == 1
    assert step.log_lines == ["up", "unseen"]
    assert left.id not in {
        container.id for container in client.containers.list(all=True, ignore_removed=True)
    }


def test_a_killed_daemon_costs_nothing(make, own_engine, record_property):
    step, heard = make(COUNTING.format(count=80, pause=0.05)), Heard()

    with ThreadPoolExecutor() as pool:
        running = pool.submit(run_and_hear, step, heard)
        wait_until(lambda: len(heard.lines) >= 20)
        own_engine.kill()
        time.sleep(2)
        already = len(heard.lines)
        own_engine.start()
        back = time.monotonic()
        step.go_on()
        wait_until(lambda: len(heard.lines) > already)
        record_property("seconds from the daemon's return to the next line", time.monotonic() - back)
        running.result()
    assert step.num_starts == 1
    assert heard.lines == step.log_lines == [f"line {number}" for number in range(80)]


def test_a_daemon_that_stays_away_leaves_the_step_to_the_next_start(make, own_engine):
    step = make(COUNTING.format(count=60, pause=0.05))
    impatient = replace(step.launcher, patience_seconds=1)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run_job, step.job, impatient)
        wait_until(lambda: len(step.log_lines) >= 10)
        own_engine.kill()
        with pytest.raises(EngineLost) as caught:
            running.result()
        assert caught.value.retryable
    own_engine.start()
    step.go_on()
    step.run()
    assert step.num_starts == 1
    assert step.log_lines == [f"line {number}" for number in range(60)]


def test_a_daemon_without_live_restore_ends_its_containers_and_a_retry_resumes(
    make, own_engine, record_property
):
    step = make(RESUMES)
    own_engine.kill()
    own_engine.start(live_restore=False)
    try:
        with ThreadPoolExecutor() as pool:
            run = pool.submit(step.run)
            wait_until(lambda: "checkpoint" in step.log_lines)
            own_engine.kill()
            own_engine.start(live_restore=False)
            back = time.monotonic()
            with pytest.raises(StepCrashed) as caught:
                run.result()
        assert caught.value.retryable
        step.run()
        record_property("seconds from the daemon's return until resumed and done", time.monotonic() - back)
        assert step.num_starts == 2
    finally:
        own_engine.kill()
        own_engine.start()


def test_two_runs_of_one_job_share_one_container(make):
    step, heard = make(COUNTING.format(count=20, pause=0.05)), Heard()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(step.run)
        wait_until(lambda: step.log_lines)
        second = pool.submit(run_and_hear, step, heard)
        wait_until(lambda: heard.lines or second.done())
        step.go_on()
        assert second.result() == first.result()
    assert step.num_starts == 1
    assert "waits for another run" in heard.lines[0]


def test_when_the_first_of_two_runs_is_killed_the_second_takes_its_container_over(make, record_property):
    step, heard = make(COUNTING.format(count=80, pause=0.05)), Heard()

    process = subprocess.Popen(step.orchestrator(), env=os.environ | {"PYTHONPATH": str(ROOT)})
    with ThreadPoolExecutor() as pool:
        wait_until(lambda: len(step.log_lines) >= 5)
        run = pool.submit(run_and_hear, step, heard)
        wait_until(lambda: heard.lines)
        process.kill()
        killed = time.monotonic()
        process.wait()
        step.go_on()
        wait_until(lambda: len(heard.lines) > 1)
        record_property("seconds until taken over", time.monotonic() - killed)
        run.result()
    assert step.num_starts == 1
    assert step.log_lines == [f"line {number}" for number in range(80)]


def test_reap_ends_what_no_live_run_owns_and_nothing_else(make, client, own_engine):
    step = make(CHECKPOINTS_WHEN_ASKED)
    foreign = client.containers.run(
        step.image,
        ["sleep", "600"],
        detach=True,
        network_mode="none",
        labels={"pairline.step": "train", "other": "1"},
    )
    try:
        with ThreadPoolExecutor() as pool:
            run = pool.submit(step.run)
            wait_until(lambda: step.log_lines)
            (owned,) = reap(ContainerEngine(own_engine.address))
            assert (owned.done, owned.reason) == ("left alone: a live run owns it", "")
            away = step.folder.rename(step.folder.with_name("away"))
            (unseen,) = reap(ContainerEngine(own_engine.address))
            assert unseen.done.startswith("left alone: its folder is not to be seen")
            away.rename(step.folder)
            container_of(client, step).kill()
            with pytest.raises(StepCrashed):
                run.result()
        for folder in (step.folder, own_folder(step.folder)):
            shutil.rmtree(folder)
        step = ContainerStep(step.root, step.address, step.image, CHECKPOINTS_WHEN_ASKED)
        killed_orchestrator(step, lines=1)
        (would,) = reap(ContainerEngine(own_engine.address), dry_run=True)
        assert would.done == "would be stopped and removed"
        assert container_of(client, step).status == "running"
        (done,) = reap(ContainerEngine(own_engine.address))
        assert (done.name, done.done, done.reason) == (
            container_name(command_of(step)),
            "stopped and removed",
            "no live run owns it",
        )
        assert (step.folder / "checkpoint").exists()
        assert step.log_lines == ["up"]
        assert [container.id for container in client.containers.list(all=True, ignore_removed=True)] == [
            foreign.id
        ]
    finally:
        foreign.remove(force=True)
