"""From a submitted job to how it ended: its log followed, its state asked for now and then, a Slurm that is away waited for.

Leaves nothing behind. Exceptions are an orchestrator that is killed and a Slurm that stays away: the job then runs on, and
the next start of the step attaches to it.
"""

import contextlib
import logging
import math
import time

from dpo_core.contract.errors import ConfigError, DiskFull, PairlineError, StepCrashed
from tasks.launch.context import Context
from tasks.launch.folder_bound import FolderBound
from tasks.launch.launcher import CommandSpec, Ended, OnLine, too_slow
from tasks.launch.log_position import save_position
from tasks.launch.patience import Silence
from tasks.launch.slurm.client import QueuedJob, SlurmAway, details, who_cancelled
from tasks.launch.slurm.ends import (
    JobEnd,
    LimitReached,
    failed_to_launch,
    how_it_ended,
    is_ended_with_a_lost_one,
    why_it_never_starts,
)
from tasks.launch.slurm.followed import Followed, JobLimits
from tasks.launch.slurm.job_stop import SECONDS_AT_THE_END, TURN_SECONDS, JobStop
from tasks.launch.slurm.poll import Poll
from tasks.launch.slurm.record import (
    SECONDS_WITHOUT_A_SIGN,
    Start,
    StartsSeen,
    SuspendedTime,
    running_seconds,
    starts_of,
)
from tasks.launch.slurm.shown import cluster_job
from tasks.launch.slurm.unlisted import state_of_unlisted
from tasks.launch.undisturbed import undisturbed

log = logging.getLogger(__name__)
WAITING_TURN_SECONDS = 2.0
SECONDS_YOUNG, SECONDS_BETWEEN_YOUNG = 15.0, 2.0  # a job that can never start says so at once
SECONDS_FOR_AN_EPILOG = 60.0  # then a job that has ended is looked at as seldom as any, and its node may hang
TIMES_AS_LONG_FOR_A_REQUEUE = 10
SECONDS_BETWEEN_POSITIONS = 2.0


