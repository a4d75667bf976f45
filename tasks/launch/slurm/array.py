"""Fills a step's cache by the jobs of an array, and follows all of them: the shares of a reference pass.

share's job            meaning
ended with 0           done, whatever becomes of other jobs of the share
ended by a newer start that one is followed; where it is gone, it counts
came to its time       submitted again, if the cache has grown
preempted for good     the same, else as one that is lost
lost, killed, crashed  submitted again, twice at most; the others go on
anything else          ends the step: the others are ended, and their shards stay

A killed orchestrator leaves the array alone; the next attaches to what runs, takes what has ended, submits the rest.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dpo_core.contract.errors import DiskFull, PairlineError, StepCrashed, TimedOut
from dpo_core.contract.progress import parse_line
from tasks.launch.context import Context
from tasks.launch.launcher import BeforeStart, CommandSpec, Ended, OnLine
from tasks.launch.log_position import forget_position, go_back_to_position, save_position, saved_times
from tasks.launch.patience import patiently
from tasks.launch.slurm.client import QueuedJob, SlurmAway, cancel
from tasks.launch.slurm.ends import FENCED, LimitReached, failed_to_launch
from tasks.launch.slurm.followed import Followed
from tasks.launch.slurm.job_log import JobLog
from tasks.launch.slurm.job_stop import stop_shares
from tasks.launch.slurm.left_jobs import cancel_by_key, cancel_shares_that_wait, end
from tasks.launch.slurm.names import array_of, index_of, share_folder
from tasks.launch.slurm.own_jobs import active_jobs, kept
from tasks.launch.slurm.poll import poll_of_this_process
from tasks.launch.slurm.record import fence, record_folder
from tasks.launch.slurm.secrets import remove_secrets
from tasks.launch.slurm.share_logs import mark_read, of_share, pass_rests_on, read_to
from tasks.launch.slurm.share_progress import SECONDS_A_SHARE, SharesProgress, SharesShown
from tasks.launch.slurm.share_submits import ShareSubmissions
from tasks.launch.slurm.share_watch import ShareWatch
from tasks.launch.slurm.shares import ended_well, forget_shares, newest_start
from tasks.launch.slurm.submits import Submits
from tasks.launch.slurm.watch import SECONDS_BETWEEN_POSITIONS
from tasks.launch.undisturbed import undisturbed

log = logging.getLogger(__name__)
MOST_LOST = 2  # times that a share's job may be lost and is submitted again
TURN_SECONDS = 0.5


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
    complete: set[int] = field(default_factory=set)  # even if another job of theirs is followed
    followed: set[str] = field(default_factory=set)  # keys

    def __post_init__(self) -> None:
        self.context, self.on_line, self.before_start = self.between
        self.record = record_folder(self.command.folder, make=True)
        self.progress = SharesProgress(self.count)
        self.shown = SharesShown(self.command, self.context)
        about = (self.launcher, self.command, self.count, self.context)
        self.submissions = ShareSubmissions(*about, save=lambda more: self._lines_and_positions(more=more))

    def run(self, found: Sequence[QueuedJob]) -> Ended | None:
        """Return None once all shares have ended well, else how the one ended that cannot be mended by another start.

        ``found``: jobs of the step that wait or run. Raises as ``JobWatch`` does; then no share is at work, but for
        ``SlurmAway``.
        """
        if others := [job for job in found if job.num_shares != self.count]:  # of another setting
            end(others, self.context)
        self.progress.done = ended_well(self.command, self.record, self.count)
        self.complete |= self.progress.done
        poll = poll_of_this_process()
        poll.watch(self.command.name)
        try:
            ours = [job for job in found if job.num_shares == self.count]
            self._attach(ours, ended=[job.key for job in others])
            forget_shares(self.record, but=range(self.count), count=self.count)  # their logs are read
            if lacking := set(range(self.count)) - set(self.watches) - self.progress.done:
                self.launcher.prepare(self.command, self.before_start)
                self.submissions.add(lacking)
            ended = self._until_all_have_ended()
            while ended is None and self._follow_what_is_beside():
                ended = self._until_all_have_ended()
            self._leave_nothing()
            return ended
        except SlurmAway:
            log.warning("Slurm's array of %s is left alone. Start again to attach to it.", self.command.name)
            raise
        except BaseException as error:
            with undisturbed():
                self._stop(without_grace=isinstance(error, DiskFull))
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
            index = index_of(job.id) or 0
            # It came late, when its share had been submitted again, and perhaps was done.
            if job.state == "PENDING" and (index in self.watches or index in self.complete):
                with contextlib.suppress(PairlineError):
                    cancel(job.id)
            elif index not in self.watches:
                log.info("Attaching to Slurm job %s (%s).", job.id, job.name)
                self._follow(index, job.id, job.key, offsets.get(job.key))
        at_work = {job.key for job in found}
        read: dict[str, str | None] = {**dict.fromkeys(ended), **offsets}
        unread = {key: place for key, place in read.items() if key not in at_work}
        if offsets or unread:
            pass_rests_on(self.command.folder, unread, self._positions(), self.on_line)

    def _follow_what_is_beside(self) -> bool:
        """Follow jobs that run beside the one that was followed: of a submission whose answer was lost, of another run.
        They end at once, as all is there, and their lines belong to the log. -> whether there are any"""
        for job in self._active():
            if (index := index_of(job.id) or 0) not in self.watches:
                self._follow_if_new(index, job)
        return bool(self.watches)

    def _follow_if_new(self, index: int, job: QueuedJob, newest: str = "") -> bool:
        """Follow a job that was not followed before, and is at work or of the key ``newest``."""
        is_new = job.num_shares == self.count and job.key not in self.followed
        is_at_work = job.state != "PENDING" or job.key == newest
        if is_new and is_at_work and not failed_to_launch(job.reason):
            self._follow(index, job.id, job.key)
            return True
        return False

    def _how_the_newer_ended(self, index: int) -> Ended | None:
        """Of a start that has ended the one that was followed. None if it is to be waited for, and is followed now."""
        key, newest = newest_start(folder := share_folder(self.record, index, self.count))
        key = f"{folder.name}/{key}"
        of_it = [job for job in self._active() if index_of(job.id) == index]
        if any(self._follow_if_new(index, job, key) for job in of_it):
            return None
        if newest is not None and key not in self.followed:
            pass_rests_on(self.command.folder, {key: None}, self._positions(), self.on_line)
        is_good = newest is not None and newest.is_good
        return Ended(0) if is_good else Ended(1, cause="another start had ended it, and is gone")

    def _follow(self, index: int, job_id: str, key: str, saved: str | None = None) -> None:
        self.keys[index] = key
        self.followed.add(key)
        if (array := array_of(job_id)) not in self.shown.arrays:
            self.shown.arrays.append(array)
        job_log = JobLog(self.record / f"{key}.log", read_to(self.record, key, saved), has_labels=False)
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

    def _active(self) -> list[QueuedJob]:
        return patiently(lambda: active_jobs(self.command), self.context, self.launcher.patience_seconds)

    def _until_all_have_ended(self) -> Ended | None:
        while self.watches or self.submissions.waiting:
            self.context.raise_if_stopped()
            for index, job_id, key in self.submissions.turn(self.followed):
                self._follow(index, job_id, key)
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
        if (outcome := self._outcome(index, watch)) is None:
            return None
        has_kept = self.kept[index] != kept(self.command)
        if outcome == Ended(FENCED):
            self._forget(index, watch)
            outcome = self._how_the_newer_ended(index)
            if outcome is None:
                return None
        if isinstance(outcome, LimitReached) and not has_kept:
            if not outcome.otherwise:
                raise TimedOut(
                    f"The Slurm job of share {index} of step {self.command.step} came to its time limit before the cache "
                    "had grown.",
                    "Raise slurm.time_limit_minutes, or lower reference.rows_per_shard: one shard must fit into one job.",
                )
            outcome = Ended(1, cause=outcome.otherwise)
        if outcome == Ended(0):
            self._forget(index, watch)
            self.progress.done.add(index)
            self.complete.add(index)
            return None
        if isinstance(outcome, Ended):
            self.lost[index] += 1
            is_for_good = outcome.out_of_memory or not (outcome.cause or outcome.exit_code < 0)
            if is_for_good or self.lost[index] > MOST_LOST:
                return outcome
            why = outcome.cause or f"was killed by signal {-outcome.exit_code}"
        else:
            why = outcome.otherwise or "came to its time limit"
        self.spent[index] += round(watch.spent_seconds())
        self._forget(index, watch)
        self.context.tell_line(f"Share {index} of step {self.command.step} is submitted again: {why}")
        self.submissions.add({index})
        return None

    def _outcome(self, index: int, watch: ShareWatch) -> Ended | LimitReached | None:
        """How a share's job ended. Whatever becomes of one whose share is complete, that stays so."""
        try:
            outcome = watch.turn()
        except (SlurmAway, DiskFull):
            raise
        except PairlineError as error:
            if index in self.complete:
                outcome = Ended(0)
            elif isinstance(error, StepCrashed):
                outcome = Ended(1, cause=str(error))
            else:
                raise
            cancel_by_key(self.command, watch.job.key)  # held, or needed by nobody
        return Ended(0) if outcome is not None and index in self.complete else outcome

    def _forget(self, index: int, watch: ShareWatch) -> None:
        self.watches.pop(index, None)
        watch.pass_lines_on(to_the_end=True)
        mark_read(self.record, watch.job.key, watch.job.log.offset)
        fence(self.record, watch.job.key)

    def _lines_and_positions(self, to_the_end: bool = False, more: Mapping[str, str] | None = None) -> None:
        """Save how far all logs were read, together: the log of the step is one. ``more``: of others, that may come
        to be, and then at once."""
        if to_the_end:
            for watch in self.watches.values():
                watch.pass_lines_on(to_the_end=True)
        now = time.monotonic()
        if to_the_end or more or now - self.saved > SECONDS_BETWEEN_POSITIONS:
            self.saved = now
            save_position(self.command.folder, {**self._positions(), **(more or {})})

    def _positions(self) -> dict[str, str]:
        return {watch.job.key: str(watch.job.log.offset) for watch in self.watches.values()}

    def _stop(self, without_grace: bool = False) -> None:
        """SIGTERM to what runs, the time that it is given, and the end of the array and of what it has left."""
        remove_secrets(self.record)
        grace = 0.0 if without_grace else self.launcher.limits(self.command, 0.0).grace_seconds
        try:
            followed = [watch.job for watch in self.watches.values()]
            stop_shares(followed, lambda: active_jobs(self.command), grace)
        except PairlineError as error:  # the error that is on its way counts
            log.warning("%s could not be stopped; `pairline reap` will do it. %s", self.command.name, error)

    def _leave_nothing(self) -> None:
        remove_secrets(self.record)
        cancel_shares_that_wait(self.command)
        forget_position(self.command.folder)  # the logs are read

    def _show(self, over: bool = False) -> None:
        seen = [watch.seen for watch in self.watches.values()]
        self.shown.show(self.progress, seen, tuple(self.keys.values()), over)
