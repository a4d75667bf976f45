"""Where a training step's time goes, operator by operator: SmolLM2-135M, 8 short pairs, one thread.

    python -m benchmarks --only profile

One thread, so that an operator's time is its own and not its waiting for others. The step profiled is the third: memory is
there by then.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.profiler import profile

from benchmarks.flops import forward_flops
from benchmarks.preparation import prepare_model, prepare_pairs
from dpo_core.config import OptimConfig, Precision
from dpo_core.data.pair_batch import collate
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.distributed import start_accelerator
from dpo_core.engine.choose import start_engine
from dpo_core.jobs import CheckpointRef, Sharding
from dpo_core.model.forward import PairScorer, choose_layout, probe_pairs
from dpo_core.model.load import load_model

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "bf16_pure")
PAIRS, MICROBATCH, NUM_PAIRS, MAX_LENGTH, OPERATORS = 8, 4, 24, 2048, 8


def _profiled(checkpoint: CheckpointRef, dataset: PairDataset, precision: Precision) -> dict:
    accelerator = start_accelerator()
    engine = start_engine(Sharding(), accelerator, PairScorer(load_model(checkpoint), precision), OptimConfig())
    layout = choose_layout(engine.scorer, probe_pairs(dataset), "packed", accelerator.device)

    def step(first: int) -> None:
        for start in range(first, first + PAIRS, MICROBATCH):
            rows = range(start, start + MICROBATCH)
            scores = engine.scores(collate([dataset[row] for row in rows], rows, layout))
            engine.backward((scores.sums_S[1::2] - scores.sums_S[0::2]).sum() * 0.01)
        engine.step(1e-9)

    step(0)
    step(PAIRS)
    with profile() as profiler:
        step(2 * PAIRS)
    times = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
    total = sum(times.values())
    largest = sorted(times, key=times.__getitem__, reverse=True)[:OPERATORS]
    work = 3 * forward_flops(dataset, np.arange(2 * PAIRS, 3 * PAIRS), checkpoint.path)
    return {"seconds": total, "gflops": work / total / 1e9, "shares": {name: times[name] / total for name in largest}}


def measure() -> dict:
    """Precision -> seconds of a step, operations a second, and the largest operators' shares of the time."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        checkpoint = prepare_model(Path(name) / "model")
        source = Path(__file__).resolve().parents[1] / "../shared/data/hh-harmless-512.jsonl"
        data, _ = prepare_pairs(source, checkpoint, Path(name) / "pairs", NUM_PAIRS, MAX_LENGTH)
        dataset = PairDataset.open(data.path, "train")
        return {precision: _profiled(checkpoint, dataset, precision) for precision in PRECISIONS}