class JobWatch:
    """Watches one job."""

    def __init__(
        self,
        command: CommandSpec,
        job: Followed,
        limits: JobLimits,
        poll: Poll,
        context: Context,
        on_line: OnLine,
    ) -> None:
        self.command, self.job, self.limits, self.poll = command, job, limits, poll
        self.context, self.on_line = context, on_line
        self.bound = FolderBound(command.folder, limits.folder_gib)
        self.starts = StartsSeen(job.record, job.key)
        self.began = time.monotonic()
        self.silence = Silence(limits.patience_seconds)
        self.where = ""  # what was said of it last
        self.shown: tuple[object, ...] = ()
        self.ended = "ENDED"
        self.position_saved = 0.0
        self.is_worth_another_job, self.waits = False, True  # another: what it met is of this one alone
        self.over_since, self.unlisted_since = math.inf, -math.inf  # monotonic
        self.suspended = SuspendedTime()
        self.requeued: int | None = None  # number of the start that ended and is followed by another one

    def until_the_end(self) -> Ended | LimitReached:
        """Wait for the end. Raises what the end means, ``TimedOut``, ``DiskFull``, ``SlurmAway``."""
        self.poll.watch(self.command.name)
        try:
            return self._until_the_end()
        except SlurmAway:
            self.ended = "left alone: Slurm does not answer"
            log.warning(
                "Slurm job %s (%s) is left alone. Start again to attach to it.",
                self.job.id,
                self.command.name,
            )
            raise
        except BaseException as error:
            with undisturbed():
                self._stop(0.0 if isinstance(error, DiskFull) else self.limits.grace_seconds)
            raise
        finally:
            self.pass_lines_on(to_the_end=True)
            self.poll.forget(self.command.name)
            self._show(None, word=self.ended)

    def _until_the_end(self) -> Ended | LimitReached:
        while (outcome := self.turn()) is None:
            self._wait_a_turn()
        return outcome

    def turn(self) -> Ended | LimitReached | None:
        """Look once. -> how it ended, None while it is to be waited for. Raises what the end means."""
        self.pass_lines_on()
        self.context.raise_if_stopped()
        self.bound.check()
        starts = self.starts.look()
        if self._seconds_of(starts) + self.limits.spent_seconds > self.command.timeout_seconds:
            raise too_slow(self.command)
        last = starts[-1] if starts else None
        self.waits = last is None or last.number == self.requeued
        if (state := self._state(last)) is None:
            return None
        self.pass_lines_on(to_the_end=True)
        starts = self.starts.look(anew=True)
        outcome = how_it_ended(self._end(state, starts[-1] if starts else None), self.command.step)
        if is_ended_with_a_lost_one(outcome, starts):
            self.is_worth_another_job = True
            said = f"Slurm job {self.job.id} was ended with what a lost node still ran of its start {len(starts) - 1}."
            self.context.tell_line(said)
            raise StepCrashed(said)
        if isinstance(outcome, PairlineError):
            raise outcome
        return outcome

    def spent_seconds(self) -> float:
        """Return for how long the job has run."""
        return self._seconds_of(starts_of(self.job.record, self.job.key))

    def _seconds_of(self, starts: list[Start]) -> float:
        return max(0.0, running_seconds(starts) - self.suspended.seconds)

    def _wait_a_turn(self) -> None:
        """Hundreds of jobs in a queue cost next to nothing: there is no log to look at."""
        is_young = time.monotonic() - self.began < SECONDS_YOUNG
        seconds = WAITING_TURN_SECONDS if self.waits and not is_young else TURN_SECONDS
        if self.context.stop is None:
            time.sleep(seconds)
        else:
            self.context.stop.wait(seconds)

    def _state(self, last: Start | None) -> str | None:
        """The state that the job ended in, "" if Slurm does not know it any more; None while it is to be waited for."""
        over = last is not None and last.exit_code is not None
        has_ended = over and last is not None and last.number != self.requeued
        self.over_since = min(self.over_since, time.monotonic()) if has_ended else math.inf
        is_ending = time.monotonic() - self.over_since < SECONDS_FOR_AN_EPILOG
        age = time.monotonic() - self.began
        wanted = SECONDS_BETWEEN_YOUNG if age < SECONDS_YOUNG else self.limits.poll_seconds
        if has_ended and is_ending:
            wanted = SECONDS_AT_THE_END
        try:
            seen = self._seen(min(wanted, self.limits.poll_seconds, max(0.0, age)))
            if seen is not None:
                self.silence.end()
            state = seen.state if seen is not None else self._unlisted(last, age)
        except SlurmAway as away:
            if self.silence.is_too_long(away):
                raise
            self._show(None, last, "unknown: Slurm does not answer")
            return None
        self.suspended.look(seen is not None and seen.state == "SUSPENDED")
        if seen is not None and seen.is_active:
            if over and last is not None and seen.state == "PENDING":
                self.requeued = last.number
            self._tell(seen, last)
            self._show(seen, last)
            self._refuse_what_never_starts(seen)
            hangs = seen.state == "COMPLETING" and has_ended and self._has_had_its_epilog(last)
            return seen.state if hangs else None
        return state

    def _has_had_its_epilog(self, last: Start | None) -> bool:
        """Whether a node, or its epilog, hangs. A job that did not end well may be about to be requeued."""
        is_good = last is not None and last.is_good
        seconds = SECONDS_FOR_AN_EPILOG * (1 if is_good else TIMES_AS_LONG_FOR_A_REQUEUE)
        return time.monotonic() - self.over_since > seconds

    def _unlisted(self, last: Start | None, age: float) -> str | None:
        """As ``_state``, of a job that the list lacks: asked about by its id, as seldom as the list."""
        if last is not None and last.is_good:
            return ""
        now, over = time.monotonic(), last is not None and last.exit_code is not None
        silent = time.time() - (last.last_sign if last is not None else 0.0) > SECONDS_WITHOUT_A_SIGN
        if not over and not (silent and age > SECONDS_BETWEEN_YOUNG):
            self.silence.end()
            return None
        if now - self.unlisted_since < self.limits.poll_seconds:
            return None
        self.unlisted_since = now
        state = state_of_unlisted(self.job.id, self.command.name)
        self.silence.end()  # both have answered
        return state

    def _seen(self, max_age_seconds: float) -> QueuedJob | None:
        """The job as Slurm knows it: by what we gave it, since an id is given again after a crash of Slurm's own."""
        for seen in self.poll.look(self.command.name, max_age_seconds):
            if seen.key == self.job.key:
                return seen
        return None

    def _end(self, state: str, last: Start | None) -> JobEnd:
        code = signal = None
        if state and (last is None or last.exit_code is None):
            known: list[dict[str, str]] = []
            with contextlib.suppress(SlurmAway):
                known = details(self.job.id)
            for one in known:
                if one.get("JobName") == self.command.name:
                    code, _, signal = one.get("ExitCode", "").partition(":")
        return JobEnd(
            state,
            int(code) if code and code.isdigit() else None,
            int(signal) if signal and signal.isdigit() else 0,
            last,
            tuple(self.job.log.last_lines),
            who_cancelled(self.job.id, self.command.name) if state == "CANCELLED" else "",
        )

    def _tell(self, seen: QueuedJob, last: Start | None) -> None:
        """Say where the job stands, when that changes."""
        if seen.state == "PENDING":
            expected = f", expected to start {seen.start}" if seen.start not in ("", "N/A") else ""
            where = f"waits on partition {seen.partition}: {seen.reason}{expected}"
        else:
            again = f", start {last.number + 1}" if last is not None and last.number else ""
            where = f"is {seen.state.lower()} on {seen.nodes} of partition {seen.partition}{again}"
        if where != self.where:
            self.where = where
            self.context.tell_line(f"Slurm job {seen.id} ({seen.name}) {where}.")
            log.info("Slurm job %s (%s) %s.", seen.id, seen.name, where)

    def _show(self, seen: QueuedJob | None, last: Start | None = None, word: str = "") -> None:
        """Tell it to the run's page, when that changes. ``word``: where the queue says nothing."""
        about = seen and (seen.state, seen.reason, seen.nodes, seen.start)
        now = (about, last and (last.number, last.exit_code), word)
        if now != self.shown:
            self.shown = now
            job = cluster_job(self.command, self.job.id, (self.job.key,), seen, word)
            self.context.tell_cluster_job(job)

    def _refuse_what_never_starts(self, seen: QueuedJob) -> None:
        if failed_to_launch(seen.reason):
            self.is_worth_another_job = True
            raise StepCrashed(
                f"Slurm job {seen.id} could not be launched on its nodes: {seen.reason}.",
                "Slurm does not say which; a node whose prolog failed it drains: `sinfo -R` names those.",
            )
        if seen.state == "PENDING" and (reason := why_it_never_starts(seen.reason)):
            raise ConfigError(
                f"Slurm job {seen.id} of step {self.command.step} on partition {seen.partition} can never start: {reason}.",
                "Change what it asks for (section slurm, compute.machines); `scontrol show partition` shows what it may.",
            )

    def _stop(self, grace_seconds: float) -> None:
        """SIGTERM to the ranks and the time to write a checkpoint, then the end."""
        try:
            JobStop(self.job, self.command.name, self._seen, self.pass_lines_on).stop(grace_seconds)
        except PairlineError as error:  # the error that is on its way counts
            log.warning("%s could not be stopped; `pairline reap` will do it. %s", self.command.name, error)

    def pass_lines_on(self, to_the_end: bool = False) -> None:
        """Take what the job has printed."""
        num_lines = self.job.log.pass_on(self.on_line, to_the_end)
        if to_the_end or (num_lines and time.monotonic() - self.position_saved > SECONDS_BETWEEN_POSITIONS):
            self.position_saved = time.monotonic()
            self._save_position()

    def _save_position(self) -> None:
        save_position(self.command.folder, {self.job.key: str(self.job.log.offset)})
