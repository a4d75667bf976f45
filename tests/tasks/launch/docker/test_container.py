"""A container's settings follow from command, compute and machine alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from dpo_core.contract.benchmark_job import TaskFolder
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.refs import CheckpointRef
from tasks.launch.command import step_command
from tasks.launch.compute import Machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context, RunName
from tasks.launch.docker.config import DockerConfig
from tasks.launch.docker.container import (
    ContainerSpec,
    Mount,
    Setup,
    container_name,
    container_spec,
    container_user,
    labels_of,
    name_by_labels,
)
from tasks.launch.docker.launcher import DockerLauncher
from tasks.launch.launcher import CommandSpec, Node
from tests.benchmark_jobs import benchmark_job

MACHINE = Machine(num_cores=8, num_gpus=0, memory_bytes=10 << 30)
COMMAND = CommandSpec(
    argv=("python", "-m", "x"),
    folder=Path("/s/train/ab"),
    timeout_seconds=60,
    step="train",
    job_fingerprint="f" * 64,
    env={"OMP_NUM_THREADS": "8"},
    inputs=(Path("/s/mix/cd/data"), Path("/models/a")),
)
COMPUTE = ComputeConfig(launcher="docker")


def spec(
    command: CommandSpec = COMMAND,
    docker: DockerConfig = DockerConfig(),
    machine: Machine = MACHINE,
    **environ: str,
) -> ContainerSpec:
    setup = Setup("sha256:abc", COMPUTE, docker, machine)
    return container_spec(command, setup, (1000, 1000), RunName("run-1", "flow-1"), 1234.5, environ)


@pytest.mark.parametrize("node", [Node(), Node(rank=1, num_nodes=2)])
def test_labels_make_the_name(node: Node):
    command = replace(COMMAND, node=node)
    labels = labels_of(command, RunName("run-1", "flow-1"), 1234.5, 30)
    assert name_by_labels(labels) == container_name(command)


def test_only_the_steps_own_folders_can_be_written():
    own, cache = Path("/s/train/ab"), Path("/s/reference-rows")
    assert spec().mounts == (
        Mount(Path("/models/a")),
        Mount(Path("/s/mix/cd/data")),
        Mount(own, writable=True),
    )
    with_cache = spec(replace(COMMAND, writable=(cache,)))
    assert [mount.path for mount in with_cache.mounts if mount.writable] == [own, cache]


def test_a_benchmark_reads_its_folders_of_tasks_and_writes_scores_that_others_find():
    own, cache, model = Path("/s/benchmark/ab"), Path("/s/benchmark-scores"), Path("/models/a")
    folders = tuple(TaskFolder(path=f"/home/ada/{name}", content=name) for name in ("tasks", "more-tasks"))
    checkpoint = CheckpointRef(path=model, fingerprint="a", tokenizer_fingerprint="b", source="a")
    job = benchmark_job(own, checkpoint, folders=folders, cache_dir=cache)
    command = step_command(job, COMPUTE, MACHINE, "python")
    assert set(spec(command).mounts) == {
        Mount(model),
        *(Mount(folder.path) for folder in folders),
        Mount(own, writable=True),
        Mount(cache, writable=True),
    }


def test_the_first_program_passes_sigterm_on():
    assert spec().argv == ("python", "-m", "dpo_core.in_container", "python", "-m", "x")


def test_nothing_of_the_orchestrators_environment_gets_in_without_need():
    hidden = {
        "HF_TOKEN": "planted",
        "AWS_SECRET_ACCESS_KEY": "planted",
        "HTTPS_PROXY": "planted",
        "PATH": "planted",
    }
    assert "planted" not in repr(spec(**hidden))
    assert spec().env["HF_HUB_OFFLINE"] == "1"
    assert spec().env["OMP_NUM_THREADS"] == "8"


def test_a_step_that_reads_from_a_hub_gets_the_network_and_a_token_file_and_no_token():
    command = replace(COMMAND, needs_network=True, secrets=("HF_TOKEN",))
    made = spec(command, HF_TOKEN="planted", HTTPS_PROXY="http://proxy", SSL_CERT_FILE="/etc/own-ca.pem")
    assert made.network == "pairline"
    assert (made.env["HTTPS_PROXY"], made.env["HF_TOKEN_PATH"]) == ("http://proxy", "/run/secrets/HF_TOKEN")
    assert Mount(Path("/etc/own-ca.pem")) in made.mounts
    assert made.secrets == ("HF_TOKEN",)
    tracked = spec(replace(COMMAND, needs_network=True, secrets=("WANDB_API_KEY",)), WANDB_API_KEY="planted")
    assert tracked.env["PAIRLINE_WANDB_KEY_FILE"] == "/run/secrets/WANDB_API_KEY"
    asking = spec(replace(COMMAND, needs_network=True, secrets=("JUDGE_API_KEY",)), JUDGE_API_KEY="planted")
    assert asking.env["PAIRLINE_JUDGE_KEY_FILE"] == "/run/secrets/JUDGE_API_KEY"
    assert "planted" not in str(asking)
    assert "planted" not in str(tracked)
    assert "planted" not in repr(made)
    assert "HF_HUB_OFFLINE" not in made.env
    assert spec().network == "none"
    assert spec(replace(command), docker=DockerConfig(network="mirror")).network == "mirror"


def test_only_a_step_that_compiles_may_execute_what_it_writes_to_memory():
    assert "exec" not in spec().scratch_options
    compiling = spec(replace(COMMAND, compiles=True))
    assert compiling.scratch_options == f"{spec().scratch_options},exec"
    assert compiling.env["TRITON_CACHE_DIR"].startswith("/tmp/")


def test_memory_is_the_recipes_or_nine_tenths_of_the_machines():
    assert spec().memory_bytes == 9 << 30
    assert spec(docker=DockerConfig(memory_gib=2)).memory_bytes == 2 << 30
    assert spec(machine=Machine(num_cores=1, num_gpus=0)).memory_bytes is None


def test_gpus_are_those_that_the_orchestrator_sees():
    cards = Machine(num_cores=8, num_gpus=2)
    assert spec().gpus == 0
    assert spec(machine=cards).gpus == 2
    assert spec(machine=cards, CUDA_VISIBLE_DEVICES="4,6").gpus == ("4", "6")


def test_nodes_on_one_machine_have_cards_of_their_own():
    """Two processes on one card are refused by NCCL."""
    cards = Machine(num_cores=8, num_gpus=5)
    nodes = [replace(COMMAND, node=Node(rank, 2, "node-0", 29500)) for rank in (0, 1)]
    assert [spec(node, machine=cards).gpus for node in nodes] == [("0", "1"), ("2", "3")]
    chosen = Machine(num_cores=8, num_gpus=4)
    assert [spec(node, machine=chosen, CUDA_VISIBLE_DEVICES="7,3,6,2").gpus for node in nodes] == [
        ("7", "3"),
        ("6", "2"),
    ]


def test_containers_share_the_machine_s_cores_and_cards_and_there_must_be_a_card_for_each():
    compute = ComputeConfig(launcher="docker", machines=4, num_processes=4)
    launcher = DockerLauncher(compute, "sha256:abc", "python", machine=Machine(8, 6))
    assert launcher.machine_for("train", Context()) == Machine(num_cores=2, num_gpus=1)
    assert launcher.machine_for("export", Context()) == Machine(num_cores=8, num_gpus=6)
    assert replace(launcher, machine=Machine(2, 0)).machine_for("train", Context()) == Machine(1, 0)
    with pytest.raises(ConfigError, match=r"shows 2 GPUs.*compute\.machines to 2 or less"):
        replace(launcher, machine=Machine(8, 2)).machine_for("train", Context())


def test_a_name_stands_for_a_job_in_a_place():
    assert container_name(COMMAND) == container_name(replace(COMMAND, timeout_seconds=5, env={}))
    names = {
        container_name(one)
        for one in (
            COMMAND,
            replace(COMMAND, folder=Path("/t/train/ab")),
            replace(COMMAND, job_fingerprint="e" * 64),
            replace(COMMAND, step="mix"),
            replace(COMMAND, node=Node(0, 2)),
            replace(COMMAND, node=Node(1, 2)),
        )
    }
    assert len(names) == 6
    assert all(len(name) <= 63 for name in names)  # it is a host name on the nodes' network


def test_labels_say_whose_it_is():
    assert spec().labels == {
        "pairline": "1",
        "pairline.step": "train",
        "pairline.job": "f" * 64,
        "pairline.folder": "/s/train/ab",
        "pairline.run": "run-1",
        "pairline.flow-run": "flow-1",
        "pairline.deadline": "1234",
        "pairline.grace": "30",
    }


def test_no_step_runs_as_root():
    assert container_user(1000, 100) == (1000, 100)
    assert container_user(0, 0) == (10001, 10001)


def test_nodes_share_a_private_network():
    first, second = (spec(replace(COMMAND, node=Node(rank, 2, "node-0", 29500))) for rank in (0, 1))
    assert first.network == second.network == container_name(COMMAND)
    assert (first.hostname, second.hostname) == ("node-0", "node-1")
    assert first.name != second.name
