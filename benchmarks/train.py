"""Reference pass and training, side by side with TRL's DPOTrainer: SmolLM2-135M on real preference pairs.

    python -m benchmarks.train                        everything (half an hour on two quiet cores)
    python -m benchmarks.train --parts short --precisions fp32 --turns 1

Same machine, in turn (A B A B). The first 8 pairs of every run are warm-up and not counted. A figure is the median over the
counted steps of all turns; how many times faster is the median over the steps of the peer's seconds by ours for the same
pairs. On the long answers the peer cannot hold 8 pairs, so pairs a second are compared there.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.flops import forward_flops, matmul_peak, padded_flops
from benchmarks.preparation import prepare_model, prepare_pairs
from benchmarks.train_peers import Run, Work, run_pairline, run_trl
from dpo_core.contract.config import ForwardLayout, Precision
from dpo_core.contract.loss_config import LossConfig
from dpo_core.data.order import batches_by_tokens, forward_tokens
from dpo_core.data.pair_batch import collate
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.loss.losses import LOSSES
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.model.forward import PairScorer, choose_layout, pair_logps, probe_pairs
from dpo_core.model.load import load_model

SHORT, LONG = Path("../shared/data/hh-harmless-512.jsonl"), Path("../shared/data/sharegpt-dpo-en-200.json")
SHORT_PAIRS, LONG_PAIRS, LONG_PEER_PAIRS, PAIRS_PER_STEP = 64, 24, 2, 8
SHORT_MAX, LONG_MAX = 2048, 1024
PEERS = {"pairline": run_pairline, "trl": run_trl}


def in_turn(works: dict[str, Work], folder: Path, turns: int, threads: int) -> dict[str, list[Run]]:
    """``turns`` runs of every peer, A B A B."""
    runs: dict[str, list[Run]] = {peer: [] for peer in works}
    for turn in range(turns):
        for peer, work in works.items():
            runs[peer].append(PEERS[peer](work, folder / f"{peer}-{turn}", threads))
            print(f"turn {turn}, {peer}: {runs[peer][-1]}", file=sys.stderr, flush=True)
            shutil.rmtree(folder / f"{peer}-{turn}")
    return runs


def _summary(runs: list[Run], work: Work) -> dict[str, float]:
    steps = [seconds for run in runs for seconds in run.step_seconds[PAIRS_PER_STEP // work.pairs_per_step :]]
    return {
        "pairs_per_step": work.pairs_per_step,
        "steps_counted": len(steps),
        "step_seconds": statistics.median(steps),
        "pairs_per_second": work.pairs_per_step * len(steps) / sum(steps),
        "reference_pairs_per_second": statistics.median(run.reference_pairs_per_second for run in runs),
        "peak_rss_gb": max(run.peak_rss_gb for run in runs),
        "checks_seconds": statistics.median(run.checks_seconds for run in runs),
    }


def _step_ratios(runs: dict[str, list[Run]]) -> list[float]:
    """The peer's seconds by ours, step by step over the same pairs, warm-up left out."""
    return [
        theirs / ours
        for a, b in zip(runs["pairline"], runs["trl"], strict=True)
        for ours, theirs in zip(a.step_seconds[1:], b.step_seconds[1:], strict=True)
    ]


def compare(works: dict[str, Work], folder: Path, turns: int, threads: int) -> dict:
    """Run both peers in turn and put their figures side by side."""
    dtype = torch.bfloat16 if works["pairline"].precision == "bf16" else torch.float32
    peak = matmul_peak(dtype)
    runs = in_turn(works, folder, turns, threads)
    peak = max(peak, matmul_peak(dtype))  # a shared machine is not always equally fast
    figures = {peer: _summary(runs[peer], works[peer]) for peer in works}
    ours, theirs = figures["pairline"], figures["trl"]
    same_steps = works["pairline"].pairs_per_step == works["trl"].pairs_per_step
    figures["times"] = {
        "training": (
            statistics.median(_step_ratios(runs))
            if same_steps
            else ours["pairs_per_second"] / theirs["pairs_per_second"]
        ),
        "reference": ours["reference_pairs_per_second"] / theirs["reference_pairs_per_second"],
        "memory": ours["peak_rss_gb"] / theirs["peak_rss_gb"],
    }
    if same_steps:
        figures["largest_loss_difference"] = max(
            abs(a - b) for a, b in zip(runs["pairline"][0].losses, runs["trl"][0].losses, strict=True)
        )
    figures["flops"] = _of_peak(works, runs, figures, peak)
    return figures


