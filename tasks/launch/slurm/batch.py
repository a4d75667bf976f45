"""A step as a batch job, as pure data: the flags of sbatch and the script, made from the step's command."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.judge_config import JUDGE_KEY, JUDGE_KEY_FILE
from dpo_core.contract.tracking_config import WANDB_KEY, WANDB_KEY_FILE
from tasks.launch.compute import Machine
from tasks.launch.context import RunName
from tasks.launch.launcher import CommandSpec
from tasks.launch.slurm.config import SlurmConfig
from tasks.launch.slurm.container import StepContainer, pyxis_flags, pyxis_mounts
from tasks.launch.slurm.ends import FENCED
from tasks.launch.slurm.names import share_key
from tasks.launch.slurm.shares import Shares

# Between the time for a checkpoint and the limit. slurmctld looks at both every 30 s: --signal comes up to so much early.
SECONDS_TO_END = 30
SECONDS_TO_BEGIN = (
    60  # imports, a model, a process group: before that there is nothing to write a checkpoint of
)
WITH_CHECKPOINTS = ("train",)  # that are written when it is asked to stop
# The node's login environment, which `module` needs, loaded by the job itself. With ``sbatch --export=NONE`` slurmd would,
# before the job: where it takes longer than its BatchStartTimeout (10 s) or GetEnvTimeout, it is requeued, or held for good.
LOGIN = """\
unset SLURM_EXPORT_ENV LD_LIBRARY_PATH
here="$PWD"
{
    [ ! -r /etc/profile ] || . /etc/profile
    for profile in ~/.bash_profile ~/.bash_login ~/.profile; do
        if [ -r "$profile" ]; then . "$profile"; break; fi
    done
} >/dev/null 2>&1 </dev/null
set +eu
cd "$here" || exit 13
"""
OURS = "pairline"  # in a job's comment: this version of what stands there


@dataclass(frozen=True, slots=True)
class BatchJob:
    """What is submitted: ``sbatch *flags``, with ``script`` on its standard input."""

    name: str
    key: str  # of this submission alone
    flags: tuple[str, ...]
    script: str


@dataclass(frozen=True, slots=True)
class Submission:
    """What differs from one submission of a job to the next. ``record``: where its starts are written down."""

    key: str
    record: Path
    secrets: Mapping[str, Path]  # name -> file with its value, read by this user alone
    container: StepContainer | None = None
    shares: Shares | None = None  # an array of jobs
    limit_minutes: int | None = None  # of a job that asks for none, by its partition

    @property
    def log(self) -> str:
        """What the job prints, as sbatch reads it."""
        if self.shares is None:
            return _no_pattern(self.record / f"{self.key}.log")
        return f"{_no_pattern(self.record)}/{share_key(self.key, '%a', self.shares.count)}.log"


def batch_job(
    command: CommandSpec,
    slurm: SlurmConfig,
    machine: Machine,
    submission: Submission,
    run: RunName,
    env: Mapping[str, str],
) -> BatchJob:
    """Describe the job of a step. ``env``: what it gets beside the node's own environment. Raises ``ConfigError`` if its
    time limit leaves no time to work in."""
    flags = tuple(_flags(command, slurm, machine, submission, run))
    return BatchJob(command.name, submission.key, flags, _script(command, slurm, machine, submission, env))


def comment_of(command: CommandSpec, submission: Submission, run: RunName) -> dict[str, str | int]:
    """Return what the job is known by: ids are given twice, names are short."""
    shares: dict[str, str | int] = {"shares": submission.shares.count} if submission.shares else {}
    return shares | {
        OURS: 1,
        "key": submission.key,
        "step": command.step,
        "job": command.job_fingerprint,
        "folder": str(command.folder),
        "run": run.name,
        "flow_run": run.flow_run_id,
        "grace": command.stop_grace_seconds,
        "seconds": int(command.timeout_seconds),
    }


def _flags(
    command: CommandSpec, slurm: SlurmConfig, machine: Machine, submission: Submission, run: RunName
) -> Iterator[str]:
    yield f"--job-name={command.name}"
    yield f"--comment={json.dumps(comment_of(command, submission, run))}"
    yield f"--output={submission.log}"
    # What a step in a container has written is no place for a program of the node's own to start in.
    yield f"--chdir={submission.record if submission.container else command.folder}"
    yield from ("--open-mode=append", "--export=ALL", "--requeue")
    if submission.shares is None or not submission.shares.is_again:
        yield "--dependency=singleton"  # of an array, all together wait for others of its name
    if submission.shares is not None:
        yield f"--array={submission.shares.ranges}"
    nodes, per_node = command.node.num_nodes, tasks_per_node(command)
    yield from (f"--nodes={nodes}", f"--ntasks={nodes * per_node}", f"--ntasks-per-node={per_node}")
    yield f"--cpus-per-task={cpus_per_task(command, machine)}"
    if num_gpus := slurm.num_gpus(command.step):
        kind = slurm.gpus_per_node.rpartition(":")[0]
        asked = min(num_gpus, per_node)
        yield f"--gpus-per-node={kind + ':' if kind else ''}{asked}"
    if slurm.memory_gib:
        yield f"--mem={machine.memory_bytes >> 20}M"
    for name, value in (
        ("partition", slurm.partition_of(command.step)),
        ("account", slurm.account),
        ("qos", slurm.qos),
        ("constraint", slurm.constraint),
    ):
        if value:
            yield f"--{name}={value}"
    if slurm.time_limit_minutes is not None:
        yield f"--time={slurm.time_limit_minutes}"
    yield from _notice(command, slurm.time_limit_minutes, submission.limit_minutes)
    yield from slurm.flags


def _notice(command: CommandSpec, own: int | None, of_partition: int | None) -> Iterator[str]:
    """The flag for SIGTERM in time for a checkpoint. In a job that is shorter than that, it would come as it begins: then
    there is none for a step that writes none. ``own``, ``of_partition``: the job's limit in minutes, whoever sets it."""
    notice = command.stop_grace_seconds + SECONDS_TO_END
    limit = own or of_partition
    if limit is None or limit * 60 >= notice + SECONDS_TO_BEGIN:
        yield f"--signal=TERM@{notice}"
    elif command.step in WITH_CHECKPOINTS:
        whose = (
            "slurm.time_limit_minutes is"
            if own
            else "slurm.time_limit_minutes is empty, and its partition's limit is"
        )
        raise ConfigError(
            f"{whose} {limit}, of which step {command.step} needs {notice} s to write a checkpoint and end, and "
            f"{SECONDS_TO_BEGIN} s to begin.",
            f"Set it to {-(-(notice + SECONDS_TO_BEGIN) // 60)} or more, in a partition that allows it, or lower "
            "compute.stop_grace_seconds.",
        )


