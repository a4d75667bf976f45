"""``python -m tests.programs.resident_ranks FOLDER SHARDING``: one of the ranks that ``RANK`` and ``WORLD_SIZE`` tell.

It loads ``FOLDER/sft`` for scoring, then for training, and writes the last weights; the first exports them. Writes
``resident-<rank>.json``: bytes by which resident memory grew at most, of the rank's share and of the largest tensor.
"""

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from dpo_core.contract.config import OptimConfig
from dpo_core.contract.jobs import Sharding
from dpo_core.contract.refs import CheckpointRef
from dpo_core.engine.choose import load_for_scoring, loading, start_engine
from dpo_core.engine.distributed import start_accelerator
from dpo_core.engine.hub_files import write_weights
from dpo_core.engine.weights_file import save_weights
from dpo_core.model.forward import PairScorer
from dpo_core.model.load import WITHOUT_MEMORY, load_model
from dpo_core.model.trained_weights import trained_in
from tests.programs.ranks_that_tell_what_they_hold import local

PAGE = os.sysconf("SC_PAGE_SIZE")


class Growth(threading.Thread):
    """The most resident bytes within the context beyond those before it."""

    def __enter__(self) -> "Growth":
        self.before = self.most = resident()
        self.over = threading.Event()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()
        self.bytes = self.most - self.before

    def run(self) -> None:
        while not self.over.wait(0.001):
            self.most = max(self.most, resident())


def resident() -> int:
    """Return what this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def checkpoint_in(folder: Path) -> CheckpointRef:
    """Return a checkpoint that nobody looks up by its content."""
    return CheckpointRef(path=folder, fingerprint="x", tokenizer_fingerprint="x", source="random")


def bytes_of(model: nn.Module) -> dict[str, int]:
    """What this rank holds of the weights, and the largest tensor, in fp32."""
    sizes = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters()]
    share = sum(local(parameter).nbytes for parameter in model.parameters())
    return {"share": share, "largest": 4 * max(sizes), "all": 4 * sum(sizes)}


def grown_by_files(folder: Path, sharding: Sharding, accelerator) -> dict[str, int]:
    """Return the growth while weights are written by all ranks, and exported by the first."""
    checkpoint = checkpoint_in(folder / "sft")
    scorer = PairScorer(load_model(checkpoint, **loading(sharding, accelerator)), "fp32")
    engine = start_engine(sharding, accelerator, scorer, OptimConfig())
    with Growth() as writing:
        save_weights(folder / "weights", engine)
    if not accelerator.is_main_process:
        return {"writing": writing.bytes}
    model = load_model(checkpoint, device=WITHOUT_MEMORY, dtype=torch.bfloat16)
    (folder / "export").mkdir()
    with Growth() as exporting, contextlib.closing(trained_in(folder / "weights", model)) as weights:
        write_weights(model, weights, folder / "export")
    return {"writing": writing.bytes, "exporting": exporting.bytes}


def main() -> None:
    """Be a rank; a small model first, for what code and its first calls take."""
    folder, sharding = Path(sys.argv[1]), Sharding(kind=sys.argv[2])
    rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=world)
    accelerator = start_accelerator(sharding)
    load_for_scoring(checkpoint_in(folder / "small"), "fp32", sharding, accelerator)
    with Growth() as reading:
        scorer = load_for_scoring(checkpoint_in(folder / "sft"), "fp32", sharding, accelerator)
    figures = bytes_of(scorer.model) | {"reading": reading.bytes}
    del scorer
    figures |= grown_by_files(folder, sharding, accelerator)
    (folder / f"resident-{rank}.json").write_text(json.dumps(figures))
    dist.barrier()


if __name__ == "__main__":
    main()
