"""``python -m benchmarks.checkpoints --millions 200 --ranks 2``: loading in parts, checkpoints behind a step, the export.

Ranks over gloo, a Llama shape with random weights, on this machine's disk. What a rank takes at most while it loads, saves
and exports, in resident bytes; seconds of writing, seconds that training waited; the same state through
``torch.distributed.checkpoint``.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from dpo_core.contract.config import OptimConfig
from dpo_core.contract.jobs import Sharding
from dpo_core.contract.refs import CheckpointRef
from dpo_core.data.pair_batch import collate
from dpo_core.data.pairs import TokenizedPair
from dpo_core.engine.checkpoint import RunState
from dpo_core.engine.checkpoint_writer import PendingCheckpoint
from dpo_core.engine.choose import loading, start_engine
from dpo_core.engine.distributed import start_accelerator
from dpo_core.engine.engine import Engine
from dpo_core.engine.hub_files import write_weights
from dpo_core.engine.weights_file import save_weights
from dpo_core.model.forward import PairScorer
from dpo_core.model.load import WITHOUT_MEMORY, load_model
from dpo_core.model.trained_weights import trained_in

VOCABULARY, TOKENS = 32_000, 64
PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Make the model and start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--sharding", default="fsdp2", choices=("fsdp2", "zero3"))
    parser.add_argument(
        "--without-dcp", action="store_true", help="where memory has no room for a second state"
    )
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        _be_a_rank(arguments.folder, arguments.sharding, not arguments.without_dcp)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_weights(Path(folder) / "sft", arguments.millions)
        argv = [*sys.argv[1:], "--folder", folder]
        settings = {"WORLD_SIZE": arguments.ranks, "LOCAL_WORLD_SIZE": arguments.ranks, "MASTER_PORT": 29_713}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.checkpoints", *argv],
                env=os.environ
                | {name: str(value) for name, value in settings.items()}
                | {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1",
                    "OMP_NUM_THREADS": "1",
                },
            )
            for rank in range(arguments.ranks)
        ]
        sys.exit(max(abs(rank.wait()) for rank in ranks))


def make_weights(folder: Path, millions: int, vocabulary: int = VOCABULARY) -> None:
    """Save a Llama of about so many million random weights in bf16."""
    hidden = 1024
    layer = 4 * hidden * hidden + 3 * hidden * 4 * hidden
    layers = max(1, round((millions * 1e6 - vocabulary * hidden) / layer))
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=16,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tensors = {
        name: torch.empty(parameter.shape, dtype=torch.bfloat16).normal_(0, 0.02)
        for name, parameter in model.named_parameters()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class _Peak:
    """The most resident bytes within the context beyond those before it."""

    def __enter__(self) -> "_Peak":
        self._before = self.most = _resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.more = self.most - self._before

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.most = max(self.most, _resident())


def _be_a_rank(folder: Path, sharding_kind: str, with_torch: bool) -> None:
    sharding = Sharding(kind=sharding_kind)  # type: ignore[arg-type]
    accelerator = start_accelerator(sharding)
    checkpoint = CheckpointRef(
        path=folder / "sft", fingerprint="x", tokenizer_fingerprint="x", source="random"
    )
    load_model(
        checkpoint, read_weights=False
    )  # what imports and a model without values take is not of the weights
    with _Peak() as peak:
        scorer = PairScorer(load_model(checkpoint, **loading(sharding, accelerator)), "fp32")
        engine = start_engine(sharding, accelerator, scorer, OptimConfig())
    tensors = engine.model_tensors().values()
    figures = {
        "parameters": sum(tensor.num_bytes for tensor in tensors) // 4,
        "largest tensor GB": max(tensor.num_bytes for tensor in tensors) / 1e9,
        "share of weights, GB": sum(tensor.held.nbytes for tensor in tensors) / 1e9,
        "loaded and moments made, resident GB more at most": peak.more / 1e9,
    }
    figures["one step alone, s"] = _timed(lambda: _forward_backward(engine))
    with _Peak() as peak:
        figures |= _behind(engine, folder / "ours")
    figures["resident GB more at most while writing behind a step"] = peak.more / 1e9
    if sharding_kind == "fsdp2" and with_torch:
        with _Peak() as peak:
            figures |= _with_torch(engine, folder / "theirs")
        figures["DCP: resident GB more at most"] = peak.more / 1e9
    with _Peak() as peak:
        save_weights(folder / "weights", engine)
    figures["resident GB more at most while the last weights are written"] = peak.more / 1e9
    if accelerator.is_main_process:
        figures |= _exported(checkpoint, folder)
    for rank in range(accelerator.num_processes):
        if rank == accelerator.process_index:
            print(f"rank {rank}", json.dumps(figures, indent=1), flush=True)
        dist.barrier()


def _timed(run) -> float:
    started = time.monotonic()
    run()
    return time.monotonic() - started


def _forward_backward(engine: Engine) -> None:
    trained = np.arange(TOKENS) >= TOKENS // 2
    chosen, rejected = (np.arange(start, start + TOKENS, dtype=np.int32) for start in (3, 7))
    batch = collate([TokenizedPair("x", chosen, trained, rejected, trained)], [0], "padded")
    with engine.accumulate(last=True):
        engine.backward(engine.scores(batch).sums_S.sum())


def _behind(engine: Engine, root: Path) -> dict[str, float]:
    pending: list[PendingCheckpoint] = []
    state = RunState(step=1, job_fingerprint="x")
    begin = _timed(lambda: pending.append(PendingCheckpoint.begin(root, engine, state)))
    work = _timed(lambda: _forward_backward(engine))
    hold = _timed(pending[0].hold)
    step = _timed(lambda: engine.step(1e-6))
    while not pending[0].is_written:
        work += _timed(lambda: _forward_backward(engine))
        engine.discard_gradients()
    commit = _timed(lambda: pending[0].commit(1))
    return {
        "written GB": pending[0].num_bytes / 1e9,
        "writing, s": pending[0].seconds,
        "begin, s": begin,
        "hold, s": hold,
        "commit, s": commit,
        "blocked share of writing": (begin + hold + commit) / pending[0].seconds,
        "meanwhile forward and backward, s": work,
        "update, s": step,
    }


def _exported(checkpoint: CheckpointRef, folder: Path) -> dict[str, float]:
    model = load_model(checkpoint, device=WITHOUT_MEMORY, dtype=torch.bfloat16)
    (folder / "export").mkdir()
    with _Peak() as peak, contextlib.closing(trained_in(folder / "weights", model)) as weights:
        seconds = _timed(lambda: write_weights(model, weights, folder / "export"))
    return {"export, s": seconds, "resident GB more at most while exporting": peak.more / 1e9}


def _with_torch(engine: Engine, root: Path) -> dict[str, float]:
    from torch.distributed import checkpoint as dcp

    parts = dict(engine.scorer.model.named_parameters())
    state: dict[str, torch.Tensor] = {name: parameter.detach() for name, parameter in parts.items()}
    for name, parameter in parts.items():
        for key in ("exp_avg", "exp_avg_sq"):
            state[f"{name}::{key}"] = engine.optimizer.state[parameter][key]  # type: ignore[attr-defined]
    shutil.rmtree(root, ignore_errors=True)
    writer = dcp.HuggingFaceStorageWriter(str(root), save_distributed=True)
    futures: list = []
    started = time.monotonic()
    blocked = _timed(lambda: futures.append(dcp.async_save(state, storage_writer=writer)))
    futures[0].result()
    return {"DCP: writing, s": time.monotonic() - started, "DCP: blocked, s": blocked}


if __name__ == "__main__":
    main()
