"""A step's job as a person would submit it by hand, and what the cluster says of it: for `pairline plan`."""

import shlex
from pathlib import Path

from dpo_core.contract.errors import ConfigError, PairlineError, RemoteError
from tasks.launch.compute import Machine
from tasks.launch.context import RunName
from tasks.launch.launcher import CommandSpec
from tasks.launch.slurm.batch import BatchJob, Submission, batch_job
from tasks.launch.slurm.client import NoSlurm, try_submit
from tasks.launch.slurm.container import Wanted, step_container
from tasks.launch.slurm.nodes import least_node
from tasks.launch.slurm.shares import Shares, parts_of_a_node
from tasks.launch.step_environment import for_other_machines


def preview(
    command: CommandSpec, wanted: Wanted, machine: Machine, record: Path, shares: Shares | None = None
) -> str:
    """Return the lines: what the cluster says, the call of sbatch, its script. Nothing is submitted."""
    says, slurm, limit = "", wanted.slurm, None
    if not (machine.num_cores and slurm.time_limit_minutes):
        try:
            kind = least_node(slurm.partition_of(command.step))
            limit = None if slurm.time_limit_minutes else kind.limit_minutes
            if not machine.num_cores:
                machine = kind.machine(machine, parts_of_a_node(wanted.compute, slurm, command.step))
        except PairlineError as error:
            says = "" if machine.num_cores else f"not checked: {error.problem}"
    secrets = {name: record / f"secret-{name}" for name in command.secrets}
    container = step_container(command, wanted, machine, RunName(), secrets)
    submission = Submission("KEY", record, secrets, container, shares, limit)
    job = batch_job(command, slurm, machine, submission, RunName(), for_other_machines(command))
    line = shlex.join(("sbatch", *job.flags))
    what = f"{command.step}, {shares.count} shares" if shares else command.step
    return f"# {what}: {says or _checked(job)}\n{line} <<'END'\n{job.script}END\n"


def _checked(job: BatchJob) -> str:
    try:
        return try_submit(job.flags, job.script)
    except (NoSlurm, RemoteError) as error:
        return f"not checked: {error.problem}"
    except ConfigError as error:
        return f"REFUSED. {error.problem}"
