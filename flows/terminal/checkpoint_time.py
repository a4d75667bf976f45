"""What a checkpoint takes, by the speed of the store's disk: for the plan's lines, and for the jobs that it shows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tasks.launch.stop_grace import LEAST_SECONDS, grace_seconds, write_bytes_per_second


@dataclass(frozen=True, slots=True)
class CheckpointTime:
    """``num_bytes`` of a checkpoint, None if the model's size is not known; ``asked``: compute.stop_grace_seconds."""

    num_bytes: int | None
    bytes_per_second: float
    asked: int | None

    @classmethod
    def measured(cls, num_bytes: int | None, store: Path, asked: int | None) -> Self:
        """Measure the speed where the store is or will be."""
        root = next(place for place in (store, *store.parents) if place.is_dir())
        return cls(num_bytes, 0.0 if num_bytes is None else write_bytes_per_second(root), asked)

    @property
    def grace(self) -> int:
        """Seconds that training gets once it is asked to stop."""
        if self.num_bytes is None or not self.bytes_per_second:
            return self.asked or LEAST_SECONDS
        return self.asked or grace_seconds(self.num_bytes, self.bytes_per_second)

    def lines(self) -> Iterator[str]:
        """Return what the plan says of it."""
        if self.num_bytes is None or not self.bytes_per_second:
            return
        yield (
            f"A checkpoint: {self.num_bytes / 1e9:,.1f} GB, written behind the training in "
            f"{self.num_bytes / self.bytes_per_second / 60:,.1f} min by the {self.bytes_per_second / 1e9:.1f} GB/s that "
            "this disk took just now"
        )
        yield (
            f"Asked to stop, training is killed after {self.grace:,} s"
            f" ({'compute.stop_grace_seconds' if self.asked else 'a step and two checkpoints'})"
        )
