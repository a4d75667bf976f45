"""Runs a step as a job of a Slurm cluster: submits it, or finds it in the queue and attaches.

    no job of the name              submit one
    one of this job, waiting or     attach: a killed orchestrator left it, or a submission whose answer was lost; its log
    running                         goes on where it was copied to
    a reference pass in shares      first an array of them (``array``), then the pass as a job of one process
    one of this job, ended          copy the rest of its log, submit a new one: it resumes from the job's folder

The claim on the job's folder (``run_job``) sees to it that one orchestrator at a time does this, and
``--dependency=singleton`` that of two jobs one runs at a time; the second finds the first one's result.
"""

import contextlib
import logging
import sys
import time
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from dpo_core.contract.errors import PairlineError
from tasks.launch.command import typical_command
from tasks.launch.compute import Machine, this_machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.docker.config import DockerConfig
from tasks.launch.launcher import BeforeStart, CommandSpec, Ended, OnLine, StepImage
from tasks.launch.launchers import LauncherSections
from tasks.launch.log_position import forget_position, go_back_to_position, save_position, saved_times
from tasks.launch.patience import Silence, patiently
from tasks.launch.process import ProcessLauncher
from tasks.launch.reaped import OnlyOf, Reaped, StateOf
from tasks.launch.slurm.array import ShareRun
from tasks.launch.slurm.batch import BatchJob, Submission, batch_job
from tasks.launch.slurm.client import QueuedJob, SlurmAway, cancel, queue
from tasks.launch.slurm.config import SlurmConfig
from tasks.launch.slurm.container import Wanted, let_in, step_container
from tasks.launch.slurm.ends import LimitReached
from tasks.launch.slurm.followed import Followed, JobLimits
from tasks.launch.slurm.history import HISTORY_FILE, remember
from tasks.launch.slurm.job_log import JobLog
from tasks.launch.slurm.left_jobs import copy_rest_of_log, end, end_what_came_late, put_away
from tasks.launch.slurm.nodes import NodeKinds
from tasks.launch.slurm.own_jobs import (
    SECONDS_BEFORE_LOOKS,
    active_jobs,
    has_kept_more,
    is_ours,
    jobs_to_follow,
    kept,
    nothing_kept,
)
from tasks.launch.slurm.poll import poll_of_this_process
from tasks.launch.slurm.preview import preview
from tasks.launch.slurm.reap import reap_jobs
from tasks.launch.slurm.record import fence, forget_earlier, record_folder
from tasks.launch.slurm.room import Room, submit_when_there_is_room
from tasks.launch.slurm.secrets import remove_secrets, secret_files
from tasks.launch.slurm.share_logs import read_ended_shares
from tasks.launch.slurm.shares import Shares, compute_of_step, forget_shares, node_asked_for, parts_of_a_node
from tasks.launch.slurm.watch import JobWatch
from tasks.launch.step_environment import for_other_machines
from tasks.launch.store_access import with_link_targets

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 3600.0  # with a Slurm that is away: an update of its controller takes minutes


