"""The exact command of a step. Pure: a job and the machine in, argv and environment out."""

from pathlib import Path

from dpo_core.config import ComputeConfig
from dpo_core.jobs import JOB_FILE, Job, MixJob
from tasks.launch.compute import Machine, threads_per_process
from tasks.launch.launcher import CommandSpec

ACCELERATE_FILE = "accelerate.json"
DIE_WITH_PARENT = "PAIRLINE_DIE_WITH_PARENT"  # read by dpo_core.__main__
PARALLEL_STEPS = ("reference", "train", "evaluate")  # the others are one process whatever compute.num_processes says
HUB_SECRETS = ("HF_TOKEN",)


def accelerate_settings(on_cpu: bool) -> dict[str, str | bool]:
    """What `accelerate launch` reads instead of the user's own default_config.yaml.

    That one could turn on another distributed type or precision unseen. Counts are flags: the command shows them.
    """
    return {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "mixed_precision": "no",
            "use_cpu": on_cpu, "debug": False}


def step_command(job: Job, compute: ComputeConfig, machine: Machine, python: str) -> CommandSpec:
    """The command that runs ``job``; ``job.json`` and ``accelerate.json`` stand in the job's folder.

    Several processes need ``--multi_gpu`` on CPU, too: only then does accelerate start torchrun; otherwise it starts
    one process and leaves the others to MPI.
    """
    num_processes = compute.num_processes if job.step in PARALLEL_STEPS else 1
    threads = threads_per_process(compute, machine, num_processes)
    several = ("--multi_gpu", "--main_process_port", "0") if num_processes > 1 else ()
    argv = (python, "-m", "accelerate.commands.launch",
            "--config_file", str(job.out_dir / ACCELERATE_FILE),
            "--num_machines", "1", "--num_processes", str(num_processes), *several,
            "--num_cpu_threads_per_process", str(threads), "--dynamo_backend", "no",
            "-m", "dpo_core", job.step, "--job", str(job.out_dir / JOB_FILE))
    return CommandSpec(argv=argv, folder=Path(job.out_dir), timeout_seconds=compute.step_timeout_seconds,
                       env=_environment(threads, on_cpu=machine.num_gpus == 0), secrets=_secrets(job))


def _environment(threads: int, on_cpu: bool) -> dict[str, str]:
    env = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false",
           "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return env | {"ACCELERATE_USE_CPU": "true"} if on_cpu else env


def _secrets(job: Job) -> tuple[str, ...]:
    """Only a mixture with Hub data sets reaches out, and private ones need the token."""
    return HUB_SECRETS if isinstance(job, MixJob) and any(source.hub_id for source in job.sources) else ()
