"""What the card is given: a Llama of real shape with random weights, and pairs of the lengths of a real preference set.

Prompts have 205 tokens and answers 417 on average (log-normal), cut at 2048: what the size of the Tulu 3 preference set
says of its rows. Nothing is downloaded.
"""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from dpo_core.contract.config import AttentionKernel, OptimConfig, Precision
from dpo_core.contract.jobs import Sharding
from dpo_core.contract.loss_config import LossConfig
from dpo_core.data.pair_batch import PairBatch, collate
from dpo_core.data.pairs import TokenizedPair
from dpo_core.engine.choose import start_engine
from dpo_core.engine.distributed import start_accelerator
from dpo_core.engine.engine import Engine
from dpo_core.loss.objective import build_objective
from dpo_core.model.attention import PAIRWISE, set_kernel, use_kernel
from dpo_core.model.forward import PairScorer, choose_layout, pair_logps
from dpo_core.model.regions import are_compiled, compile_regions

WIDE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "num_hidden_layers": 8,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}
SMALL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "num_hidden_layers": 30,
    "tie_word_embeddings": True,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}
PROMPT, ANSWER, SPREAD, LONGEST = 205, 417, 0.7, 2048


@dataclass(frozen=True)
class Figure:
    """One line of the table. ``bar``: what is expected, None where it is only shown; ``at_most``: a bound from above."""

    name: str
    value: float | str
    unit: str = ""
    bar: float | None = None
    at_most: bool = True


@dataclass(frozen=True)
class Bench:
    """What every part is given."""

    device: torch.device
    folder: Path  # scratch
    tiny: bool  # sizes for a test on a CPU

    @property
    def wide(self) -> dict:
        """Shape of the large model: 8 layers of 8B."""
        return TINY if self.tiny else WIDE

    @property
    def small(self) -> dict:
        """Shape of the model that is trained whole: SmolLM2-135M's."""
        return TINY | {"tie_word_embeddings": True} if self.tiny else SMALL

    @property
    def scale(self) -> int:
        """How much shorter pairs are."""
        return 32 if self.tiny else 1

    def pairs(self, count: int, seed: int = 0) -> list[TokenizedPair]:
        """``count`` pairs of random tokens."""
        return random_pairs(count, self.wide["vocab_size"], seed, self.scale)

    def model(self, shape: dict) -> LlamaForCausalLM:
        """A Llama with random fp32 weights on the device."""
        torch.manual_seed(0)
        with torch.device(self.device):
            return LlamaForCausalLM(
                LlamaConfig(
                    **shape,
                    max_position_embeddings=4 * LONGEST,
                    bos_token_id=None,
                    eos_token_id=2,
                    pad_token_id=0,
                )
            ).eval()


def random_pairs(count: int, vocab_size: int, seed: int, scale: int) -> list[TokenizedPair]:
    """Pairs of log-normal lengths; both answers are trained on."""
    rng = np.random.default_rng(seed)

    def length(mean: int) -> int:
        return max(2, int(rng.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD)) // scale)

    def side(prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.concatenate([prompt, rng.integers(3, vocab_size, length(ANSWER))])[
            : LONGEST // scale
        ].astype(np.int32)
        return ids, np.arange(len(ids)) >= len(prompt)

    pairs = []
    for number in range(count):
        prompt = rng.integers(3, vocab_size, min(length(PROMPT), LONGEST // scale // 2)).astype(np.int32)
        pairs.append(TokenizedPair(str(number), *side(prompt), *side(prompt)))
    return pairs


def seconds_of(work: Callable[[], object], device: torch.device, turns: int = 5, warm_up: int = 2) -> float:
    """Median seconds of a call, all that it set going on the card included."""
    times = []
    for turn in range(warm_up + turns):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        if turn >= warm_up:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait for the card."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: torch.device, work: Callable[[], object]) -> float:
    """Most memory in use during a call, in GiB; 0 on a CPU."""
    if device.type != "cuda":
        work()
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def free(device: torch.device) -> None:
    """Give a part's memory back before the next one."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass
class Training:
    """An engine, and steps of it as the trainer makes them."""

    engine: Engine
    device: torch.device
    accelerator: Accelerator

    @classmethod
    def start(
        cls,
        bench: Bench,
        shape: dict,
        precision: Precision,
        attention: AttentionKernel = "sdpa",
        compare: bool = True,
        compiled: bool = False,
    ) -> "Training":
        """A plain engine with a fresh optimizer. ``compare``: choose the layout as a run does, else take the packed one.
        ``compiled``: as ``train.compile_regions``."""
        accelerator = start_accelerator()
        engine = start_engine(
            Sharding(), accelerator, PairScorer(bench.model(shape), precision), OptimConfig()
        )
        pairs = bench.pairs(2, seed=9)
        if compare:
            choose_layout(engine.scorer, pairs, "packed", bench.device, attention)
        else:
            use_kernel(engine.scorer.model, attention)
            engine.scorer.stock_logits = False
            if attention == "sdpa":
                set_kernel(engine.scorer.model, PAIRWISE["sdpa"])
        engine.scorer.model.gradient_checkpointing_enable({"use_reentrant": False})
        if compiled and are_compiled(bench.device, "none"):
            compile_regions(engine.scorer.model)
        engine.scorer.train()
        return cls(engine, bench.device, accelerator)

    def batch(self, pairs: Sequence[TokenizedPair]) -> PairBatch:
        """A packed forward's worth."""
        return collate(pairs, range(len(pairs)), "packed")

    def backward(self, batch: PairBatch) -> None:
        """Forward and backward of a microbatch, its copy to the card included."""
        batch = batch.to(self.device)
        policy = pair_logps(self.engine.scores(batch), batch.tokens_2B)
        with torch.no_grad():  # a reference that differs, so that there is a gradient
            reference = dataclasses.replace(policy, chosen_B=1.01 * policy.chosen_B)
        output = build_objective(LossConfig())(policy, reference)
        self.engine.backward(output.losses_B.mean())

    def step(self, batch: PairBatch) -> None:
        """A whole optimizer step of one microbatch."""
        self.backward(batch)
        self.engine.step(1e-7)
