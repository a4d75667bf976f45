"""The operators of one microbatch as a card would run them, priced by a roofline; nothing is computed (FakeTensorMode).

    make bench ARGS="--only opstream"

The recipe for 8B (`recipes/tulu3-8b.yaml`): 16 pairs of 1,030 tokens a card, packed, gradient checkpointing; one pair, too.
Bf16 as the recipe computes it, with weights that FSDP2 gathers in bf16, and as autocast over fp32 weights.
Counted is what runs between batch and gradients: forward, forward again, backward; not exchange, objective, metrics and
update, which sharded back ends run once a step or beside it.

    a kernel    the longest of: bytes read and written / 2.8 TB/s; operations / rate; 4.5 us, what a start takes
    rate        products 62 % of 989 TFLOP/s (dense bf16, H100); variable-length flash attention 35 % (FlashAttention-2 on an
                H100: Shah et al. 2024, arXiv 2407.08608); everything else is bound by memory
    products    kernels that multiply matrices: linears, head, attention

Views and empty tensors start no kernel.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import LlamaConfig, PreTrainedConfig

from benchmarks.fake_step import fake_step, made_batch
from dpo_core.contract.config import Precision
from dpo_core.data.pair_batch import PairBatch

MEMORY, START = 2.8e12, 4.5e-6  # bytes a second; seconds
PRODUCTS, FLASH = 0.62 * 989e12, 0.35 * 989e12  # operations a second
PREFIX, ANSWER = 206, 412  # tokens of a pair of Tulu 3's mixture, about
LAYERS = 32
SIZES = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
}
NUM_PAIRS = (1, 16)
OF_RECIPE = "bf16 weights (fsdp2, as the recipe)"  # as `bf16_pure` computes: without autocast
HELD: dict[str, Precision] = {
    "autocast over fp32 weights (no sharding, zero1 to zero3)": "bf16",
    OF_RECIPE: "bf16_pure",
}
TAKES_ROWS = {
    "embedding",
    "index_select",
    "index",
    "gather",
    "nll_loss_forward",
}  # read what they give, not all they see
PUTS_ROWS = {"index_copy_", "index_put_", "_index_put_impl_", "scatter_", "index_add_", "index_add"}
ALLOCATES = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "detach",
}
WRITES = {"zeros", "zeros_like", "new_zeros", "zero_", "ones_like", "fill_", "full", "full_like", "arange"}
FLASH_KERNELS = {"_varlen_attn": 1, "_varlen_attn_backward": 3}  # rows' sums first, queries' slopes cast last
FLASH_TIMES = {
    "_varlen_attn": 2,
    "_varlen_attn_backward": 5,
}  # products of [tokens, visible] by a head's size


@dataclass(slots=True)
class OpStream:
    """What ``fake_step`` told. ``visible``: (query, key) pairs of the whole row."""

    visible: int
    calls: int = 0  # of the dispatcher, views too: what the host does
    kernels: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    in_products: float = 0.0
    in_attention: float = 0.0

    def seen(self, func: Any, args: tuple, out: Any) -> None:
        """Count an operator. See ``fake_step``."""
        name = func._schema.name.split("::")[1]
        if func.namespace == "prim":
            return
        self.calls += 1
        asks = not isinstance(out, Tensor | tuple | list)  # a dtype, a number
        if asks or name in ALLOCATES or _only_looks(func) or _is_in_product(name, args):
            return
        operations, rate = self._operations(func, name, args, out)
        kernels = FLASH_KERNELS.get(name, 1)
        seconds = max(_moved(name, args, out) / MEMORY, operations / rate, kernels * START)
        self.kernels[name] += kernels
        self.seconds[name] += seconds
        if operations:
            self.in_products += seconds
        if name in FLASH_TIMES:
            self.in_attention += seconds

    def _operations(self, func: Any, name: str, args: tuple, out: Any) -> tuple[float, float]:
        """How many, and how many a second."""
        if name in FLASH_TIMES:
            query_THD = next(leaf for leaf in args if isinstance(leaf, Tensor) and leaf.ndim == 3)
            heads, size = query_THD.shape[1:]
            return 2.0 * FLASH_TIMES[name] * heads * size * self.visible, FLASH
        count = flop_registry.get(func.overloadpacket)
        return (float(count(*args, out_val=out)) if count else 0.0), PRODUCTS

    def figures(self) -> dict:
        """The sums, and the operators that take most of the time."""
        total, kernels = sum(self.seconds.values()), sum(self.kernels.values())
        largest = sorted(self.seconds, key=self.seconds.__getitem__, reverse=True)[:12]
        return {
            "gpu_ms": 1e3 * total,
            "in_products": self.in_products / total,
            "in_attention": self.in_attention / total,
            "kernels": kernels,
            "calls": self.calls,
            "copies": self.kernels["_to_copy"],
            "copies_ms": 1e3 * self.seconds["_to_copy"],
            "largest_ms": {name: 1e3 * self.seconds[name] for name in largest},
        }


def _only_looks(func: Any) -> bool:
    """Whether an operator gives back what it got, unchanged: a view."""
    returns = [value.alias_info for value in func._schema.returns]
    return bool(returns) and all(info is not None and not info.is_write for info in returns)


def _is_in_product(name: str, args: tuple) -> bool:
    """Whether it adds a half-precision product to an fp32 sum, which on a card the product does itself: the gradient of
    the head's weight (``dpo_core.model.logprobs``)."""
    if name != "add_" or not isinstance(args[1], Tensor):
        return False
    total, product = args[:2]
    return (
        total.dtype == torch.float32 and product.dtype == torch.bfloat16 and total.ndim == product.ndim == 2
    )