def tasks_per_node(command: CommandSpec) -> int:
    """Return the step's processes on each node."""
    return command.num_processes // command.node.num_nodes


def cpus_per_task(command: CommandSpec, machine: Machine) -> int:
    """Return the cores of a node that each of the step's processes on it gets."""
    return max(1, machine.num_cores // tasks_per_node(command))


def _no_pattern(path: Path) -> str:
    return str(path).replace("%", "%%")


def _script(
    command: CommandSpec, slurm: SlurmConfig, machine: Machine, submission: Submission, env: Mapping[str, str]
) -> str:
    """The batch script: it writes down that it starts, looks whether it can, runs the ranks, writes down how they ended.

    ``trap`` and not ``trap ''``: what is ignored would be ignored by srun, too.
    """
    places, job_id = _places(submission)
    variables = _variables(submission, env)
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items()))
    setup = "\n".join(
        f"{{\n{line}\n}} || refuse {shlex.quote('The set-up line ' + repr(line) + ' (slurm.setup) failed')}"
        for line in slurm.setup
    )
    job_file = shlex.quote(command.program[-1])
    tasks = command.num_processes
    label = " --label" if tasks > 1 else ""
    start_of_a_task = _start_of_a_task(command, submission, variables)
    share = f' --share "$SLURM_ARRAY_TASK_ID/{submission.shares.count}"' if submission.shares else ""
    return f"""#!/bin/bash
# Step {command.step} of Pairline, job {command.job_fingerprint[:16]}: written by compute.launcher slurm.
{LOGIN}trap : TERM
unset ${{!APPTAINER@}} ${{!SINGULARITY@}} ${{!PYXIS_@}}
{places}
name="$key.${{SLURM_RESTART_COUNT:-0}}"
start="$record/$name"
write() {{ printf '%s\\n' "$2" >"$1.aside" && mv "$1.aside" "$1"; }}
refuse() {{
    echo "pairline: $1 on $(hostname)."
    write "$start/refused" "$1 on $(hostname)."
    write "$start/exit" "13 $(date +%s)"
    exit 13
}}
before="$(cat "$record/attempt" 2>/dev/null)"
[ "$before" = "$name" ] && before=""
# A node that was slow may begin a start after the one that Slurm made in its place.
newer="${{before#"$key".}}"
[ "$newer" -gt "${{SLURM_RESTART_COUNT:-0}}" ] 2>/dev/null && exit {FENCED}
mkdir -p "$start/ranks" || exit 13
write "$record/attempt" "$name"
kept="$(ls {shlex.quote(str(command.folder / "checkpoints"))} 2>/dev/null | grep -x 'step-[0-9]*' | tail -n 1)"
write "$start/started" "$(date +%s) {job_id} $SLURM_JOB_NODELIST $kept"
[ -r {job_file} ] || refuse 'The store is not to be seen: there is no '{job_file}
{exports}
{setup}
export PAIRLINE_FIRST_NODE="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
{_programs_needed(command, submission.container)}
# Neighbours are of one node: they share matrices and copies of the model out. A site may deal ranks out in turn.
[[ "$SLURM_DISTRIBUTION" == block* ]] || export SLURM_DISTRIBUTION=block
srun --ntasks={tasks} --cpus-per-task={cpus_per_task(command, machine)} --kill-on-bad-exit=1{label} \\
    {start_of_a_task}{share}
code=$?
write "$start/exit" "$code $(date +%s)"
exit $code
"""


