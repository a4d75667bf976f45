"""How fast a step was: operations a second and their share of the card's peak, seconds of its parts and of what is checked
before the first one.

Operations are those that the pairs need, whatever the layout computes: a pair of n tokens, its prompt counted once, takes
2 n W in a forward for the W weights of linear layers, 4 L A for each visible (query, key) in L layers of A attention
channels, 2 H V for each trained token. A backward takes twice that, once where the weights get no gradient (an adapter's
base). Recomputation is not counted, so the share is MFU as PaLM has it
(Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from dpo_core.contract.card_speed import bf16_peak
from dpo_core.contract.config import Precision
from dpo_core.contract.model_shape import ModelShape
from dpo_core.model.adapter import count_parameters
from dpo_core.model.attention import text_config

DATA, EXCHANGE, CHECKPOINT = "seconds/data", "seconds/exchange", "seconds/checkpoint"


@contextmanager
def timed(checks: dict[str, float], name: str) -> Iterator[None]:
    """Add the block's seconds to ``checks``."""
    started = time.monotonic()
    yield
    checks[f"{name}_seconds"] = checks.get(f"{name}_seconds", 0.0) + time.monotonic() - started


@dataclass
class StepClock:
    """Seconds of a step's parts, since they were last asked for. It makes the host wait for nothing."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's seconds by the host's clock."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Count the block by the card's clock, where there is one: the host is far ahead of it. What begins after this
        process's last backward ends when every process has come as far."""
        if self.device.type != "cuda":
            with self.part(EXCHANGE):
                yield
            return
        self.events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.events[0].record()
        yield
        self.events[1].record()

    def take(self) -> dict[str, float]:
        """Return the parts and forget them. The card is past them: the update's norm has been read."""
        if self.events:
            start, end = self.events
            self.seconds[EXCHANGE] = start.elapsed_time(end) / 1000
        taken, self.seconds, self.events = self.seconds, {}, None
        return taken


@dataclass(frozen=True, slots=True)
class Work:
    """What a model's training computes, and its share of all cards' peak. ``shape`` None: nothing is known."""

    shape: ModelShape | None
    times_forward: float  # forward and backward together
    peak: float | None  # operations a second of a card
    num_processes: int

    @classmethod
    def of(
        cls, model: PreTrainedModel, precision: Precision, device: torch.device, num_processes: int
    ) -> "Work":
        """Take a loaded model on its device."""
        trained, every = count_parameters(model)
        peak = None
        if device.type == "cuda" and precision != "fp32":
            peak = bf16_peak(torch.cuda.get_device_name(device))
        shape = ModelShape.of(text_config(model).to_dict())
        return cls(shape, 3.0 if trained == every else 2.0, peak, num_processes)

    def operations(self, lengths_N2: np.ndarray, prefix_N: np.ndarray, trained_tokens: float) -> float | None:
        """Return those of a step. ``lengths_N2``: tokens of both sides; ``prefix_N``: of what they share."""
        if self.shape is None:
            return None
        shape, prefix = self.shape, prefix_N.astype(float)
        chosen, rest = lengths_N2[:, 0].astype(float), lengths_N2[:, 1] - prefix
        visible = (chosen * (chosen + 1) / 2 + rest * prefix + rest * (rest + 1) / 2).sum()
        layer = 2 * shape.linear_parameters * (chosen + rest).sum() + 4 * shape.query_size * visible
        return float(
            self.times_forward * (shape.num_layers * layer + 2 * shape.head_parameters * trained_tokens)
        )

    def figures(self, tokens: int, operations: float | None, seconds: float) -> dict[str, float]:
        """Return a step's metrics: tokens of all, tokens and operations of one process a second, and MFU where the peak
        is known."""
        each = {
            "tokens_per_second": tokens / seconds,
            "tokens_per_second_per_device": tokens / seconds / self.num_processes,
        }
        if operations is not None:
            rate = operations / seconds / self.num_processes
            each["tflops_per_device"] = rate / 1e12
            if self.peak:
                each["mfu"] = rate / self.peak
        return each
