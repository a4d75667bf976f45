"""How long a step may take to end once it is asked to: training finishes its step and writes a checkpoint first.

Computed from the size of what a checkpoint holds and the speed at which the store's disk takes it.
"""

import os
import tempfile
import time
from pathlib import Path

from dpo_core.contract.config import AdapterConfig, OptimConfig
from dpo_core.contract.jobs import TrainJob

LEAST_SECONDS = 30  # the step at hand and the end of a process
CHECKPOINTS = 2  # one may be under way; that of the last step follows
WEIGHT_BYTES = 4
STORED_BYTES = 2  # of a parameter in an SFT checkpoint in half precision
MOMENTS_BYTES = {"adamw": 8, "adamw_8bit": 2}
PROBE_BYTES, PROBE_PIECE = 1 << 26, 1 << 22


def checkpoint_bytes(num_trained: int, optim: OptimConfig) -> int:
    """Return the size of one checkpoint: fp32 weights and AdamW's moments of every trained parameter."""
    return (WEIGHT_BYTES + MOMENTS_BYTES[optim.optimizer]) * num_trained


def write_bytes_per_second(folder: Path) -> float:
    """Measure the speed at which the disk below ``folder`` takes 64 MiB, flushed; the file has no name and is gone
    afterwards. 0 where nothing can be written."""
    piece = os.urandom(PROBE_PIECE)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            started = time.monotonic()
            for _ in range(PROBE_BYTES // PROBE_PIECE):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            return PROBE_BYTES / max(1e-9, time.monotonic() - started)
    except OSError:
        return 0.0


def grace_seconds(num_bytes: int, bytes_per_second: float) -> int:
    """Return the time from being asked to stop to being killed, for a checkpoint of ``num_bytes``."""
    writing = CHECKPOINTS * num_bytes / bytes_per_second if bytes_per_second else 0.0
    return LEAST_SECONDS + round(writing)


def grace_of(job: TrainJob) -> int:
    """Return the grace of a training whose SFT checkpoint is here. An adapter's checkpoints are small."""
    if job.adapter != AdapterConfig():
        return LEAST_SECONDS
    stored = sum(path.stat().st_size for path in Path(job.checkpoint.path).glob("*.safetensors"))
    num_values = stored // STORED_BYTES  # of a checkpoint in fp32 twice as many, which only waits longer
    return grace_seconds(checkpoint_bytes(num_values, job.optim), write_bytes_per_second(job.out_dir))
