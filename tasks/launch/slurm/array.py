"""Fills a step's cache by the jobs of an array, and follows all of them: the shares of a reference pass.

share's job            meaning
ended with 0           done; so is one that a newer start has ended, which is followed then
came to its time       submitted again, if the cache has grown
preempted for good     the same, else as one that is lost
lost, killed, crashed  submitted again, twice at most; the others go on
anything else          ends the step: the others are ended, and their shards stay

A killed orchestrator leaves the array alone; the next attaches to what runs, takes what has ended, submits the rest.
"""

import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dpo_core.contract.errors import PairlineError, Preempted, StepCrashed, TimedOut
from dpo_core.contract.progress import parse_line
from tasks.launch.context import Context
from tasks.launch.launcher import BeforeStart, CommandSpec, Ended, OnLine
from tasks.launch.log_position import forget_position, go_back_to_position, save_position, saved_times
from tasks.launch.slurm.client import QueuedJob, SlurmAway, cancel
from tasks.launch.slurm.ends import FENCED, LimitReached, failed_to_launch
from tasks.launch.slurm.job_log import JobLog
from tasks.launch.slurm.left_jobs import end
from tasks.launch.slurm.names import array_of, index_of, share_folder, share_key
from tasks.launch.slurm.own_jobs import active_jobs, kept
from tasks.launch.slurm.poll import poll_of_this_process
from tasks.launch.slurm.record import fence, record_folder, running_seconds, starts_of
from tasks.launch.slurm.room import submit_when_there_is_room
from tasks.launch.slurm.share_logs import mark_read, of_share, pass_rest_on, read_to
from tasks.launch.slurm.share_progress import SECONDS_A_SHARE, SharesProgress, SharesShown
from tasks.launch.slurm.shares import Shares, ended_well, forget_shares
from tasks.launch.slurm.submits import Submits
from tasks.launch.slurm.watch import SECONDS_BETWEEN_POSITIONS, Followed, ShareWatch

log = logging.getLogger(__name__)
MOST_LOST = 2  # times that a share's job may be lost and is submitted again
TURN_SECONDS = 0.5
SECONDS_BETWEEN_LOOKS = 5.0  # at a controller that was busy, and may answer in another order


