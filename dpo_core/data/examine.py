"""What the checks of quality need to know of each row, taken while it is in a worker's hands. Only where it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dpo_core.data.contamination import NONE, EvaluationIndex
from dpo_core.data.near_duplicates import Sketcher
from dpo_core.data.pairs import PreferencePair

# One row per row of the pool: hashes by band, empty without a sketch; instances that the row overlaps with, most first.
EXAMINED_SCHEMA = pa.schema(
    [("bands", pa.binary()), ("share", pa.float32()), ("instances", pa.list_(pa.int32()))]
)


@dataclass(frozen=True, slots=True)
class Examiner:
    """Looks at converted rows."""

    sketcher: Sketcher | None
    index: EvaluationIndex | None

    def __call__(self, pairs: Sequence[PreferencePair | None]) -> pa.RecordBatch:
        """Look at rows, giving ``EXAMINED_SCHEMA``; nothing of those that were dropped (None)."""
        there = [pair for pair in pairs if pair is not None]
        bands = iter(self.sketcher.bands(there)) if self.sketcher else None
        overlaps = [
            self.index.overlaps(pair) if self.index is not None and pair is not None else NONE
            for pair in pairs
        ]
        return pa.record_batch(
            [
                pa.array([next(bands).tobytes() if pair and bands else b"" for pair in pairs], pa.binary()),
                pa.array(np.array([one.share for one in overlaps], dtype=np.float32)),
                pa.array([one.instances for one in overlaps], pa.list_(pa.int32())),
            ],
            schema=EXAMINED_SCHEMA,
        )
