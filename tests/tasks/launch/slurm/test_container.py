"""A rank's container as arguments of docker, srun with Pyxis, Apptainer: every flag, from one description."""

import csv
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_core import slurm_container
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.rank_container import KIND, RANK_VARIABLES
from dpo_core.slurm_container import contained, docker_command, exit_code
from tasks.launch.compute import Machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import RunName
from tasks.launch.docker.config import DockerConfig
from tasks.launch.docker.container import FOLDER, JOB, name_by_labels
from tasks.launch.launcher import CommandSpec, Node
from tasks.launch.slurm.batch import Submission, batch_job
from tasks.launch.slurm.config import SlurmConfig
from tasks.launch.slurm.container import StepContainer, Wanted, step_container

PLACE = Path("/shared/train/0123456789abcdef")
RECORD = Path("/shared/train/.orchestrator/0123456789abcdef/slurm")
IMAGES = {
    "docker": "registry/trainer@sha256:" + "a" * 64,
    "pyxis": "/shared/trainer.sqsh",
    "apptainer": "/shared/trainer.sif",
}
COMMAND = CommandSpec(
    ("/shared/python",),
    PLACE,
    3600.0,
    program=("-m", "dpo_core", "train", "--job", str(PLACE / "job.json")),
    num_processes=8,
    env={"OMP_NUM_THREADS": "4"},
    node=Node(0, 2),
    step="train",
    job_fingerprint="0123456789abcdef" * 4,
    inputs=(Path("/shared/mix/data"),),
    writable=(Path("/shared/cache"),),
)
SECRETS = {"WANDB_API_KEY": RECORD / "secret-WANDB_API_KEY"}
NODE = Machine(num_cores=96, num_gpus=8, memory_bytes=100 << 30)
PYTHON = "/opt/pairline/bin/python"
OWN_ENVIRONMENT = {
    "HF_HOME": "/tmp/huggingface",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "4",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TMPDIR": "/tmp",
    "USER": "pairline",
    "PAIRLINE_WANDB_KEY_FILE": "/run/secrets/WANDB_API_KEY",
}