def _bytes(tensors: Iterable[Any]) -> int:
    """Of the values that are there: an expanded tensor has fewer than elements."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            there = math.prod(size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
            sizes[id(tensor)] = there * tensor.element_size()
    return sum(sizes.values())


def _moved(name: str, args: tuple, out: Any) -> int:
    """Bytes that an operator reads and writes."""
    given, made = tree_leaves(args), tree_leaves(out)
    if name in WRITES:
        return _bytes(made)
    if name in TAKES_ROWS:
        return 2 * _bytes(made)
    if name in PUTS_ROWS:
        return 2 * _bytes([leaf for leaf in given if isinstance(leaf, Tensor)][1:])
    in_place = any(leaf is other for leaf in made for other in given if isinstance(leaf, Tensor))
    return _bytes(given) + (_bytes(made[:1]) if in_place else _bytes(made))


def visible_pairs(batch: PairBatch) -> int:
    """Return how many (query, key) attention looks at in a packed row."""
    return sum(
        (prefix + chosen) * (prefix + chosen + 1) // 2 + rejected * prefix + rejected * (rejected + 1) // 2
        for prefix, chosen, rejected in batch.parts_B3.tolist()
    )


def stream_of(config: PreTrainedConfig, batch: PairBatch, precision: Precision) -> OpStream:
    """Return the operators of a forward and backward with gradient checkpointing."""
    stream = OpStream(visible_pairs(batch))
    fake_step(config, batch, precision, True, seen=stream.seen)
    return stream


def deep_stream(sizes: dict, num_layers: int, batch: PairBatch, precision: Precision) -> OpStream:
    """Return those of a Llama of so many layers: each adds what the second of two does."""
    one, two = (
        stream_of(LlamaConfig(**sizes, num_hidden_layers=layers), batch, precision) for layers in (1, 2)
    )
    more = num_layers - 1

    def grown(first: Any, second: Any) -> Any:
        if isinstance(first, dict):
            return {name: grown(first.get(name, 0), value) for name, value in second.items()}
        return first + more * (second - first)

    counted = (field.name for field in fields(OpStream) if field.name != "visible")
    return replace(two, **{name: grown(getattr(one, name), getattr(two, name)) for name in counted})


def measure() -> dict:
    """Return the figures of RESULTS."""
    return {
        held: {
            str(pairs): deep_stream(SIZES, LAYERS, made_batch(pairs, PREFIX, ANSWER), precision).figures()
            for pairs in NUM_PAIRS
        }
        for held, precision in HELD.items()
    }