def _of_peak(
    works: dict[str, Work], runs: dict[str, list[Run]], figures: dict, peak: float
) -> dict[str, float]:
    """How much of the matmul peak a training step uses, and both reference passes, each by its own operations."""
    work = works["pairline"]
    dataset = PairDataset.open(work.data.path, "train")
    rates = []
    for run in runs["pairline"]:
        for step, seconds in enumerate(run.step_seconds[1:], 1):
            rows = np.arange(len(dataset))[step * work.pairs_per_step : (step + 1) * work.pairs_per_step]
            rates.append(3 * forward_flops(dataset, rows, work.checkpoint.path) / seconds)
    model, count = work.checkpoint.path, len(dataset)
    operations = {
        "pairline": forward_flops(dataset, np.arange(count), model),
        "trl": padded_flops(dataset.lengths, works["trl"].pairs_per_step, model),
    }
    passes = {
        f"reference_share_{who}": total / count * figures[who]["reference_pairs_per_second"] / peak
        for who, total in operations.items()
    }
    return {
        "peak_gflops": peak / 1e9,
        "step_gflops": statistics.median(rates) / 1e9,
        "share_of_peak": statistics.median(rates) / peak,
        **passes,
        "operations_times": operations["trl"] / operations["pairline"],
    }


@torch.no_grad()
def equality(work: Work) -> dict[str, float]:
    """How far the fast forward is from its padded twin, over all pairs, in fp32."""
    dataset, device = PairDataset.open(work.data.path, "train"), torch.device("cpu")
    scorer = PairScorer(load_model(work.checkpoint), "fp32")
    layout = choose_layout(scorer, probe_pairs(dataset), "packed", device)
    lengths = forward_tokens(dataset.lengths, dataset.prefix_lengths, "padded")
    longest_first = np.argsort(-lengths).tolist()

    def scored(wanted: ForwardLayout, tokens: int) -> PairLogps:
        """All pairs, longest first, in batches of so many padded tokens."""
        parts = []
        for rows in batches_by_tokens(longest_first, lengths, tokens):
            batch = collate([dataset[row] for row in rows], rows, wanted)
            parts.append(pair_logps(scorer(batch), batch.tokens_2B))
        return PairLogps.joined(parts)

    slow = scored("padded", 4096)
    return {
        "pairs": len(dataset),
        "layout": layout,
        **_differences(scored(layout, 4096), slow),
        "noise": _differences(scored("padded", 1), slow),
    }  # what cutting the same forward otherwise changes


def _differences(fast: PairLogps, slow: PairLogps) -> dict[str, float]:
    """Largest relative difference of sequences' log-probabilities, of steps' losses, of pairs' losses."""
    config = LossConfig(name="dpo_norm", beta=5.0)
    shifted = dataclasses.replace(slow, chosen_B=slow.chosen_B * 1.02, rejected_B=slow.rejected_B * 0.97)
    pairs = [(getattr(fast, name), getattr(slow, name)) for name in ("chosen_B", "rejected_B")]
    losses = [LOSSES["dpo_norm"](side, shifted, config).losses_B for side in (fast, slow)]
    steps = [torch.stack([part.mean() for part in loss.split(PAIRS_PER_STEP)]) for loss in losses]
    return {
        "logps": max(float(((a - b).abs() / b.abs()).max()) for a, b in pairs),
        "losses": float(((steps[0] - steps[1]).abs() / steps[1]).max()),
        "pair_losses": float(((losses[0] - losses[1]).abs() / losses[1]).max()),
    }


def measure(
    parts: tuple[str, ...],
    precisions: tuple[Precision, ...],
    turns: int,
    threads: int,
    max_steps: int | None = None,
) -> dict:
    """All comparisons asked for, as nested figures."""
    figures: dict = {}
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = prepare_model(folder / "model")
        for part in parts:
            source, limit, count = (
                (SHORT, SHORT_MAX, SHORT_PAIRS) if part == "short" else (LONG, LONG_MAX, LONG_PAIRS)
            )
            data, rows = prepare_pairs(root / source, checkpoint, folder / part, count, limit)
            for precision in precisions:
                ours = Work(checkpoint, data, rows, precision, PAIRS_PER_STEP, limit, max_steps)
                peer_pairs = PAIRS_PER_STEP if part == "short" else LONG_PEER_PAIRS
                theirs = dataclasses.replace(ours, pairs_per_step=peer_pairs)
                figures[f"{part} {precision}"] = compare(
                    {"pairline": ours, "trl": theirs}, folder / "runs", turns, threads
                )
            if "fp32" in precisions:
                figures[f"{part} equality"] = equality(ours)
    return figures


def main() -> None:
    """The command line; prints the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=["short", "long"], choices=["short", "long"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    print(
        json.dumps(
            measure(
                tuple(options.parts),
                tuple(options.precisions),
                options.turns,
                options.threads,
                options.max_steps,
            ),
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
