"""What one card does with this program, beside what is expected of it: half a minute of set-up, at most eight minutes.

    python -m benchmarks.gpu                       every part; the table, and the section of benchmarks/RESULTS.md
    python -m benchmarks.gpu --only step kernels   some parts
    python -m benchmarks.gpu --tiny                small sizes, on any machine: does it run to its end?

Needs the packages of requirements/train-cuda.txt alone (what needs TRL or bitsandbytes says so where it is not
installed). A part that fails prints its error and the rest goes on; a part is not begun when the time is up.
"""

import argparse
import contextlib
import datetime
import json
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.gpu import answers, eight_bits, large, whole, wide
from benchmarks.gpu.workload import Bench, Figure, free
from benchmarks.machine import machine

FIGURES = Path(__file__).parents[1] / "results.json"
PARTS = {
    "card": large.card,
    "step": large.step,
    "kernels": large.kernels,
    "head": large.head,
    "memory": large.memory,
    "attention": large.attention,
    "layout": large.layout,
    "generate": answers.generate,
    "checkpoint": whole.checkpoint,
    "training": whole.training,
    "back_ends": whole.back_ends,
    "eight_bits": eight_bits.eight_bits,
    "wide": wide.wide,
}


def run_parts(bench: Bench, names: list[str], seconds: float) -> dict[str, list[Figure]]:
    """Figures of each part; a failed part's are its error."""
    figures: dict[str, list[Figure]] = {}
    end = time.monotonic() + seconds
    for name in names:
        if time.monotonic() > end:
            figures[name] = [Figure(name, "not begun: the time was up")]
            continue
        started = time.monotonic()
        try:
            figures[name] = PARTS[name](bench)
        except Exception as error:  # one part's failure is one line of the table
            traceback.print_exc()
            figures[name] = [Figure(name, f"failed: {type(error).__name__}: {str(error)[:300]}")]
        free(bench.device)
        print(f"== {name} ({time.monotonic() - started:.0f} s)", flush=True)
        for figure in figures[name]:
            print("   " + "  ".join(results.gpu_row(asdict(figure))), flush=True)
    return figures


def main() -> int:
    """The command line. -> 1 if a part failed"""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see whether every part runs")
    parser.add_argument("--seconds", type=float, default=420, help="no part is begun after so many seconds")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="where figures are kept, as JSON")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "no card"
    print(f"{card}; torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = run_parts(Bench(device, Path(folder), options.tiny), options.only, options.seconds)
    kept = json.loads(options.figures.read_text()) if options.figures.is_file() else {}
    cards = kept.setdefault("gpu", {})
    before = cards.get(card, {}).get("figures", {})
    cards[card] = {
        "machine": {**machine(), "date": str(datetime.date.today())},
        "figures": before | {name: [asdict(figure) for figure in part] for name, part in figures.items()},
    }
    options.figures.write_text(json.dumps(kept, indent=1) + "\n")
    if options.figures == FIGURES:
        results.PAGE.write_text(results.page(kept))
    failed = [name for name, part in figures.items() for figure in part if "failed: " in str(figure.value)]
    print(f"failed: {', '.join(failed)}" if failed else "every part ran", flush=True)
    return bool(failed)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
