"""From running containers to how they ended: logs followed, states looked at, an engine that is away waited for.

Leaves nothing behind. Exceptions are an orchestrator that is killed and an engine that stays away: the containers then run
on, and the next start of the job attaches to them.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from dpo_core.contract.errors import DiskFull, PairlineError
from tasks.launch.context import Context
from tasks.launch.docker.engine import ContainerEngine
from tasks.launch.docker.engine_answers import EngineLost, Seen
from tasks.launch.folder_bound import FolderBound
from tasks.launch.killed_rank import KilledRank
from tasks.launch.launcher import CommandSpec, Ended, OnLine, too_slow
from tasks.launch.lines import Waiting
from tasks.launch.log_position import forget_position, save_position
from tasks.launch.patience import patiently
from tasks.launch.undisturbed import undisturbed

log = logging.getLogger(__name__)
T = TypeVar("T")
POLL_SECONDS = 0.2
SECONDS_BETWEEN_LOOKS = 2.0  # at a container's state; the end of its log tells sooner that it ended
SECONDS_FOR_LAST_LINES = 5.0  # for the thread that reads them
SECONDS_FOR_UNREAD = 60.0  # for what an ended container had printed; that of an honest step takes moments
SECONDS_FOR_OTHER_NODES = 8.0  # from a node's end with an error to the end of all
SIGNAL_EXIT, LARGEST_SIGNAL = 128, 64


@dataclass
class Watched:
    """One container of the step: how far its log was read, and how it ended."""

    id: str
    name: str
    prefix: str = ""  # of its lines, where there are several nodes
    read_until: str = ""  # the engine's time of the last line
    follower: threading.Thread | None = None
    looked: float = 0.0
    stopped: bool = False  # by us
    ended: Seen | None = None
    removed: bool = False  # by somebody else, so its exit code is not known
    killed_rank: KilledRank = field(default_factory=KilledRank)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a step may take, and how much it may leave."""

    deadline: float  # Unix seconds
    grace_seconds: float  # from being asked to stop to being killed
    patience_seconds: float  # with an engine that is away
    folder_gib: float | None = None  # of its own folder; None: what the disk holds


