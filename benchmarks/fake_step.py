"""A forward and backward of this program in FakeTensorMode, at any shape, with attention as on a card: what it holds.

Nothing is computed, so that 70B takes seconds. The card's attention call stands there as it does on a card; what decides on
a card whether it can be used asks for a card, and is left out.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dpo_core.contract.config import Precision
from dpo_core.contract.step_memory import CARD_CHUNK_LOGITS
from dpo_core.data.pair_batch import PairBatch, collate
from dpo_core.data.pairs import TokenizedPair
from dpo_core.model import logprobs, varlen
from dpo_core.model.attention import PAIRWISE, set_kernel, text_config
from dpo_core.model.forward import PairScorer
from dpo_core.model.pair_spans import PairSpans

Seen = Callable[[Any, tuple, Any], None]


class Operators(TorchDispatchMode):
    """Bytes of the tensors that operators made and that are still there; and what each operator was."""

    def __init__(self, known: Iterable[Tensor], seen: Seen | None = None) -> None:
        """``known``: what was there before, and is not counted. ``seen`` is told operator, arguments and results."""
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        if self.seen:
            self.seen(func, args, out)
        return out

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.known or key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def _as_on_a_card(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    pair_spans: PairSpans,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    query, key, value = (states.to(dtype) for states in (query, key, value))
    scale = kwargs.get("scaling")
    return varlen.attend((query, key, value), pair_spans.places, scale, sliding_window, varlen.flash), None


def made_batch(num_pairs: int, prefix: int, answer: int) -> PairBatch:
    """Return a packed row of pairs with so many tokens of prompt and of each answer."""
    seen = np.arange(prefix + answer, dtype=np.int32) % 100
    other = np.concatenate([seen[:prefix], (seen[prefix:] + 1) % 100])
    trained = np.arange(prefix + answer) >= prefix
    pair = TokenizedPair("0", seen, trained, other, trained)
    return collate([pair] * num_pairs, range(num_pairs), "packed")


@dataclass(frozen=True, slots=True)
class FakeStep:
    """Bytes beside the weights."""

    tokens: int
    kept: int  # at the end of the forward
    forward_peak: int
    backward_peak: int

    @property
    def peak(self) -> int:
        return max(self.forward_peak, self.backward_peak)


def fake_step(
    config: PreTrainedConfig,
    batch: PairBatch,
    precision: Precision,
    is_checkpointed: bool,
    change: Callable[[PreTrainedModel], PreTrainedModel] = lambda model: model,
    seen: Seen | None = None,
) -> FakeStep:
    """Run a step of ``change``(model) and give each gradient away as soon as it is there, as back ends do that share
    gradients out. ``seen`` is told of every operator."""
    with _faked(config, precision, change) as scorer:
        for parameter in scorer.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_give_away)
        if is_checkpointed:
            scorer.model.gradient_checkpointing_enable({"use_reentrant": False})
        scorer.train()
        with Operators([*scorer.parameters(), *scorer.buffers()], seen) as operators:
            scores = scorer(batch)
            kept, forward_peak = operators.now, operators.peak
            operators.peak = operators.now
            scores.sums_S.sum().backward()
            return FakeStep(batch.ids_RT.numel(), kept, forward_peak, operators.peak)


def fake_scoring(
    config: PreTrainedConfig,
    batch: PairBatch,
    precision: Precision,
    change: Callable[[PreTrainedModel], PreTrainedModel] = lambda model: model,
) -> int:
    """Return the most bytes beside the weights of a forward without gradients."""
    with (
        _faked(config, precision, change) as scorer,
        torch.no_grad(),
        Operators([*scorer.parameters(), *scorer.buffers()]) as operators,
    ):
        scorer(batch)
        return operators.peak


@contextlib.contextmanager
def _faked(
    config: PreTrainedConfig, precision: Precision, change: Callable[[PreTrainedModel], PreTrainedModel]
) -> Iterator[PairScorer]:
    """A scorer whose weights are not there, as it would be on a card."""
    before, logprobs.CHUNK_LOGITS = logprobs.CHUNK_LOGITS, CARD_CHUNK_LOGITS
    try:
        with init_empty_weights(include_buffers=False):
            model = change(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
        with FakeTensorMode(allow_non_fake_inputs=True):
            _fill(model)
            set_kernel(model, PAIRWISE["sdpa"])
            AttentionInterface.register(PAIRWISE["sdpa"], _as_on_a_card)
            scorer = PairScorer(model, precision)
            scorer.stock_logits = False
            assert text_config(scorer.model)._attn_implementation == PAIRWISE["sdpa"]
            yield scorer
    finally:
        logprobs.CHUNK_LOGITS = before
        set_kernel(model, "sdpa")  # registers this program's own again


def _fill(model: PreTrainedModel) -> None:
    """Give every weight memory that is not there, in the mode that knows how much it would be."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                memory = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[id(parameter)] = nn.Parameter(memory, parameter.requires_grad)
            module._parameters[name] = parameter if parameter is None else made[id(parameter)]


def _give_away(parameter: Tensor) -> None:
    parameter.grad = None