@pytest.fixture(autouse=True)
def _somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who submits is an ordinary user with a token."""
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 99)
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, "not-for-others")


def made(
    kind: str, command: CommandSpec = COMMAND, machine: Machine = NODE, **docker: object
) -> StepContainer:
    wanted = Wanted(SlurmConfig(container=kind, image=IMAGES[kind]), DockerConfig(**docker), ComputeConfig())
    container = step_container(command, wanted, machine, RunName("run", "id"), SECRETS)
    assert container is not None
    return container


def script_of(kind: str, command: CommandSpec = COMMAND) -> tuple[tuple[str, ...], str]:
    """Flags of sbatch, and the script."""
    slurm = SlurmConfig(container=kind, image=IMAGES[kind], gpus_per_node="8")
    submission = Submission("abc123", RECORD, SECRETS, made(kind, command))
    env = {"PYTHONPATH": "/shared/code", "NCCL_DEBUG": "INFO"}
    job = batch_job(command, slurm, NODE, submission, RunName("run", "id"), env)
    assert subprocess.run(["bash", "-n"], input=job.script, text=True, check=False).returncode == 0
    assert "not-for-others" not in job.script
    return job.flags, job.script


def test_docker_gets_all_that_its_launcher_gives_a_container():
    argv = made("docker").command()
    at = argv.index(IMAGES["docker"])
    flags = [flag for flag in argv[2:at] if not flag.startswith(("--label=", "--env="))]
    assert argv[:2] == ("docker", "run")
    assert flags == [
        *("--rm", "--interactive", "--init", "--log-driver=none", "--read-only", "--cap-drop=ALL"),
        *("--security-opt=no-new-privileges:true", "--ulimit=core=0:0", "--network=host", "--user=1234:99"),
        *(f"--workdir={PLACE}", "--tmpfs=/tmp:size=4294967296,mode=1777", "--pids-limit=4096"),
        *(
            "--shm-size=2147483648",
            "--memory=24159191040",
            "--memory-swap=24159191040",
        ),  # 0.9 of 100 GiB for four
        "--mount=type=bind,source=/shared/mix/data,target=/shared/mix/data,readonly",
        f"--mount=type=bind,source={PLACE},target={PLACE}",
        "--mount=type=bind,source=/shared/cache,target=/shared/cache",
        f"--mount=type=bind,source={SECRETS['WANDB_API_KEY']},target=/run/secrets/WANDB_API_KEY,readonly",
        f"--entrypoint={PYTHON}",
    ]
    assert argv[at + 1 :] == ("-m", "dpo_core.in_container", PYTHON, *COMMAND.program)
    given = {flag.removeprefix("--env=") for flag in argv if flag.startswith("--env=")}
    assert given == {f"{key}={value}" for key, value in (OWN_ENVIRONMENT | {"HOME": "/tmp"}).items()} | set(
        RANK_VARIABLES
    )


def test_a_step_of_one_process_has_no_network_under_docker():
    assert "--network=none" in made("docker", replace(COMMAND, num_processes=1, node=Node())).command()


def test_a_rank_is_known_by_its_labels_and_gets_what_slurm_gave_it():
    container = made("docker")
    told = {"SLURM_PROCID": "3", "SLURM_STEP_GPUS": "0,2", "PAIRLINE_CONTAINER_SECONDS": "60"}
    name = f"{container.spec.name}-abc123.0-3"
    argv = docker_command(list(container.command()), name, RECORD / "abc123.0", told)
    labels = dict(flag.removeprefix("--label=").split("=", 1) for flag in argv if flag.startswith("--label="))
    assert name_by_labels(labels) == name
    assert (labels[FOLDER], labels[JOB]) == (str(PLACE), COMMAND.job_fingerprint)
    assert labels["pairline.driver"].split(":")[1] == str(os.getpid())
    assert f"--name={name}" in argv
    assert '--gpus="device=0,2"' in argv
    assert f"--cpuset-cpus={','.join(map(str, sorted(os.sched_getaffinity(0))))}" in argv
    assert argv[: argv.index("--rm")][:2] == ["docker", "run"]


def test_ranks_of_several_get_their_node_s_infiniband(monkeypatch):
    """Without it NCCL goes by TCP. A node that has none gives none, and a step of one process needs none."""
    told = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "PAIRLINE_CONTAINER_SECONDS": "60"}

    def devices(told: dict[str, str]) -> set[str]:
        command = docker_command(["docker", "run", "image"], "name", RECORD, told)
        assert command[-1] == "image"
        with contained(["apptainer", "exec", "image"], RECORD, told | {KIND: "apptainer"}) as (argv, _):
            assert argv[-1] == "image"
            return {flag for flag in (*command, *argv) if flag.startswith(("--device", "--ulimit", "--bind"))}

    monkeypatch.setattr(slurm_container, "INFINIBAND", Path("/dev"))  # a folder
    assert devices(told) == {"--device=/dev", "--ulimit=memlock=-1:-1", "--bind=/dev"}
    assert devices(told | {"SLURM_NTASKS": "1"}) == set()
    monkeypatch.setattr(slurm_container, "INFINIBAND", Path("/dev/no-such-folder"))
    assert devices(told) == set()


def test_apptainer_is_contained_and_binds_the_same():
    container = made("apptainer")
    assert container.command() == (
        *(
            "apptainer",
            "exec",
            "--containall",
            "--no-privs",
            "--no-mount=hostfs,bind-paths",
            f"--pwd={PLACE}",
        ),
        "--mount=type=bind,source=/shared/mix/data,destination=/shared/mix/data,ro",
        f"--mount=type=bind,source={PLACE},destination={PLACE}",
        "--mount=type=bind,source=/shared/cache,destination=/shared/cache",
        f"--mount=type=bind,source={SECRETS['WANDB_API_KEY']},destination=/run/secrets/WANDB_API_KEY,ro",
        *("--nv", "/shared/trainer.sif", PYTHON, *COMMAND.program),
    )
    inside = {
        name.removeprefix("APPTAINERENV_"): value
        for name, value in container.variables.items()
        if name.startswith("APPTAINERENV_")
    }
    assert inside == OWN_ENVIRONMENT
    on_cpu = made("apptainer", machine=replace(NODE, num_gpus=0)).command()
    assert "--nv" not in on_cpu


def test_pyxis_is_a_set_of_sruns_flags():
    _, script = script_of("pyxis")
    called = shlex.split(script[script.index("srun --ntasks") : script.index("code=$?")].replace("\\\n", " "))
    names = sorted(
        [
            *OWN_ENVIRONMENT,
            *("HOME", "PAIRLINE_CONTAINER", "PAIRLINE_CONTAINER_NAME", "PAIRLINE_CONTAINER_SECONDS"),
            "PAIRLINE_FIRST_NODE",
        ]
    )
    assert called == [
        *("srun", "--ntasks=8", "--cpus-per-task=24", "--kill-on-bad-exit=1", "--label"),
        *("--container-image=/shared/trainer.sqsh", "--container-readonly", "--no-container-mount-home"),
        *("--no-container-remap-root", "--no-container-entrypoint", f"--container-workdir={PLACE}"),
        *(f"--container-env={','.join(names)}", f"--export=PATH,{','.join(names)}"),
        f"--container-mounts=tmpfs:/tmp,/shared/mix/data:/shared/mix/data:ro,{PLACE}:{PLACE},/shared/cache:/shared/cache,"
        f"{SECRETS['WANDB_API_KEY']}:/run/secrets/WANDB_API_KEY:ro,{RECORD}:{RECORD}:ro,$start/ranks:$start/ranks",
        *(
            PYTHON,
            "-m",
            "dpo_core.in_slurm",
            "$start",
            "${before:+$record/$before}",
            PYTHON,
            *COMMAND.program,
        ),
    ]
    assert "There is no interpreter" not in script


@pytest.mark.parametrize("kind", IMAGES)
def test_the_nodes_own_programs_start_where_no_step_writes(kind: str):
    """A step could leave a json.py in its folder, which Python's -m would import from the working directory."""
    flags, script = script_of(kind)
    assert f"--chdir={RECORD}" in flags
    assert ("-P -m dpo_core.in_slurm" in script) == (kind != "pyxis")
    assert "NCCL_DEBUG" not in script


