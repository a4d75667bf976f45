"""The exact command of a step: a job and the machine in, argv, environment and needs out."""

import os
from collections.abc import Iterator
from pathlib import Path

from dpo_core.contract.job import JOB_FILE, Job
from dpo_core.contract.job_registry import JOBS
from dpo_core.contract.jobs import TrainJob
from tasks.launch.compute import Machine, threads_per_process
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import CommandSpec, Node
from tasks.launch.stop_grace import LEAST_SECONDS, grace_of

ACCELERATE_FILE = "accelerate.json"
DIE_WITH_PARENT = "PAIRLINE_DIE_WITH_PARENT"  # read by dpo_core.__main__
NODE_NAME, NODE_PORT = "node-{rank}", 29500  # nodes have a network of their own, so any port is free


def accelerate_settings(on_cpu: bool) -> dict[str, str | bool]:
    """Return what `accelerate launch` reads instead of the user's own default_config.yaml.

    That one could turn on another distributed type or precision unseen. Counts are flags: the command shows them.
    """
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO",
        "mixed_precision": "no",
        "use_cpu": on_cpu,
        "debug": False,
    }


def nodes_of(job: Job, compute: ComputeConfig) -> tuple[Node, ...]:
    """Return the nodes of a step; one where it is one process."""
    num_nodes = compute.machines if job.is_parallel else 1
    if num_nodes == 1:
        return (Node(),)
    return tuple(
        Node(rank, num_nodes, NODE_NAME.format(rank=0), NODE_PORT, compute.join_timeout_seconds)
        for rank in range(num_nodes)
    )


def step_command(
    job: Job, compute: ComputeConfig, machine: Machine, python: str, node: Node = Node()
) -> CommandSpec:
    """Return the command that runs a node's part of ``job``; ``job.json`` and ``accelerate.json`` stand in the job's
    folder.

    Several processes need ``--multi_gpu`` on CPU, too: only then does accelerate start torchrun; otherwise it starts
    one process and leaves the others to MPI.
    """
    num_processes = compute.num_processes if job.is_parallel else 1
    threads = threads_per_process(compute, machine, num_processes // node.num_nodes)
    program = ("-m", "dpo_core", job.step, "--job", str(job.out_dir / JOB_FILE))
    argv = launch_argv(python, job.out_dir, node, num_processes, threads, program)
    return CommandSpec(
        argv=argv,
        folder=Path(job.out_dir),
        timeout_seconds=compute.step_timeout_seconds,
        program=program,
        num_processes=num_processes,
        env=_environment(threads, on_cpu=machine.num_gpus == 0) | compute.env,
        secrets=job.secrets,
        step=job.step,
        job_fingerprint=job.fingerprint,
        inputs=inputs_of(job),
        named_by_people=job.named_by_people(),
        writable=job.writes(),
        needs_network=job.needs_network,
        compiles=job.compiles,
        node=node,
        stop_grace_seconds=compute.stop_grace_seconds or _grace(job),
    )


def launch_argv(
    python: str, folder: Path, node: Node, num_processes: int, threads: int, program: tuple[str, ...]
) -> tuple[str, ...]:
    """Return what starts a node's processes: ``num_processes`` are those of all nodes, ``threads`` of each of them."""
    return (
        python,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(folder / ACCELERATE_FILE),
        "--num_machines",
        str(node.num_nodes),
        "--num_processes",
        str(num_processes),
        *(_several(node) if num_processes > 1 else ()),
        "--num_cpu_threads_per_process",
        str(threads),
        "--dynamo_backend",
        "no",
        *program,
    )


def typical_command(
    step: str, compute: ComputeConfig, machine: Machine, store: Path, grace_seconds: int = LEAST_SECONDS
) -> CommandSpec:
    """Return the command of a step whose job is not known yet, for a plan: its fingerprint and its inputs are left open.
    ``grace_seconds``: what it gets once it is asked to stop, unless the recipe says it."""
    folder = store / step / "FINGERPRINT"
    num_processes, num_nodes = (compute.num_processes, compute.machines) if JOBS[step].is_parallel else (1, 1)
    threads = threads_per_process(compute, machine, num_processes // num_nodes)
    return CommandSpec(
        argv=("python", "-m", "dpo_core", step),
        folder=folder,
        timeout_seconds=compute.step_timeout_seconds,
        program=("-m", "dpo_core", step, "--job", str(folder / JOB_FILE)),
        num_processes=num_processes,
        env=_environment(threads, on_cpu=machine.num_gpus == 0) | compute.env,
        step=step,
        job_fingerprint="FINGERPRINT",
        node=Node(num_nodes=num_nodes),
        stop_grace_seconds=compute.stop_grace_seconds or grace_seconds,
    )


def _grace(job: Job) -> int:
    return grace_of(job) if isinstance(job, TrainJob) else LEAST_SECONDS


def _several(node: Node) -> Iterator[str]:
    yield "--multi_gpu"
    if node.num_nodes == 1:
        yield from ("--main_process_port", "0")
        return
    # static: the c10d rendezvous may give ranks in another order than asked for.
    yield from (
        "--machine_rank",
        str(node.rank),
        "--main_process_ip",
        node.address,
        "--main_process_port",
        str(node.port),
        "--rdzv_backend",
        "static",
        "--rdzv_conf",
        f"timeout={node.join_timeout_seconds}",
    )


def inputs_of(job: Job) -> tuple[Path, ...]:
    """Return every file and folder that a job names and does not write to, none of them inside another."""
    named = set(job.paths()) - set(job.writes())
    return tuple(sorted(path for path in named if not any(other in path.parents for other in named)))


def _environment(threads: int, on_cpu: bool) -> dict[str, str]:
    env = {
        "OMP_NUM_THREADS": str(threads),
        # Threads that spin while they wait take the core from the one they wait for, where others use the machine.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    # Every microbatch has other sizes: a card's memory falls into pieces unless segments can grow.
    return env | (
        {"ACCELERATE_USE_CPU": "true"} if on_cpu else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    )
