"""Values as they are at one moment, written to a file while the run goes on.

Weights and moments change in the optimizer's update alone. So they are written from where they lie while the next forward
and backward run, and only what is not written when that step's update comes is copied first (two-phase checkpoints in the
manner of CheckFreq, Mohan et al., FAST 2021). Where memory does not suffice for the copies, the update waits.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_core.engine.host_memory import free_bytes
from dpo_core.engine.stored_tensor import Part, StoredTensor, parts_metadata
from dpo_core.engine.tensor_file import HeaderEntry, TensorFile, in_file_order

CHUNK_BYTES = 1 << 25  # what an update may have to wait for: 32 MiB take some tens of milliseconds
SHARE_OF_FREE_MEMORY = 0.5  # that copies may take; the rest is for the next forward and backward


class LiveChunk:
    """Some values of one tensor: the run's own until they are copied or written."""

    def __init__(self, values: Tensor) -> None:
        self._values: Tensor | None = values
        self._lock = threading.Lock()
        self.num_bytes = values.nbytes
        self.is_live = True  # the run may not change the values yet

    def write_to(self, file: TensorFile) -> None:
        """Write the values; called once, by the writer, in the file's order."""
        with self._lock:
            assert self._values is not None
            file.add(_on_host(self._values))
            self._values, self.is_live = None, False

    def copy(self) -> None:
        """Be independent of the run from now on. Waits where the chunk is just being written."""
        with self._lock:
            if self.is_live and self._values is not None:
                self._values, self.is_live = _copied(self._values), False


class Snapshot:
    """What this rank writes of some tensors. One thread writes; the run calls ``hold`` before it changes a value."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self.entries: dict[str, HeaderEntry] = {}
        parts: dict[str, Part] = {}
        chunks: dict[str, tuple[Tensor, ...]] = {}
        for name, tensor in tensors.items():
            place, values = tensor.written_here()
            if values.nbytes == tensor.num_bytes:  # an empty tensor is written by every rank that has it
                self.entries[name] = HeaderEntry(tensor.shape, tensor.dtype)
            elif len(values):
                self.entries[name] = HeaderEntry((len(values),), tensor.dtype)
                parts[name] = place
            else:
                continue
            chunks[name] = values.split(CHUNK_BYTES // tensor.dtype.itemsize)
        self.chunks = [LiveChunk(values) for name in in_file_order(self.entries) for values in chunks[name]]
        self.metadata = parts_metadata(parts) if parts else {}
        self._progress, self._is_over = threading.Condition(), False
        self._ready = _now()

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.entries.values())

    def write_to(self, file: TensorFile) -> None:
        """Write everything in the file's order; for one thread."""
        with _beside_the_run(self._ready):
            for chunk in self.chunks:
                chunk.write_to(file)
                with self._progress:
                    self._progress.notify_all()

    def end(self) -> None:
        """Let nobody wait any more: nothing is going to be written, whether all was or not."""
        with self._progress:
            self._is_over = True
            self._progress.notify_all()

    def wait_until_written_or_copied(self) -> None:
        """Return once no value of the run's own is needed any more, or nothing is going to be written."""
        with self._progress:
            self._progress.wait_for(lambda: self._is_over or not any(chunk.is_live for chunk in self.chunks))


def hold(snapshots: Iterable[Snapshot]) -> None:
    """Return once the run may change the values of all. ``snapshots``: in the order in which they are written. The rest is
    copied as far as memory suffices, which is asked for once; the last chunks first, as the others are written soonest;
    those are waited for."""
    snapshots = list(snapshots)
    live = [chunk for snapshot in snapshots for chunk in snapshot.chunks if chunk.is_live]
    budget = SHARE_OF_FREE_MEMORY * free_bytes() if live else 0.0
    for chunk in reversed(live):
        if (budget := budget - chunk.num_bytes) < 0:
            break
        chunk.copy()
    for snapshot in snapshots:
        snapshot.wait_until_written_or_copied()


def _copied(values: Tensor) -> Tensor:
    if values.device.type == "cpu":
        return values.clone()
    # Pinned memory takes the card's bytes four times as fast; torch keeps it for the next checkpoint.
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values)


def _on_host(values: Tensor) -> Tensor:
    return values if values.device.type == "cpu" else _copied(values)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a card's work."""

    device: int
    event: torch.cuda.Event


def _now() -> Mark | None:
    """After what the card was given up to now."""
    if not torch.cuda.is_available():
        return None
    mark = Mark(torch.cuda.current_device(), torch.cuda.Event())
    mark.event.record()
    return mark


@contextlib.contextmanager
def _beside_the_run(ready: Mark | None) -> Iterator[None]:
    """Copies of this thread wait for the mark alone, and the run's kernels not for them."""
    if ready is None:
        yield
        return
    stream = torch.cuda.Stream(ready.device)
    stream.wait_event(ready.event)
    with torch.cuda.stream(stream):
        yield
