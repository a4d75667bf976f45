"""A step as an experiment: read by beaker-py's own classes, and its script by a shell."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from beaker import BeakerExperimentSpec

from dpo_core.contract.errors import ConfigError
from tasks.launch.docker.config import DockerConfig
from tasks.launch.job_spec import beaker
from tasks.launch.job_spec.beaker import experiment, script
from tasks.launch.job_spec.config import BeakerConfig
from tasks.launch.job_spec.step_description import Asked, describe
from tests.tasks.launch.job_spec.conftest import COMPUTE, IMAGE

SECOND = 10**9  # nanoseconds, in which Beaker keeps times


@pytest.fixture
def section(volume: Path) -> Callable[..., BeakerConfig]:
    def made(**changed: object) -> BeakerConfig:
        values = {
            "workspace": "ai2/align",
            "budget": "ai2/oe-adapt",
            "clusters": ["ai2/jupiter-cirrascale-2"],
            "image": "you/pairline-trainer",
            "weka": "oe-adapt-default",
            "mount_path": volume,
            "nodes": 2,
            "gpus_per_node": 8,
            "cpus_per_node": 96,
            "memory_gib": 900,
            "secrets": {"WANDB_API_KEY": "you_WANDB_API_KEY"},
        }
        return BeakerConfig.model_validate(values | changed)

    return made


def read_back(spec: dict[str, Any], tmp_path: Path) -> BeakerExperimentSpec:
    """By beaker-py's reader of files, nothing of it dropped."""
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(spec))
    read = BeakerExperimentSpec.from_file(file)
    assert names_of(read.to_json()) >= names_of(spec)
    return read


def names_of(value: object, place: str = "") -> set[str]:
    if isinstance(value, dict):
        return set().union({place}, *(names_of(one, f"{place}.{name}") for name, one in value.items()))
    if isinstance(value, list):
        return set().union({place}, *(names_of(one, place) for one in value))
    return {place}


def test_beaker_py_reads_all_of_it(training: Asked, section, tmp_path: Path):
    read = read_back(experiment(training, COMPUTE, DockerConfig(), section(), IMAGE), tmp_path)
    (task,) = read.tasks
    assert (read.budget, read.retry.allowed_task_retries) == ("ai2/oe-adapt", 6)
    assert (task.replicas, task.leader_selection, task.host_networking) == (2, True, True)
    assert (task.propagate_failure, task.propagate_preemption) == (True, True)
    assert task.timeout == COMPUTE.step_timeout_seconds * SECOND
    assert task.synchronized_start_timeout == COMPUTE.join_timeout_seconds * SECOND
    assert (task.resources.gpu_count, task.resources.cpu_count, task.resources.memory) == (8, 96, "900GiB")
    assert (task.context.priority.name, task.context.min_runtime, task.context.auto_resume) == (
        "normal",
        0,
        True,
    )
    assert task.constraints.cluster == ["ai2/jupiter-cirrascale-2"]
    assert (task.image.beaker, task.result.path) == ("you/pairline-trainer", "/output")
    mounts = {one["mountPath"]: one["source"] for one in task.to_json()["datasets"]}
    assert mounts["/run/secrets/WANDB_API_KEY"] == {"secret": "you_WANDB_API_KEY"}
    assert mounts[str(section().mount_path)] == {"weka": "oe-adapt-default"}
    names = {one.name for one in task.env_vars}
    assert "NCCL_DEBUG" in names
    assert "NCCL_SOCKET_IFNAME" not in names  # eth0 is a container's; the hosts' is their site's


def test_a_task_that_may_not_be_preempted_and_one_node(training: Asked, section, tmp_path: Path):
    one = replace(training, step="export", job=None)
    read = read_back(experiment(one, COMPUTE, DockerConfig(), section(preemptible=False), IMAGE), tmp_path)
    (task,) = read.tasks
    assert (task.replicas, task.host_networking, task.context.auto_resume) == (None, False, None)
    assert task.resources.gpu_count is None


def test_what_is_missing_is_named_at_once(training: Asked, section, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"needs beaker\.workspace, beaker\.budget, .*beaker\.memory_gib"):
        experiment(training, COMPUTE, DockerConfig(), BeakerConfig(), IMAGE)
    with pytest.raises(ConfigError, match=r"does not lie below beaker\.mount_path"):
        experiment(training, COMPUTE, DockerConfig(), section(mount_path=tmp_path / "other"), IMAGE)


def started(training: Asked, section, program: str, output: Path, monkeypatch) -> subprocess.Popen:
    """The task's script in a shell, with a program of one line in the step's place."""
    monkeypatch.setattr(beaker, "OUTPUT", str(output))
    step = describe(training, COMPUTE, DockerConfig(), section(), beaker.WORDS, IMAGE)
    assert '--machine_rank "$BEAKER_REPLICA_RANK" --main_process_ip "$BEAKER_LEADER' in script(step)
    argv = (sys.executable, "-c", program, beaker.WORDS.rank)
    step = replace(step, container=replace(step.container, argv=argv))
    env = os.environ | {"BEAKER_REPLICA_RANK": "0"}
    return subprocess.Popen(["/bin/sh", "-c", script(step)], env=env, stdout=subprocess.PIPE, text=True)


def test_the_script_keeps_the_exit_code_and_the_reports(training: Asked, section, tmp_path, monkeypatch):
    output = tmp_path / "output"
    output.mkdir()
    program = "import sys; open('result.json', 'w').write('{}'); print('rank', sys.argv[1]); sys.exit(20)"
    process = started(training, section, program, output, monkeypatch)
    said = process.communicate(timeout=60)[0]
    assert (process.returncode, said) == (20, "rank 0\n")
    assert {one.name for one in output.iterdir()} == {"job.json", "result.json"}


def test_the_script_passes_sigterm_on_and_waits_for_the_checkpoint(
    training: Asked, section, tmp_path, monkeypatch
):
    output = tmp_path / "output"
    output.mkdir()
    program = (
        "import signal, sys, time\n"
        "def stop(*_): time.sleep(0.3); open('metrics.jsonl', 'w').write('kept'); sys.exit(20)\n"
        "signal.signal(signal.SIGTERM, stop); print('ready', flush=True); time.sleep(60)"
    )
    process = started(training, section, program, output, monkeypatch)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(timeout=60) == 20
    assert time.monotonic() - began < 60
    assert (output / "metrics.jsonl").read_text() == "kept"
