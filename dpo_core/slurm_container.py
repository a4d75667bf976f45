"""A rank's container on its node: what its start adds to the command that the orchestrator has made, and its end.

Of ``dpo_core.in_slurm``, which starts docker and Apptainer from outside; Pyxis is srun's own. Standard library alone.
"""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from dpo_core.contract.rank_container import (
    DEADLINE,
    DRIVER,
    END_WITH_INPUT,
    KIND,
    NAME,
    NETWORK_LABEL,
    OWN_NETWORK,
    RANK_VARIABLES,
    SECONDS,
    START,
    process_mark,
)

SECONDS_FOR_DOCKER = 60.0
SIGNAL_EXIT = 128
INFINIBAND = Path("/dev/infiniband")  # without it NCCL goes from node to node by TCP, a tenth as fast


@contextlib.contextmanager
def contained(
    command: list[str], start: Path, environ: Mapping[str, str]
) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Yield a rank's command and its environment; leave nothing of its container behind."""
    kind, env = environ.get(KIND, ""), dict(environ)
    if kind == "docker":
        name = f"{environ[NAME]}-{start.name}-{environ['SLURM_PROCID']}"
        if f"--network={OWN_NETWORK}" in command:
            _make_own_network()
        try:
            yield docker_command(command, name, start, environ), env | {END_WITH_INPUT: "1"}
        finally:
            _docker("rm", "--force", "--volumes", name)
    elif kind == "apptainer":
        with tempfile.TemporaryDirectory(prefix="pairline-", ignore_cleanup_errors=True) as scratch:
            for_its_rank = {f"APPTAINERENV_{key}": env[key] for key in RANK_VARIABLES if key in env}
            devices = [f"--bind={INFINIBAND}"] if _is_one_of_several(environ) and INFINIBAND.is_dir() else []
            yield [*command[:2], f"--workdir={scratch}", *devices, *command[2:]], env | for_its_rank
    else:
        yield command, env


def docker_command(command: list[str], name: str, start: Path, environ: Mapping[str, str]) -> list[str]:
    """Return ``docker run`` with what this rank's start adds: its name, the cores and cards that Slurm gave it."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    cards = environ.get("SLURM_STEP_GPUS") or environ.get("SLURM_JOB_GPUS", "")
    added = [
        f"--name={name}",
        f"--label={START}={start.name}-{environ['SLURM_PROCID']}",
        f"--label={DRIVER}={process_mark(os.getpid())}",
        f"--label={DEADLINE}={time.time() + float(environ[SECONDS]):.0f}",
        f"--cpuset-cpus={cores}",
    ]
    if _is_one_of_several(environ) and INFINIBAND.is_dir():  # what it sends by itself must stay in memory
        added += [f"--device={INFINIBAND}", "--ulimit=memlock=-1:-1"]
    return [*command[:2], *added, *([f'--gpus="device={cards}"'] if cards else []), *command[2:]]


def _is_one_of_several(environ: Mapping[str, str]) -> bool:
    return int(environ.get("SLURM_NTASKS", "1")) > 1


def exit_code(kind: str, code: int) -> int:
    """Return how the rank ended, negative for a signal: docker tells it as a shell does."""
    return SIGNAL_EXIT - code if kind == "docker" and code > SIGNAL_EXIT else code


def _make_own_network() -> None:
    """As the docker launcher's: a way out, and none from one container to the other. It may be there already."""
    options = (f"--label={NETWORK_LABEL}=1", "--opt=com.docker.network.bridge.enable_icc=false")
    _docker("network", "create", "--driver=bridge", *options, OWN_NETWORK)


def _docker(*arguments: str) -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            ("docker", *arguments),
            check=False,
            capture_output=True,
            timeout=SECONDS_FOR_DOCKER,
            start_new_session=True,
        )