@pytest.mark.parametrize("kind", ["pyxis", "apptainer"])
def test_root_is_refused_where_its_steps_would_be_root(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(ConfigError, match=f"slurm.container is {kind}, and this is root"):
        made(kind)


def test_a_network_of_the_orchestrators_engine_is_not_the_nodes():
    with pytest.raises(ConfigError, match=r"docker\.network is mine"):
        made("docker", network="mine")


def test_paths_that_a_list_of_mounts_cannot_hold():
    odd = replace(COMMAND, inputs=(Path('/shared/a,b "c":d'),))
    for kind in ("docker", "apptainer"):
        (flag,) = (flag for flag in made(kind, odd).command() if "a,b" in flag)
        assert 'source=/shared/a,b "c":d' in next(csv.reader([flag.removeprefix("--mount=")]))
    with pytest.raises(ConfigError, match=r"pyxis cannot mount .*Give the store and the inputs other names"):
        script_of("pyxis", odd)


@pytest.mark.parametrize(
    ("kind", "code", "meant"),
    [("docker", 137, -9), ("docker", 22, 22), ("docker", 125, 125), ("", -9, -9), ("apptainer", 137, 137)],
)
def test_docker_tells_a_signal_as_a_shell_does(kind: str, code: int, meant: int):
    assert exit_code(kind, code) == meant
