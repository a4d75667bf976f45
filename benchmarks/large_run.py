"""``python -m benchmarks.large_run --millions 1000``: a whole run of a large model's real steps, each rank's memory watched.

A Llama shape with random weights in bf16 and SmolLM2's tokenizer is fetched, scored as reference, trained two steps with a
checkpoint behind each, exported, evaluated and handed off by ``pairline run`` on this machine. Printed are the most resident
bytes of every step's processes, one by one and together, and without the pages of mapped files (weights that are read),
which the kernel takes back.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.checkpoints import make_weights
from benchmarks.data import save_tokenizer
from benchmarks.process_tree import resident_kb, with_all_below

VOCABULARY = 49_152  # SmolLM2's
SAMPLE_SECONDS = 0.02
KB_PER_GIB = 1 << 20


@dataclass
class Watched:
    """Peaks in kB of a step's processes: resident pages and, of those, what is no file's."""

    resident: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # by rank
    anonymous: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    together: int = 0


class Watcher(threading.Thread):
    """Looks at all processes below one, step by step, until it is over."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid, self.steps, self.over = pid, dict[str, Watched](), threading.Event()

    def run(self) -> None:
        """Look again and again."""
        while not self.over.wait(SAMPLE_SECONDS):
            sums: dict[str, int] = defaultdict(int)
            for pid in with_all_below(self.pid):
                if found := _step_and_rank(pid):
                    step, rank = found
                    resident, anonymous = resident_kb(pid)
                    watched = self.steps.setdefault(step, Watched())
                    watched.resident[rank] = max(watched.resident[rank], resident)
                    watched.anonymous[rank] = max(watched.anonymous[rank], anonymous)
                    sums[step] += resident
            for step, size in sums.items():
                self.steps[step].together = max(self.steps[step].together, size)


def _step_and_rank(pid: int) -> tuple[str, str] | None:
    """Of a process of ``dpo_core``; None of any other, the agent that starts the ranks among them."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    if b"-m" not in argv or argv[argv.index(b"-m") + 1 :][:1] != [b"dpo_core"]:
        return None
    step = argv[argv.index(b"dpo_core") + 1].decode()
    rank = next((one[len(b"RANK=") :].decode() for one in environ if one.startswith(b"RANK=")), "0")
    return step, rank


def _recipe(folder: Path, arguments: argparse.Namespace) -> dict:
    rows = [
        {"prompt": f"Name place {number}.", "chosen": "A town by the sea.", "rejected": "No. " * 8}
        for number in range(16)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "large",
        "checkpoint": {"source": str(folder / "sft")},
        "data": {"sources": [{"source": str(folder / "pairs.jsonl")}], "held_out": "4", "num_workers": 1},
        "train": {
            "global_batch_pairs": 2 * arguments.ranks,
            "max_steps": 2,
            "checkpoint_every": 1,
            "precision": arguments.precision,
        },
        "evaluation": {"num_prompts": 2, "max_new_tokens": 4},
        "compute": {
            "num_processes": arguments.ranks,
            "sharding": arguments.sharding,
            "threads_per_process": 1,
        },
        "store": {"root": str(folder / "store")},
    }


def main() -> None:
    """Make the model, run the stage, print what its steps took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--millions", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--sharding", default="fsdp2", choices=("fsdp2", "zero3"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(folder / "sft")
        make_weights(folder / "sft", arguments.millions, VOCABULARY)
        recipe = folder / "large.yaml"
        recipe.write_text(json.dumps(_recipe(folder, arguments)))  # JSON is YAML
        started = time.monotonic()
        run = subprocess.Popen(
            [sys.executable, "-m", "flows.terminal", "run", str(recipe)],
            env=os.environ | {"HOME": name, "PREFECT_HOME": str(folder / "prefect")},
        )
        watcher = Watcher(run.pid)
        watcher.start()
        code = run.wait()
        watcher.over.set()
        watcher.join()
        weights = (folder / "sft/model.safetensors").stat().st_size
        print(
            f"\n{weights / 2e6:,.0f} million weights; {time.monotonic() - started:.0f} s in all; exit code {code}"
        )
        for step, watched in watcher.steps.items():
            each = ", ".join(
                f"rank {rank} {watched.resident[rank] / KB_PER_GIB:.2f} ({watched.anonymous[rank] / KB_PER_GIB:.2f})"
                for rank in sorted(watched.resident)
            )
            print(
                f"{step}: {each} GiB resident (without files'); {watched.together / KB_PER_GIB:.2f} GiB together"
            )
        sys.exit(code)


if __name__ == "__main__":
    main()