@dataclass
class ShareRun:
    """All shares of a step, from the first submission to the last end."""

    launcher: Submits
    command: CommandSpec
    count: int
    between: tuple[Context, OnLine, BeforeStart]
    watches: dict[int, ShareWatch] = field(default_factory=dict)
    kept: dict[int, tuple[tuple[str, int], ...]] = field(default_factory=dict)  # when its job was submitted
    lost: Counter[int] = field(default_factory=Counter)
    spent: Counter[int] = field(default_factory=Counter)  # seconds of earlier jobs
    saved: float = 0.0  # when: monotonic
    keys: dict[int, str] = field(default_factory=dict)  # of each share's newest job
    followed: set[str] = field(default_factory=set)  # keys

    def __post_init__(self) -> None:
        self.context, self.on_line, self.before_start = self.between
        self.record = record_folder(self.command.folder, make=True)
        self.progress = SharesProgress(self.count)
        self.shown = SharesShown(self.command, self.context)

    def run(self, found: Sequence[QueuedJob]) -> Ended | None:
        """Return None once all shares have ended well, else how the one ended that cannot be mended by another start.

        ``found``: jobs of the step that wait or run. Raises as ``JobWatch`` does; then no share is at work, but for
        ``SlurmAway``.
        """
        if others := [job for job in found if job.num_shares != self.count]:  # of another setting
            end(others, self.context)
        self.progress.done = ended_well(self.command, self.record, self.count)
        poll = poll_of_this_process()
        poll.watch(self.command.name)
        try:
            ours = [job for job in found if job.num_shares == self.count]
            self._attach(ours, ended=[job.key for job in others])
            forget_shares(self.record, but=range(self.count), count=self.count)  # their logs are read
            if lacking := set(range(self.count)) - set(self.watches) - self.progress.done:
                self.launcher.prepare(self.command, self.before_start)
                self._submit(lacking, is_again=bool(self.watches))
            ended = self._until_all_have_ended()
            while ended is None and self._follow_what_is_beside():
                ended = self._until_all_have_ended()
            self._leave_nothing()
            return ended
        except SlurmAway:
            log.warning("Slurm's array of %s is left alone. Start again to attach to it.", self.command.name)
            raise
        except BaseException:
            self._stop()
            raise
        finally:
            if self.watches:
                self._lines_and_positions(to_the_end=True)
            poll.forget(self.command.name)
            self._show(over=True)

    def _attach(self, found: Sequence[QueuedJob], ended: Iterable[str]) -> None:
        """Follow what waits or runs, and read what others printed that ended meanwhile (``ended``: keys of some)."""
        offsets = go_back_to_position(self.command.folder, saved_times(self.command.folder))
        for job in found:  # those that run before those that wait
            if (index := index_of(job.id) or 0) not in self.watches:
                log.info("Attaching to Slurm job %s (%s).", job.id, job.name)
                self._follow(index, job.id, job.key, read_to(self.record, job.key, offsets.get(job.key)))
            elif job.state == "PENDING":  # it came late, when its share had been submitted again
                with contextlib.suppress(PairlineError):
                    cancel(job.id)
        unread: dict[str, str | None] = {**dict.fromkeys(ended), **offsets}
        at_work = {job.key for job in found}
        ends = {
            key: pass_rest_on(self.record, key, saved, self.on_line)
            for key, saved in unread.items()
            if key not in at_work
        }
        if offsets or ends:
            self._lines_and_positions(save=True, more=((key, str(place)) for key, place in ends.items()))
        for key, place in ends.items():
            mark_read(self.record, key, place)

    def _follow_what_is_beside(self) -> bool:
        """Follow jobs that run beside the one that was followed: of a submission whose answer was lost, of another run.
        They end at once, as all is there, and their lines belong to the log. -> whether there are any"""
        for job in self._active():
            index = index_of(job.id) or 0
            is_new = job.num_shares == self.count and job.key not in self.followed
            is_at_work = job.state != "PENDING" and not failed_to_launch(job.reason)
            if is_new and is_at_work and index not in self.watches:
                self._follow(index, job.id, job.key, read_to(self.record, job.key))
        return bool(self.watches)

    def _follow(self, index: int, job_id: str, key: str, offset: int = 0) -> None:
        self.keys[index] = key
        self.followed.add(key)
        if (array := array_of(job_id)) not in self.shown.arrays:
            self.shown.arrays.append(array)
        job_log = JobLog(self.record / f"{key}.log", offset, has_labels=False)
        self.kept[index] = kept(self.command)
        self.progress.done.discard(index)
        self.watches[index] = ShareWatch(
            self.command,
            Followed(key, job_id, self.record, job_log),
            self.launcher.limits(self.command, self.spent[index]),
            poll_of_this_process(),
            self.context,
            self._lines_of(index),
        )

    def _lines_of(self, index: int) -> OnLine:
        plain = of_share(index, self.on_line)

        def take(line: str) -> None:
            if (event := parse_line(line)) is not None:
                self.on_line(self.progress.merged(index, event))
            else:
                plain(line)

        return take

    def _submit(self, wanted: set[int], is_again: bool = False) -> None:
        """Submit shares; after any answer but a refusal look which of them are there before they are submitted again."""
        until = time.monotonic() + self.launcher.limits(self.command, 0.0).patience_seconds
        while wanted:
            shares = Shares(tuple(sorted(wanted)), self.count, is_again)
            key = uuid.uuid4().hex[:12]
            keys = {index: share_key(key, index, self.count) for index in shares.indices}
            for index in shares.indices:
                share_folder(self.record, index, self.count).mkdir(exist_ok=True)
            described = self.launcher.describe(self.command, self.context, key, shares)
            self._lines_and_positions(save=True, more=((key, "0") for key in keys.values()))
            try:
                array = submit_when_there_is_room(described, self.context)
            except SlurmAway as away:
                log.warning("%s Looking whether it was submitted before it is tried again.", away)
                for index, job in self._submitted_late(wanted).items():
                    self._follow(index, job.id, job.key)
                    wanted.discard(index)
                if wanted and time.monotonic() > until:
                    raise
                continue
            for index in shares.indices:
                self._follow(index, f"{array}_{index}", keys[index])
            return

    def _submitted_late(self, wanted: set[int]) -> dict[int, QueuedJob]:
        """Look twice, as the launcher does, for jobs of these shares."""
        found: dict[int, QueuedJob] = {}
        for wait_seconds in (0.0, SECONDS_BETWEEN_LOOKS):
            self.context.sleep(wait_seconds)
            self.context.raise_if_stopped()
            for job in self._active() if not found else ():
                index = index_of(job.id)
                if job.num_shares == self.count and index is not None and index in wanted:
                    found.setdefault(index, job)
        return found

    def _active(self) -> list[QueuedJob]:
        return self.launcher.patiently(lambda: active_jobs(self.command), self.context)

    def _until_all_have_ended(self) -> Ended | None:
        while self.watches:
            for index, watch in list(self.watches.items()):
                if (ended := self._look(index, watch)) is not None:
                    self._stop()
                    return ended
            self._lines_and_positions()
            self._show()
            self.context.sleep(max(TURN_SECONDS, self.count * SECONDS_A_SHARE))
        return None

    def _look(self, index: int, watch: ShareWatch) -> Ended | None:
        """A turn for one share. -> how it ended, if that ends the step"""
        why = "came to its time limit"
        try:
            outcome = watch.turn()
            if outcome is None:
                return None
        except StepCrashed as crash:
            outcome, why = Ended(1, cause=str(crash)), crash.problem
            self._end_what_is_held(watch.job.key)
        except Preempted as preempted:  # and not requeued
            outcome, why = LimitReached(otherwise=preempted.problem), preempted.problem
        if isinstance(outcome, LimitReached) and self.kept[index] == kept(self.command):
            if not outcome.otherwise:
                raise TimedOut(
                    f"The Slurm job of share {index} of step {self.command.step} came to its time limit before the cache "
                    "had grown.",
                    "Raise slurm.time_limit_minutes, or lower reference.rows_per_shard: one shard must fit into one job.",
                )
            outcome = Ended(1, cause=outcome.otherwise)
        if outcome in (Ended(0), Ended(FENCED)):
            self._forget(index)
            self.progress.done.add(index)
            return None
        if isinstance(outcome, Ended):
            self.lost[index] += 1
            is_for_good = outcome.out_of_memory or not (outcome.cause or outcome.exit_code < 0)
            if is_for_good or self.lost[index] > MOST_LOST:
                return outcome
            why = outcome.cause or f"was killed by signal {-outcome.exit_code}"
        self.spent[index] += round(running_seconds(starts_of(self.record, watch.job.key)))
        self._forget(index)
        self.context.tell_line(f"Share {index} of step {self.command.step} is submitted again: {why}")
        self._submit({index}, is_again=True)
        return None

    def _end_what_is_held(self, key: str) -> None:
        """A job that its nodes could not launch; known by its key, as an id may be somebody else's by now."""
        with contextlib.suppress(SlurmAway):  # it ends with the step
            for job in self._active():
                if job.key == key:
                    cancel(job.id)

    def _forget(self, index: int) -> None:
        watch = self.watches.pop(index)
        watch.pass_lines_on(to_the_end=True)
        mark_read(self.record, watch.job.key, watch.job.log.offset)
        fence(self.record, watch.job.key)

    def _lines_and_positions(
        self, to_the_end: bool = False, save: bool = False, more: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Save how far all logs were read, together: the log of the step is one. ``more``: of others,
        that may come to be or have ended."""
        if to_the_end:
            for watch in self.watches.values():
                watch.pass_lines_on(to_the_end=True)
        now = time.monotonic()
        if to_the_end or save or now - self.saved > SECONDS_BETWEEN_POSITIONS:
            offsets = {watch.job.key: str(watch.job.log.offset) for watch in self.watches.values()}
            self.saved = now
            save_position(self.command.folder, offsets | dict(more))

    def _stop(self) -> None:
        """SIGTERM to what runs, the time that it is given, and the end of the array and of what it has left."""
        try:
            if left := active_jobs(self.command):
                end(left)
            for watch in self.watches.values():
                fence(self.record, watch.job.key)
        except PairlineError as error:  # the error that is on its way counts
            log.warning("%s could not be stopped; `pairline reap` will do it. %s", self.command.name, error)

    def _leave_nothing(self) -> None:
        """What a submission left whose answer was lost and that came late; the logs are read."""
        with contextlib.suppress(PairlineError):
            for job in active_jobs(self.command):
                if job.num_shares and (job.state == "PENDING" or failed_to_launch(job.reason)):
                    cancel(job.id)
        forget_position(self.command.folder)

    def _show(self, over: bool = False) -> None:
        seen = [watch.seen for watch in self.watches.values()]
        self.shown.show(self.progress, seen, tuple(self.keys.values()), over)
