"""Every comparison with the peers, one after the other, and ``benchmarks/RESULTS.md`` written from them.

    make bench                                         all, an hour and a half on two quiet cores
    python -m benchmarks --only "short fp32" data      some sections; the others' figures stay as they are
    python -m benchmarks --only                        write the page again from results.json

Nothing else should run meanwhile: two programs on two cores make each other several times slower.
"""

import argparse
import datetime
import json
import os
from pathlib import Path

from benchmarks import containers, data, opstream, profile, results, train
from benchmarks.machine import machine

FIGURES = Path(__file__).with_name("results.json")
SECTIONS = (*results.TRAINING_BARS, "data", "memory", "profile", "containers", "opstream")
TURNS_OF_STEPS = 7  # they take seconds


def measured(section: str, turns: int, max_steps: int | None) -> dict:
    """Figures of one section."""
    if section in results.TRAINING_BARS:
        part, precision = section.split()
        return train.measure((part,), (precision,), turns, len(os.sched_getaffinity(0)), max_steps)
    if section == "profile":
        return profile.measure()
    if section == "containers":
        return containers.measure(max(turns, TURNS_OF_STEPS))
    if section == "opstream":
        return opstream.measure()
    return data.measure(20_000, turns) if section == "data" else data.measure_memory(duplicates=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--turns", type=int, default=2, help="runs of every peer, in turn")
    parser.add_argument("--max-steps", type=int, help="training steps of a run; all pairs without it")
    options = parser.parse_args()
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    for section in options.only:
        described = machine() | {"date": str(datetime.date.today()), "turns": str(options.turns)}
        figures[section] = {
            "machine": described,
            "figures": measured(section, options.turns, options.max_steps),
        }
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    results.PAGE.write_text(results.page(figures))
    print(results.PAGE)


if __name__ == "__main__":
    main()
