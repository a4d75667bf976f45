"""When a run writes a checkpoint, and what it waits for: nothing but the update's moment, as a rule.

A checkpoint is begun after a step and counts once every rank has written its part, which ranks tell each other after each
step. The next one, a request to stop and the end of training wait for it.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dpo_core.contract.errors import Preempted
from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.metrics_file import EVALUATIONS_FILE, METRICS_FILE
from dpo_core.contract.store import flush_to_disk
from dpo_core.engine.checkpoint import RunState
from dpo_core.engine.checkpoint_writer import PendingCheckpoint
from dpo_core.engine.distributed import sum_over_ranks
from dpo_core.engine.engine import Engine
from dpo_core.engine.meeting import meet
from dpo_core.training.stop_request import StopRequest

log = logging.getLogger(__name__)

WRITTEN_AT_ONCE_BYTES = (
    1 << 26
)  # by a rank: it takes no longer than to agree on what was written behind the training


@dataclass
class Saving:
    """The checkpoints of one start of a run. Every method is called by all ranks together."""

    job: TrainJob
    engine: Engine
    stop: StopRequest
    interval: int  # steps from one checkpoint to the next
    saved_step: int  # of the newest complete checkpoint; 0: there is none
    figures: dict[str, float] = field(default_factory=dict)  # of the last checkpoint of this rank
    begun_at: float = field(default_factory=time.monotonic)  # the last checkpoint, else the start
    pending: PendingCheckpoint | None = None
    blocked_seconds: float = 0.0  # of training, by the checkpoint under way
    waited_seconds: float = 0.0  # of training, by any, since last asked

    def before_update(self) -> None:
        """Return once weights and moments may change."""
        if self.pending:
            with self._blocked():
                self.pending.hold()

    def after_step(self, state: RunState, is_end: bool) -> None:
        """Write a checkpoint every N steps or at the end of an epoch, after the best evaluation so far, when the last one is
        too old by rank 0's clock, and when asked to stop; not where the run is at its end. ``state``: with the number of
        finished steps."""
        stopping, is_old, all_written = self._agreed_on()
        if self.pending and all_written:
            self.finish()
        is_due = stopping or is_old or state.step % self.interval == 0 or state.step == state.best_step
        if is_end or not is_due:
            return
        self.finish()
        with self._blocked():
            self.pending = PendingCheckpoint.begin(
                checkpoints_of(self.job), self.engine, state, self._flush_metrics
            )
        self.begun_at = time.monotonic()
        num_ranks = self.engine.accelerator.num_processes
        if stopping or self.pending.num_bytes_of_all <= WRITTEN_AT_ONCE_BYTES * num_ranks:
            self.finish()
        if stopping:
            raise Preempted(
                f"Asked to stop: a checkpoint of step {state.step} is written. Start again to go on from it."
            )

    def finish(self) -> None:
        """Wait for the checkpoint under way, if there is one, on all ranks. Raises what its writing raised."""
        if not (pending := self.pending):
            return
        with self._blocked():
            self.pending = None
            pending.commit(self.job.train.keep_checkpoints)
        meet(self.engine.accelerator)
        self.saved_step = pending.state.step
        self.figures = {
            "checkpoint_bytes": float(pending.num_bytes),
            "checkpoint_seconds": pending.seconds,
            "checkpoint_blocked_seconds": self.blocked_seconds,
        }
        log.info(
            "checkpoint of step %d: %.2f GB by this process in %.1f s, of which training waited %.1f s",
            self.saved_step,
            pending.num_bytes / 1e9,
            pending.seconds,
            self.blocked_seconds,
        )
        self.blocked_seconds = 0.0

    def take_waited(self) -> float:
        """Return the seconds that training waited for checkpoints since this was last asked."""
        seconds, self.waited_seconds = self.waited_seconds, 0.0
        return seconds

    def _agreed_on(self) -> tuple[bool, bool, bool]:
        """Asked to stop, the last checkpoint too old, the one under way written by every rank."""
        accelerator, minutes = self.engine.accelerator, self.job.train.checkpoint_every_minutes
        is_old = False
        if (
            minutes is not None and accelerator.is_main_process
        ):  # by clocks of their own ranks would not agree
            is_old = time.monotonic() - self.begun_at >= 60 * minutes
        written = self.pending is not None and self.pending.is_written
        flags = torch.tensor([float(self.stop.received), is_old, written], device=accelerator.device)
        stopping, old, num_written = sum_over_ranks(accelerator, flags).tolist()
        return stopping > 0, old > 0, num_written == accelerator.num_processes

    def _flush_metrics(self) -> None:
        """The metrics and evaluations of every step that a checkpoint holds are on the disk before it is."""
        for name in (METRICS_FILE, EVALUATIONS_FILE):
            if (path := self.job.out_dir / name).exists():
                flush_to_disk(path)

    @contextmanager
    def _blocked(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self.blocked_seconds += seconds
        self.waited_seconds += seconds


def checkpoints_of(job: TrainJob) -> Path:
    """Return where a run's checkpoints lie."""
    return job.out_dir / "checkpoints"
