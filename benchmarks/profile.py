"""Where the time goes, operator by operator: a training step on 8 short pairs, and the reference pass over 8 long ones.

    python -m benchmarks --only profile

SmolLM2-135M. One thread, so that an operator's time is its own and not its waiting for others. The step profiled is the
third: memory is there by then.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.profiler import profile

from benchmarks.flops import forward_flops, matmul_peak
from benchmarks.preparation import prepare_model, prepare_pairs
from benchmarks.train import LONG, LONG_MAX, SHORT, SHORT_MAX
from dpo_core.contract.config import OptimConfig, Precision
from dpo_core.contract.jobs import Sharding
from dpo_core.contract.refs import CheckpointRef
from dpo_core.data.pair_batch import collate
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.engine.choose import start_engine
from dpo_core.engine.distributed import start_accelerator
from dpo_core.model.forward import PairScorer, choose_layout, probe_pairs
from dpo_core.model.load import load_model

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "bf16_pure")
PAIRS, MICROBATCH, OPERATORS = 8, 4, 8


def _profiled(checkpoint: CheckpointRef, dataset: PairDataset, precision: Precision) -> dict:
    accelerator = start_accelerator()
    engine = start_engine(
        Sharding(), accelerator, PairScorer(load_model(checkpoint), precision), OptimConfig()
    )
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
    work = 3 * forward_flops(dataset, np.arange(2 * PAIRS, 3 * PAIRS), checkpoint.path)
    return _largest(profiler, work)


@torch.inference_mode()
def _profiled_reference(checkpoint: CheckpointRef, dataset: PairDataset) -> dict:
    """The reference pass in fp32, a long pair a forward, as its budget of tokens makes it."""
    scorer = PairScorer(load_model(checkpoint), "fp32")
    layout = choose_layout(scorer, probe_pairs(dataset), "packed", torch.device("cpu"))
    scorer(collate([dataset[0]], [0], layout))
    with profile() as profiler:
        for row in range(PAIRS):
            scorer(collate([dataset[row]], [row], layout))
    return _largest(profiler, forward_flops(dataset, np.arange(PAIRS), checkpoint.path))


def _largest(profiler: profile, work: float) -> dict:
    """Seconds, operations a second, and the largest operators' shares."""
    times = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
    total = sum(times.values())
    largest = sorted(times, key=times.__getitem__, reverse=True)[:OPERATORS]
    return {
        "seconds": total,
        "gflops": work / total / 1e9,
        "shares": {name: times[name] / total for name in largest},
    }


def measure() -> dict:
    """Precision (or what else) -> seconds of a step, operations a second, and the largest operators' shares of the time."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        checkpoint = prepare_model(Path(name) / "model")
        root = Path(__file__).resolve().parents[1]

        def pairs(source: Path, count: int, longest: int) -> PairDataset:
            data, _ = prepare_pairs(root / source, checkpoint, Path(name) / source.stem, count, longest)
            return PairDataset.open(data.path, "train")

        short, long = pairs(SHORT, 3 * PAIRS, SHORT_MAX), pairs(LONG, PAIRS, LONG_MAX)
        steps = {precision: _profiled(checkpoint, short, precision) for precision in PRECISIONS}
        return {
            **steps,
            "reference pass, long": _profiled_reference(checkpoint, long),
            "peak_gflops": {
                "fp32": matmul_peak(torch.float32) / 1e9,
                "bf16": matmul_peak(torch.bfloat16) / 1e9,
            },
        }
