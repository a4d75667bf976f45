"""How a step in a container starts and ends, on a real engine: results, logs, crashes, limits, stops, refusals."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dpo_core.contract.errors import ConfigError, OutOfMemory, StepCrashed, TimedOut
from tasks.launch.compute import Machine
from tasks.launch.context import Context
from tasks.launch.docker.container import container_name
from tasks.launch.docker.engine import ContainerEngine
from tasks.launch.run_job import run_job
from tests.containers.launch.stand_in import command_of
from tests.containers.launch.watching import (
    CHECKPOINTS_WHEN_ASKED,
    CHECKPOINTS_WHEN_LET_GO,
    Heard,
    container_of,
)
from tests.signalled import Terminated, asked_to_stop_twice
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


def test_a_step_leaves_its_result_and_its_log_and_no_container(make):
    """Lines on stdout and stderr in turn: none is lost, and their order stays."""
    step = make("""
        for number in range(2000):
            print(number, file=(sys.stdout, sys.stderr)[number % 2], flush=True)
        succeed()""")
    result = step.run()
    assert (result.path / "weights").read_text() == "weights"
    assert step.log_lines == [str(number) for number in range(2000)]
    assert step.run() == result
    assert step.num_starts == 1


def test_lines_come_while_the_step_runs(make):
    step = make("print('early', flush=True); wait_for('go-on'); succeed()")
    with ThreadPoolExecutor() as pool:
        run = pool.submit(step.run)
        wait_until(lambda: step.log_lines == ["early"])
        assert not run.done()
        step.go_on()
        run.result()


def test_long_and_broken_lines_arrive_whole(make):
    step = make(r"""
        print("x" * 100_000)
        sys.stdout.buffer.write(b"a\xff\nlast, without newline")
        sys.stdout.flush()
        succeed()""")
    step.run()
    long, broken, last = step.log_lines
    assert long == "x" * 100_000
    assert (broken[0], last) == ("a", "last, without newline")


def test_a_step_that_dies_is_a_crash_with_its_last_lines(make):
    step = make("print('before the end', flush=True); os.kill(os.getpid(), 9)")
    with pytest.raises(StepCrashed, match=r"ended with exit code 1(.|\n)*\| before the end"):
        step.run()


def test_the_memory_limit_is_told_from_the_containers_state(make):
    step = make(
        """
        import subprocess
        print("exit code", subprocess.run([sys.executable, "-c", "bytearray(400 << 20)"]).returncode, flush=True)
        sys.exit(1)""",
        memory_gib=0.125,
    )
    with pytest.raises(OutOfMemory, match="killed by the kernel for lack of memory") as caught:
        step.run()
    assert step.log_lines == ["exit code -9"]
    assert not caught.value.retryable


def test_a_step_over_its_time_is_asked_first(make):
    step = make(CHECKPOINTS_WHEN_ASKED, step_timeout_seconds=15)  # to come up in
    with pytest.raises(TimedOut, match="longer than 15 s"):
        step.run()
    assert (step.folder / "checkpoint").read_text() == "written"


def test_a_step_that_does_not_listen_is_killed(make):
    step = make(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(2000)",
        step_timeout_seconds=2,
        stop_grace_seconds=1,
    )
    started = time.monotonic()
    with pytest.raises(TimedOut):
        step.run()
    assert time.monotonic() - started < 1000


def test_docker_stop_lets_the_trainer_write_its_checkpoint_too(make, client):
    step = make(CHECKPOINTS_WHEN_ASKED)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(step.run)
        wait_until(lambda: step.log_lines)
        container_of(client, step).stop()
        with pytest.raises(StepCrashed):
            run.result()
    assert (step.folder / "checkpoint").exists()


class Cancels(Heard):
    def line(self, line: str) -> None:
        raise KeyboardInterrupt


def test_cancelling_the_wait_stops_the_step(make):
    step = make(CHECKPOINTS_WHEN_ASKED)
    with pytest.raises(KeyboardInterrupt):
        step.run(Context(lines=Cancels()))
    assert (step.folder / "checkpoint").exists()


def test_a_second_sigterm_does_not_cut_the_stop_short(make):
    """As from a worker that is taken down while a run of its is being cancelled."""
    step = make(CHECKPOINTS_WHEN_LET_GO)
    heeds = (step.folder / "asked").exists
    with asked_to_stop_twice(lambda: bool(step.log_lines), heeds, step.go_on), pytest.raises(Terminated):
        step.run()
    assert (step.folder / "checkpoint").exists()


def test_without_an_engine_the_error_says_what_to_do(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no engine answers at unix:///no/such\.sock.*set compute.launcher to process"
    ):
        ContainerEngine("unix:///no/such.sock").check()


def test_a_missing_image_is_named(make):
    step = make()
    missing = "sha256:" + "0" * 64
    launcher = replace(step.launcher, image=missing)
    with pytest.raises(ConfigError, match=f"The trainer image {missing} is not on the engine"):
        run_job(step.job, launcher)


def test_gpus_without_their_runtime_are_a_clear_error(make):
    step = make()
    launcher = replace(step.launcher, machine=Machine(num_cores=2, num_gpus=1))
    with pytest.raises(ConfigError, match="Install nvidia-container-toolkit"):
        run_job(step.job, launcher)


def test_a_foreign_container_of_the_name_is_refused_and_left_alone(make, client):
    step = make()
    foreign = client.containers.create(step.image, ["true"], name=container_name(command_of(step)))
    try:
        with pytest.raises(ConfigError, match=r"is not Pairline's.*docker rename"):
            step.run()
        foreign.reload()
    finally:
        foreign.remove()