def _places(submission: Submission) -> tuple[str, str]:
    """Lines that say where the job's starts are written down and what they are called; and its id, as the queue tells it."""
    record, key = shlex.quote(str(submission.record)), submission.key
    if submission.shares is None:
        return f"record={record}\nkey={key}", "$SLURM_JOB_ID"
    index = '"$SLURM_ARRAY_TASK_ID"'
    folder, name = share_key(key, index, submission.shares.count).rsplit("/", 1)
    return f"record={record}/{folder}\nkey={name}", "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"


def _variables(submission: Submission, env: Mapping[str, str]) -> dict[str, str]:
    """What the script exports: its own environment is the node's."""
    in_files = {WANDB_KEY: WANDB_KEY_FILE, JUDGE_KEY: JUDGE_KEY_FILE, "HF_TOKEN": "HF_TOKEN_PATH"}
    if (container := submission.container) is None:
        return dict(env) | {in_files[name]: str(file) for name, file in submission.secrets.items()}
    # Inside stands what the container's description says; outside dpo_core.in_slurm has to be found.
    outside = {} if container.has_its_program_inside else {"PYTHONPATH": env.get("PYTHONPATH", "")}
    return outside | container.variables


def _programs_needed(command: CommandSpec, container: StepContainer | None) -> str:
    """Lines that refuse a node without the programs that the script starts."""
    lines = []
    if container is not None and not container.has_its_program_inside:
        program = container.kind
        lines.append(
            f'command -v {program} >/dev/null || refuse "There is no {program}, which slurm.container asks for,"'
        )
    if container is None or not container.has_its_program_inside:
        lines += [
            f"python={shlex.quote(command.argv[0])}",
            '[ -x "$(command -v "$python")" ] || refuse "There is no interpreter $python (slurm.python)"',
        ]
    return "\n".join(lines)


def _start_of_a_task(command: CommandSpec, submission: Submission, variables: Mapping[str, str]) -> str:
    """What srun starts, with its flags of a container: the first program and what that runs."""
    container, places = submission.container, '"$start" "${before:+$record/$before}"'
    if container is None:
        argv = shlex.join((command.argv[0], *command.program))
        return f'"$python" -m dpo_core.in_slurm {places} \\\n    {argv}'
    argv = shlex.join(container.command())
    if not container.has_its_program_inside:
        # -P: not from the working directory. That is ours, and stays so whoever moves it.
        return f'"$python" -P -m dpo_core.in_slurm {places} \\\n    {argv}'
    flags = shlex.join(pyxis_flags(container, (*variables, "PAIRLINE_FIRST_NODE")))
    mounts = shlex.quote(pyxis_mounts(container, submission.record))
    first = shlex.quote(container.spec.argv[0])
    return (
        f'{flags} \\\n    --container-mounts={mounts}",$start/ranks:$start/ranks" \\\n'
        f"    {first} -m dpo_core.in_slurm {places} \\\n    {argv}"
    )