@dataclass(frozen=True, slots=True)
class SlurmLauncher:
    """The launcher for a cluster. ``python``: an interpreter that its nodes have."""

    runs_in_image: ClassVar[bool] = False
    spans_machines: ClassVar[bool] = True
    queues: ClassVar[bool] = True
    compute: ComputeConfig
    slurm: SlurmConfig
    python: str
    patience_seconds: float = PATIENCE_SECONDS
    docker: DockerConfig = DockerConfig()
    kinds: NodeKinds = field(default_factory=NodeKinds, repr=False, compare=False)

    @classmethod
    def of(cls, compute: ComputeConfig, sections: LauncherSections, image: StepImage | None) -> Self:
        """See ``Launcher.of``. What the cluster has is asked when a step needs it."""
        python = sections.slurm.python or sys.executable
        return cls(compute, sections.slurm_of_steps, python, docker=sections.docker)

    @classmethod
    def target(cls, compute: ComputeConfig, sections: LauncherSections, step: str) -> Machine:
        """See ``Launcher.target``: a node of the step's partition, with the cards that it is asked for."""
        if step in sections.slurm.on_this_machine:
            return this_machine()
        return node_asked_for(compute, sections.slurm_of_steps, step)

    @classmethod
    def is_reached_from_here(cls, sections: LauncherSections, step: str) -> bool:
        """See ``Launcher.is_reached_from_here``: nodes may reach what a login node does not, and the other way round."""
        return step in sections.slurm.on_this_machine

    def compute_for(self, step: str) -> ComputeConfig:
        """See ``Launcher.compute_for``."""
        return compute_of_step(self.compute, self.slurm, step)

    def machine_for(self, step: str, context: Context) -> Machine:
        """See ``Launcher.machine_for``."""
        if step in self.slurm.on_this_machine:
            return this_machine()
        asked = node_asked_for(self.compute, self.slurm, step)
        if asked.num_cores:
            return asked
        kind = patiently(lambda: self.kinds[self.slurm.partition_of(step)], context, self.patience_seconds)
        return kind.machine(asked, parts_of_a_node(self.compute, self.slurm, step))

    @classmethod
    def preview(cls, compute: ComputeConfig, sections: LauncherSections, command: CommandSpec) -> str:
        """See ``Launcher.preview``: the call of sbatch with its script; nothing for what is no job."""
        if command.step in sections.slurm.on_this_machine:
            return ""
        slurm, step = sections.slurm_of_steps, command.step
        node, wanted = node_asked_for(compute, slurm, step), Wanted(slurm, sections.docker, compute)
        parts: tuple[Shares | None, ...] = (None,)
        if count := slurm.num_shares(step):
            store = command.folder.parent.parent
            command = typical_command(step, compute_of_step(compute, slurm, step), node, store)
            parts = (Shares(tuple(range(count)), count), None)  # and the pass that follows
        command = replace(command, argv=(slurm.python or sys.executable,))
        record = record_folder(command.folder)
        return "\n".join(preview(command, wanted, node, record, part) for part in parts)

    @classmethod
    def reap(cls, dry_run: bool, state_of: StateOf, only_of: OnlyOf) -> list[Reaped] | None:
        """See ``Launcher.reap``."""
        return reap_jobs(dry_run, state_of, only_of)

    def run(
        self, commands: tuple[CommandSpec, ...], context: Context, on_line: OnLine, before_start: BeforeStart
    ) -> Ended:
        """See ``Launcher.run``. Raises ``ConfigError`` for what the cluster refuses, ``Cancelled``, ``TimedOut``;
        ``SlurmAway`` (retried) if Slurm stays away: then the job runs on and the next start attaches to it."""
        command = commands[0]  # of node 0: srun starts all of them
        if command.step in self.slurm.on_this_machine:
            here = replace(command, argv=(sys.executable, *command.argv[1:]))
            return ProcessLauncher(self.compute).run((here,), context, on_line, before_start)
        if self.slurm.container != "none":
            command = replace(command, inputs=with_link_targets(command.inputs, command.named_by_people))
        active = patiently(lambda: active_jobs(command), context, self.patience_seconds)
        spent, found = 0.0, next((job for job in active if not job.num_shares), None)
        if found is None and (count := self.slurm.num_shares(command.step)):
            ended = ShareRun(self, command, count, (context, on_line, before_start)).run(active)
            if ended is not None:
                return ended
        elif shares := [job for job in active if job.num_shares]:  # of a setting of before, or late
            end(shares, context)
            read_ended_shares(command.folder, [job.key for job in shares], on_line)
        while True:
            before = kept(command)
            watch, outcome = self._one_job(command, found, spent, (context, on_line, before_start))
            if isinstance(outcome, Ended):
                forget_position(command.folder)
                if outcome == Ended(0):
                    forget_shares(watch.job.record)
                return outcome
            if not has_kept_more(command, before, watch.job if found else None):
                raise outcome.error(outcome.otherwise) if outcome.otherwise else nothing_kept(command.step)
            spent = watch.limits.spent_seconds + watch.spent_seconds()
            context.tell_line(f"Step {command.step} goes on in another Slurm job.")
            found = None

    def _one_job(
        self,
        command: CommandSpec,
        found: QueuedJob | None,
        spent: float,
        between: tuple[Context, OnLine, BeforeStart],
    ) -> tuple[JobWatch, Ended | LimitReached]:
        """Watch the job that was found, or a new one; once more a new one where its watch says so."""
        context, on_line, before_start = between
        for is_last in (False, True):
            job = (
                self._attach(command, found, context)
                if found
                else self._start(command, context, before_start)
            )
            limits = self.limits(command, spent)
            watch = JobWatch(command, job, limits, poll_of_this_process(), context, on_line)
            try:
                outcome = watch.until_the_end()
                self._leave_nothing(command, job)
                return watch, outcome
            except SlurmAway:
                raise
            except BaseException:
                self._leave_nothing(command, job)
                if not watch.is_worth_another_job or is_last:
                    raise
            found, spent = None, spent + watch.spent_seconds()
        raise AssertionError("the last try returns or raises")

    def clear(self, folder: Path, context: Context) -> None:
        """See ``Launcher.clear``: a job that outlived its orchestrator."""
        if not saved_times(folder):
            return
        with contextlib.suppress(PairlineError):  # `pairline reap` will do it
            of_it = (seen for seen in queue() if seen.comment.get("folder") == str(folder))
            if left := [seen for seen in of_it if seen.is_active]:
                end(left, context)
            put_away(folder, [seen.key for seen in left])

    def limits(self, command: CommandSpec, spent: float) -> JobLimits:
        """Return what bounds a job of a step that has run for so long already."""
        grace = float(self.compute.stop_grace_seconds or command.stop_grace_seconds)
        return JobLimits(
            spent, grace, self.patience_seconds, self.slurm.poll_seconds, self.compute.folder_gib
        )

    def _attach(self, command: CommandSpec, found: QueuedJob, context: Context) -> Followed:
        """Follow a job of an earlier run, which may have removed its secrets as it could not cancel it."""
        log.info("Attaching to Slurm job %s (%s).", found.id, found.name)
        secret_files(command, context, self.slurm.container == "docker")
        key, record = found.key, record_folder(command.folder)
        offset = int(go_back_to_position(command.folder, [key]).get(key, "") or 0)
        its_log = JobLog(record / f"{key}.log", offset, command.num_processes > 1)
        return Followed(key, found.id, record, its_log)

    def _start(self, command: CommandSpec, context: Context, before_start: BeforeStart) -> Followed:
        """Submit; after any answer but a refusal look whether the job is there before it is submitted again."""
        record = record_folder(command.folder, make=True)
        copy_rest_of_log(command.folder)
        remember(record, time.time())
        forget_earlier(record, HISTORY_FILE)
        self.prepare(command, before_start)
        try:
            return self._submit(command, context, record)
        except SlurmAway:
            raise
        except BaseException:
            remove_secrets(record)
            end_what_came_late(command)
            raise

    def _submit(self, command: CommandSpec, context: Context, record: Path) -> Followed:
        room, silence = Room(context, self.patience_seconds), Silence(self.patience_seconds)
        while True:
            answered = room.answered
            try:
                described = self.describe(command, context, uuid.uuid4().hex[:12])
                save_position(command.folder, {described.key: "0"})
                job_id = submit_when_there_is_room(described, room, lambda: bool(jobs_to_follow(command)))
            except SlurmAway as away:
                if room.answered > answered:
                    silence.end()
                is_too_long = silence.is_too_long(away)
                log.warning("%s Looking whether it was submitted before it is tried again.", away)
                if (found := self._submitted_late(command, context)) is not None:
                    return self._attach(command, found, context)
                if is_too_long:
                    raise
                continue
            its_log = JobLog(record / f"{described.key}.log", 0, command.num_processes > 1)
            return Followed(described.key, job_id, record, its_log)

    def prepare(self, command: CommandSpec, before_start: BeforeStart) -> None:
        """Make the step's folders and inputs ready for what is about to be submitted. Raises ``StoreError``."""
        before_start()
        if self.slurm.container != "none":
            let_in(command)

    def _submitted_late(self, command: CommandSpec, context: Context) -> QueuedJob | None:
        for wait_seconds in SECONDS_BEFORE_LOOKS:
            context.sleep(wait_seconds)
            context.raise_if_stopped()
            if found := patiently(lambda: jobs_to_follow(command), context, self.patience_seconds):
                return found[0]
        return None

    def describe(
        self, command: CommandSpec, context: Context, key: str, shares: Shares | None = None
    ) -> BatchJob:
        """Return the step as a batch job, or an array of its shares, ready to be submitted."""
        record, machine = record_folder(command.folder, make=True), self.machine_for(command.step, context)
        secrets = secret_files(command, context, self.slurm.container == "docker")
        wanted = Wanted(self.slurm, self.docker, self.compute)
        container = step_container(command, wanted, machine, context.run, secrets)
        limit = None
        with contextlib.suppress(PairlineError):  # sbatch will say it
            known = self.kinds[self.slurm.partition_of(command.step)]
            limit = None if self.slurm.time_limit_minutes else known.limit_minutes
        submission = Submission(key, record, secrets, container, shares, limit)
        return batch_job(command, self.slurm, machine, submission, context.run, for_other_machines(command))

    def _leave_nothing(self, command: CommandSpec, job: Followed) -> None:
        """Of an ended job: its secrets, ranks on a lost node, what came late of a submission whose answer was lost."""
        remove_secrets(job.record)
        fence(job.record, job.key)
        with contextlib.suppress(PairlineError):
            for seen in poll_of_this_process().look(command.name, max_age_seconds=1.0):
                if seen.is_active and is_ours(seen, command) and seen.state == "PENDING":
                    cancel(seen.id, if_it_waits=True)
