"""A step's job as a person would submit it by hand, and what the cluster says of it: for `pairline plan`."""

import shlex
from pathlib import Path

from dpo_core.contract.errors import ConfigError, PairlineError
from tasks.launch.compute import Machine
from tasks.launch.context import RunName
from tasks.launch.launcher import CommandSpec
from tasks.launch.slurm.batch import BatchJob, Submission, batch_job
from tasks.launch.slurm.client import least_node, try_submit
from tasks.launch.slurm.container import Wanted, step_container
from tasks.launch.step_environment import for_other_machines


def preview(command: CommandSpec, wanted: Wanted, machine: Machine, record: Path) -> str:
    """Return the lines: what the cluster says, the call of sbatch, its script. Nothing is submitted."""
    says, slurm = "", wanted.slurm
    if not machine.num_cores:
        try:
            machine = Machine(least_node(slurm.partition_of(command.step)).num_cores, machine.num_gpus)
        except PairlineError as error:
            says = f"not checked: {error.problem}"
    secrets = {name: record / f"secret-{name}" for name in command.secrets}
    container = step_container(command, wanted, machine, RunName(), secrets)
    submission = Submission("KEY", record, secrets, container)
    job = batch_job(command, slurm, machine, submission, RunName(), for_other_machines(command))
    line = shlex.join(("sbatch", *job.flags))
    return f"# {command.step}: {says or _checked(job)}\n{line} <<'END'\n{job.script}END\n"


def _checked(job: BatchJob) -> str:
    try:
        return try_submit(job.flags, job.script)
    except ConfigError as error:
        return f"REFUSED. {error.problem}"
    except PairlineError as error:
        return f"not checked: {error.problem}"
