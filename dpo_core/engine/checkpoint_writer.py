"""A checkpoint that is written behind the training: every rank its own part, and all of it or nothing.

Ranks write into a folder aside. It gets its name, which makes it a checkpoint, once every rank has said that its part is on
the disk; up to then the checkpoint before is the newest one, whichever process dies. Hashes are taken while values are
written.
"""

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dpo_core.contract.checkpoint_files import RUN_MANIFEST, RUN_OPTIMIZER, RUN_STATE, RUN_WEIGHTS, part_of
from dpo_core.contract.errors import PairlineError, StoreError, error_of_kind, from_os_error
from dpo_core.contract.store import make_aside, put_in_place, sha256_file, write_json
from dpo_core.engine.checkpoint import RunState, checkpoint_folder, keep_newest
from dpo_core.engine.distributed import by_every_rank, from_main
from dpo_core.engine.engine import Engine
from dpo_core.engine.snapshot import Snapshot, hold
from dpo_core.engine.tensor_file import TensorFile

log = logging.getLogger(__name__)


@dataclass
class PendingCheckpoint:
    """One checkpoint under way. ``begin`` and ``commit`` are called by all ranks together."""

    engine: Engine
    state: RunState
    folder: Path
    aside: Path
    num_bytes_of_all: int  # written by all ranks
    snapshots: dict[str, Snapshot]  # by file
    before: Callable[[], None]  # what must be on the disk before; called by rank 0's writer
    hashes: dict[str, str] = field(default_factory=dict)
    failure: Exception | None = None
    seconds: float = 0.0  # of writing
    _thread: threading.Thread | None = None

    @classmethod
    def begin(
        cls, root: Path, engine: Engine, state: RunState, before: Callable[[], None] = lambda: None
    ) -> "PendingCheckpoint":
        """Begin to write what engine and run are at this moment."""
        folder = checkpoint_folder(root, state.step)
        aside = from_main(engine.accelerator, lambda: make_aside(folder))
        tensors = {RUN_WEIGHTS: engine.model_tensors(), RUN_OPTIMIZER: engine.optimizer_tensors()}
        snapshots = {file: Snapshot(of_file) for file, of_file in tensors.items()}
        size = sum(tensor.num_bytes for of_file in tensors.values() for tensor in of_file.values())
        new = cls(engine, state, folder, aside, size, snapshots, before)
        new._thread = threading.Thread(target=new._write, name="checkpoint", daemon=True)
        new._thread.start()
        return new

    @property
    def is_written(self) -> bool:
        """Whether this rank's part is on the disk, or never will be."""
        return self._thread is None or not self._thread.is_alive()

    @property
    def num_bytes(self) -> int:
        """What this rank writes."""
        return sum(snapshot.num_bytes for snapshot in self.snapshots.values())

    def hold(self) -> None:
        """Return once the run may change what is being written."""
        hold(self.snapshots.values())

    def commit(self, keep: int) -> Path:
        """Wait for all ranks' parts, make the folder a checkpoint, and delete all but the newest ``keep`` and the best.
        Raises on every rank what any rank's writing raised; then nothing is left of it."""
        if self._thread:
            self._thread.join()
        written = by_every_rank(self.engine.accelerator, lambda *_: (self.hashes, _as_words(self.failure)))
        if failed := next((words for _, words in written if words), None):
            with contextlib.suppress(OSError):
                from_main(self.engine.accelerator, lambda: shutil.rmtree(self.aside, ignore_errors=True))
            raise self.failure or error_of_kind(failed[0])(*failed[1:]) from None
        if self.engine.accelerator.is_main_process:
            try:
                write_json(self.aside / RUN_STATE, self.state)
                hashes = {name: sha256 for of_rank, _ in written for name, sha256 in of_rank.items()}
                hashes[RUN_STATE] = sha256_file(self.aside / RUN_STATE)
                write_json(self.aside / RUN_MANIFEST, dict(sorted(hashes.items())))
                put_in_place(self.aside, self.folder)
                keep_newest(self.folder.parent, self.folder, keep, self.state.best_step)
            except OSError as error:
                raise from_os_error(error, f"writing {self.folder.name}") from error
        return self.folder

    def _write(self) -> None:
        started, accelerator = time.monotonic(), self.engine.accelerator
        try:
            for file, snapshot in self.snapshots.items():
                name = part_of(file, accelerator.process_index, accelerator.num_processes)
                metadata = ({"format": "pt"} if file == RUN_WEIGHTS else {}) | snapshot.metadata
                with TensorFile(self.aside / name, snapshot.entries, metadata) as out:
                    snapshot.write_to(out)
                    self.hashes[name] = out.finish()
            if accelerator.is_main_process:
                self.before()
        except OSError as error:
            self.failure = from_os_error(error, f"writing {self.folder.name}")
        except Exception as error:
            self.failure = error
        finally:
            for snapshot in self.snapshots.values():
                snapshot.end()
        self.seconds = time.monotonic() - started


def save_checkpoint(root: Path, engine: Engine, state: RunState, keep: int) -> Path:
    """Write a checkpoint and wait for it."""
    return PendingCheckpoint.begin(root, engine, state).commit(keep)


def _as_words(failure: Exception | None) -> tuple[str, str, str] | None:
    """What another rank can be told of an error."""
    if failure is None:
        return None
    known = (
        failure if isinstance(failure, PairlineError) else StoreError(f"{type(failure).__name__}: {failure}")
    )
    return known.kind, known.problem, known.advice