class Watch:
    """Watches the containers of one step."""

    def __init__(
        self,
        engine: ContainerEngine,
        command: CommandSpec,
        members: list[Watched],
        limits: Limits,
        context: Context,
        on_line: OnLine,
    ) -> None:
        self.engine, self.command, self.members, self.limits = engine, command, members, limits
        self.context, self.on_line = context, on_line
        self.bound = FolderBound(command.folder, limits.folder_gib)
        self.lines: Waiting[tuple[Watched, str, str]] = Waiting()
        self.position_saved, self.first_failure = 0.0, 0.0

    def until_the_end(self) -> Ended:
        """Wait, then stop and remove everything. Raises ``TimedOut``, ``DiskFull``, ``EngineLost``."""
        try:
            while self._alive():
                self._turn()
                self.context.raise_if_stopped()
                self.bound.check()
                if time.time() > self.limits.deadline:
                    raise too_slow(self.command)
        except EngineLost:
            log.warning(
                "Left running: %s. Start again to attach to it.", ", ".join(m.name for m in self._alive())
            )
            self._remove_ended()
            raise
        except BaseException as error:
            with undisturbed():
                self._stop(0.0 if isinstance(error, DiskFull) else self.limits.grace_seconds)
                self._remove_ended()
            raise
        finally:
            self.lines.nobody_listens()
        self._remove_ended()
        return self._how_it_ended()

    def _alive(self) -> list[Watched]:
        return [member for member in self.members if member.ended is None]

    def _turn(self) -> None:
        """Pass lines on; look after containers whose log ended or that were not looked at for a while."""
        self._pass_lines_on(POLL_SECONDS)
        for member in self._alive():
            follows = member.follower is not None and member.follower.is_alive()
            if follows and time.monotonic() - member.looked < SECONDS_BETWEEN_LOOKS:
                continue
            seen = self._ask(self.engine.find, member.id)
            member.looked = time.monotonic()
            if seen is None or not seen.running:
                self._record_end(member, seen)
                self._pass_rest_on(member)
            elif not follows:
                member.follower = threading.Thread(
                    target=self._follow, args=(member, member.read_until), daemon=True
                )
                member.follower.start()
        if self.first_failure and time.monotonic() - self.first_failure > SECONDS_FOR_OTHER_NODES:
            self._stop(grace_seconds=0)

    def _record_end(self, member: Watched, seen: Seen | None) -> None:
        gone = Seen(
            member.id, member.name, "", {}, running=False, exit_code=SIGNAL_EXIT + 9, error="was removed"
        )
        member.ended, member.removed = seen or gone, seen is None
        if member.ended.exit_code and not self.first_failure:
            self.first_failure = time.monotonic()

    def _how_it_ended(self) -> Ended:
        states = [member.ended for member in self.members if member.ended is not None]
        unseen = any(m.removed for m in self.members) and all(
            m.removed or (m.ended is not None and not m.ended.exit_code) for m in self.members
        )
        code = next((state.exit_code for state in states if state.exit_code), 0)
        signal = code - SIGNAL_EXIT
        cause = next(filter(None, map(_cause, self.members)), "") if len(self.members) > 1 else ""
        cause = cause or (next(filter(None, map(_killed_rank, self.members)), "") if code else "")
        return Ended(
            -signal if 0 < signal <= LARGEST_SIGNAL else code,
            out_of_memory=any(state.out_of_memory for state in states),
            cause=cause,
            unseen=unseen,
        )

    def _stop(self, grace_seconds: float) -> None:
        """SIGTERM and the time to write a checkpoint, then SIGKILL."""
        until = time.monotonic() + grace_seconds
        try:
            for member in self._alive() if grace_seconds else ():
                self.engine.signal(member.id, "SIGTERM")
            while alive := self._alive():
                for member in alive if time.monotonic() >= until else ():
                    self.engine.signal(member.id, "SIGKILL")
                time.sleep(POLL_SECONDS)
                for member in alive:
                    seen = self.engine.find(member.id)
                    if seen is None or not seen.running:
                        member.stopped = True
                        self._record_end(member, seen)
        except PairlineError as error:  # the error that is on its way counts
            log.warning("%s could not be stopped; `pairline reap` will do it. %s", self.command.step, error)
        for member in self.members:
            if member.stopped:
                self._pass_rest_on(member)

    def _remove_ended(self) -> None:
        try:
            for member in self.members:
                if member.ended is not None:
                    self.engine.remove(member.id)
            if not self._alive():
                forget_position(self.command.folder)
        except PairlineError as error:
            log.warning(
                "A container of step %s could not be removed; `pairline reap` will do it. %s",
                self.command.step,
                error,
            )

    def _follow(self, member: Watched, since: str) -> None:
        """Runs in a thread: a blocking read in the waiting loop would make the step impossible to cancel."""
        with contextlib.suppress(PairlineError):
            for stamp, line in self.engine.log(member.id, since, follow=True):
                self.lines.put((member, stamp, line))

    def _pass_lines_on(self, wait_seconds: float = 0.0) -> None:
        """Pass on what has come; wait at most ``wait_seconds`` for the first line."""
        self.lines.hand_over(lambda line: self._take(*line), wait_seconds)
        if time.monotonic() - self.position_saved > SECONDS_BETWEEN_LOOKS:
            self._save_position()

    def _pass_rest_on(self, member: Watched) -> None:
        """What an ended container printed and nobody has read."""
        until = time.monotonic() + SECONDS_FOR_LAST_LINES
        while member.follower is not None and member.follower.is_alive() and time.monotonic() < until:
            self._pass_lines_on(POLL_SECONDS / 4)
        self._pass_lines_on()
        with contextlib.suppress(EngineLost):
            until = time.monotonic() + SECONDS_FOR_UNREAD
            for stamp, line in self.engine.log(member.id, member.read_until, follow=False):
                self._take(member, stamp, line)
                if time.monotonic() > until:
                    self.on_line(
                        f"{member.prefix}(It printed more than could be copied in {SECONDS_FOR_UNREAD:.0f} s.)"
                    )
                    break
        self._save_position()

    def _take(self, member: Watched, stamp: str, line: str) -> None:
        if stamp > member.read_until:  # a log that is followed anew may begin with what was read
            member.read_until = stamp
            member.killed_rank.take(line)
            self.on_line(line if line.startswith("{") else f"{member.prefix}{line}")

    def _save_position(self) -> None:
        self.position_saved = time.monotonic()
        save_position(self.command.folder, {member.id: member.read_until for member in self.members})

    def _ask(self, ask: Callable[[str], T], container_id: str) -> T:
        left = max(0.0, self.limits.deadline - time.time())
        seconds = min(self.limits.patience_seconds, left)
        # A run that is stopped meanwhile hears of it when the engine answers, or is given up.
        return patiently(lambda: ask(container_id), Context(), seconds)


def _cause(member: Watched) -> str:
    """Why a step of several nodes ended, if a node was killed; empty if it reported an error or was stopped by us."""
    state = member.ended
    if state is None or member.stopped or state.exit_code <= SIGNAL_EXIT:
        return ""
    how = state.error or f"was killed by signal {state.exit_code - SIGNAL_EXIT}"
    return f"{member.prefix.strip(' []')} ({member.name}) {how}; the others were stopped."


def _killed_rank(member: Watched) -> str:
    """Which of a container's ranks was killed; empty if none was, or by us."""
    cause = "" if member.stopped else member.killed_rank.cause()
    where = member.prefix.strip(" []")
    return f"{where}: {cause}" if cause and where else cause
