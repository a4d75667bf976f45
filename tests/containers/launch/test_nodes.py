"""Two containers as two nodes on a private network: they find each other, and what happens to one ends the other.

The real trainer shares the weights out across them (ZeRO-3), so every forward is one of both, in several chunks of logits.
"""

import contextlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import docker
import pytest

from dpo_core.contract.errors import StepCrashed
from dpo_core.contract.job import LOG_FILE
from dpo_core.contract.jobs import Sharding, TrainJob
from dpo_core.contract.store import write_json
from tasks.image.image_ref import PYTHON
from tasks.launch.command import ACCELERATE_FILE, accelerate_settings, nodes_of, step_command
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.docker.config import DockerConfig
from tasks.launch.docker.container import container_name
from tasks.launch.docker.launcher import DockerLauncher
from tasks.launch.launcher import CommandSpec
from tasks.launch.run_job import in_store, run_job
from tests.containers.launch.test_steps import allow_reading
from tests.step_process import metrics_of
from tests.tiny_stage import TinyStage
from tests.waiting import wait_until

pytestmark = pytest.mark.integration
COMPUTE = ComputeConfig(
    launcher="docker",
    machines=2,
    num_processes=2,
    sharding="zero3",
    threads_per_process=1,
    join_timeout_seconds=120,
)
SECONDS_TO_END = 120  # 4 on a quiet machine; without it the other would wait for an exchange that never comes


@pytest.fixture(scope="module")
def launcher(trainer_of_small_chunks: str) -> DockerLauncher:
    return DockerLauncher(COMPUTE, trainer_of_small_chunks, PYTHON, DockerConfig(memory_gib=4))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> TinyStage:
    made = TinyStage.make(tmp_path_factory.mktemp("stage"))
    allow_reading(made.checkpoint.path)
    return made


@pytest.fixture
def job(stage: TinyStage, tmp_path: Path):
    made = stage.train_job(
        Path("unset"), processes=2, per_device=1, num_epochs=50, max_steps=6, sharding=Sharding(kind="zero3")
    )
    return in_store(made, tmp_path)


def commands_of(job, launcher: DockerLauncher) -> tuple[CommandSpec, ...]:
    compute = launcher.compute
    return tuple(
        step_command(job, compute, launcher.machine, PYTHON, node) for node in nodes_of(job, compute)
    )


def prepare(job: TrainJob) -> None:
    """What ``run_job`` does before a start."""
    job.write()
    write_json(job.out_dir / ACCELERATE_FILE, accelerate_settings(on_cpu=True))
    (job.out_dir / LOG_FILE).touch()


def test_a_late_node_joins_and_both_are_ranks_of_one_world(launcher, job):
    """Each node's command by itself, as a cluster's scheduler would start them."""
    first, second = commands_of(job, launcher)
    lines: list[str] = []

    with ThreadPoolExecutor() as pool:
        one = pool.submit(launcher.run, (first,), Context(), lines.append, partial(prepare, job))
        time.sleep(12)
        two = pool.submit(launcher.run, (second,), Context(), lines.append, lambda: None)
        ends = (one.result(), two.result())
    assert [end.exit_code for end in ends] == [0, 0], "\n".join(lines)
    assert (
        len(metrics_of(job.out_dir)) == 6
    )  # every step's global batch was shared by both; the trainer checks its world
    assert any(line.startswith("[node 0] ") for line in lines)


def test_a_killed_node_ends_the_other_with_one_error_that_names_it(launcher, job, record_property):
    job = job.model_copy(
        update={"train": job.train.model_copy(update={"max_steps": 2000, "num_epochs": 500})}
    )
    name = container_name(commands_of(job, launcher)[1])
    with ThreadPoolExecutor() as pool, contextlib.closing(docker.from_env()) as client:
        run = pool.submit(run_job, job, launcher)
        wait_until(lambda: len(metrics_of(job.out_dir)) > 2 or run.done())
        client.containers.get(name).kill()
        killed = time.monotonic()
        with pytest.raises(StepCrashed, match=rf"node 1 \({name}\) was killed by signal 9") as caught:
            run.result()
        seconds = time.monotonic() - killed
        record_property("seconds until the other ended", seconds)
        assert not client.containers.list(
            all=True, ignore_removed=True, filters={"label": f"pairline.job={job.fingerprint}"}
        )
        assert not client.networks.list(filters={"label": f"pairline.job={job.fingerprint}"})
    assert seconds < SECONDS_TO_END
    assert caught.value.retryable


def test_an_absent_node_is_waited_for_as_long_as_was_said(launcher, job, record_property):
    launcher = replace(launcher, compute=COMPUTE.model_copy(update={"join_timeout_seconds": 10}))
    first, _ = commands_of(job, launcher)
    lines: list[str] = []

    started = time.monotonic()
    ended = launcher.run((first,), Context(), lines.append, partial(prepare, job))
    seconds = time.monotonic() - started
    record_property("seconds until it gave up", seconds)
    assert ended.exit_code != 0
    assert 10 <= seconds < 10 + 300  # imports on a busy machine
    assert re.search(
        r"Timed out after [1-5]\d seconds waiting for clients\. 1/2 clients joined", lines[-1]
    )  # torch
