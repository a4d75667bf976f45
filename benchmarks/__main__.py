"""Every comparison with the peers, one after the other, and ``benchmarks/RESULTS.md`` written from them.

    make bench                                         all, three quarters of an hour on two quiet cores
    python -m benchmarks --only train                  one section; the others' figures stay as they are
    python -m benchmarks --only report                 write the page again from results.json

Nothing else should run meanwhile: two programs on two cores make each other several times slower.
"""

import argparse
import datetime
import json
import os
from pathlib import Path

from benchmarks import data, results, train
from benchmarks.machine import machine

FIGURES = Path(__file__).with_name("results.json")
SECTIONS = ("train", "data", "memory", "report")


def measured(section: str, turns: int) -> dict:
    """Figures of one section."""
    if section == "train":
        return train.measure(("short", "long"), ("fp32", "bf16"), turns, len(os.sched_getaffinity(0)))
    return data.measure(20_000, turns) if section == "data" else data.measure_memory()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--turns", type=int, default=2, help="runs of every peer, in turn")
    options = parser.parse_args()
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    for section in options.only:
        if section != "report":
            figures[section] = {"machine": machine() | {"date": str(datetime.date.today())},
                                "figures": measured(section, options.turns)}
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    results.PAGE.write_text(results.page(figures))
    print(results.PAGE)


if __name__ == "__main__":
    main()
