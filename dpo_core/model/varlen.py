"""Attention of a packed row on a card: one call a layer for all pairs, without masks (``torch.nn.attention.varlen``).

Every pair gives two sequences: prefix and chosen, over themselves; rejected, over its prefix and itself. In the row their
queries lie one after the other as they are; keys and values are laid out anew, a prefix twice. Causality of flash attention
is aligned at the end of queries and keys, so a rejected answer's first token sees its whole prefix.

Pair by pair (``dpo_core.model.attention``) is the slow twin: two calls a pair, and on cards of the Hopper kind a plan is
made for every new shape of each, tens of milliseconds long: on an H200 a step of 16 pairs of a 135M model took 3.9 s.

Shapes: T tokens of the row, K keys (T and all prefixes again), H heads, D head size, S sequences.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpo_core.data.pair_batch import to_device

HALF = (torch.bfloat16, torch.float16)
LARGEST_HEAD, HEAD_MULTIPLE = 256, 8
FIRST_CAPABILITY = (8, 0)  # Ampere

Spans = list[tuple[int, int, int]]
States = tuple[Tensor, Tensor, Tensor]  # what a layer attends with: query, keys, values
Kernel = Callable[..., Tensor]
"""(query [T, H, D], keys and values [K, H', D], places, scale, window) -> [T, H, D]"""


@dataclass(frozen=True, slots=True)
class Places:
    """Where sequences begin and end, and which key of the row stands where in their keys."""

    ends_q_S1: Tensor  # int32, S + 1 places in the row
    ends_k_S1: Tensor  # int32, S + 1 places in the keys
    longest_q: int
    longest_k: int
    key_K: Tensor  # int64, the row's place of each key
    own_T: Tensor  # int64, where each of the row's tokens stands among the keys as one of its own part
    again_P: Tensor  # int64, prefix tokens of pairs with a rejected answer: their second place among the keys
    prefix_P: Tensor  # int64, and their place in the row

    @classmethod
    def of(cls, spans: Spans, device: torch.device) -> "Places":
        """Return the places of a packed row of pairs with these tokens of prefix, rest of chosen and rest of rejected."""
        queries, keys, key_places, own, again, prefixes = [], [], [], [], [], []
        at = at_key = 0
        for prefix, chosen, rejected in spans:
            first = prefix + chosen
            queries.append(first)
            keys.append(first)
            key_places.append(np.arange(at, at + first))
            own.append(np.arange(at_key, at_key + first))
            at_key += first
            if rejected:
                queries.append(rejected)
                keys.append(prefix + rejected)
                key_places += [np.arange(at, at + prefix), np.arange(at + first, at + first + rejected)]
                again.append(np.arange(at_key, at_key + prefix))
                prefixes.append(np.arange(at, at + prefix))
                own.append(np.arange(at_key + prefix, at_key + prefix + rejected))
                at_key += prefix + rejected
            at += first + rejected

        def moved(parts: list[np.ndarray]) -> Tensor:
            return to_device(torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts])), device)

        def ends(lengths: list[int]) -> Tensor:
            return moved([np.cumsum([0, *lengths])]).int()

        return cls(
            ends(queries),
            ends(keys),
            max(queries),
            max(keys),
            moved(key_places),
            moved(own),
            moved(again),
            moved(prefixes),
        )


class _Laid(torch.autograd.Function):
    """[T, H, D] -> [K, H, D]: a row's keys or values as the sequences want them. No place is written twice in the backward,
    so its bits do not depend on chance."""

    @staticmethod
    def forward(ctx: Any, states_THD: Tensor, places: Places) -> Tensor:
        """Gather."""
        ctx.places = places
        return states_THD.index_select(0, places.key_K)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_KHD: Tensor) -> tuple[Tensor, None]:
        """A prefix's two slopes are added."""
        places: Places = ctx.places
        slope_THD = slope_KHD.index_select(0, places.own_T)
        both_PHD = slope_THD.index_select(0, places.prefix_P) + slope_KHD.index_select(0, places.again_P)
        return slope_THD.index_copy_(0, places.prefix_P, both_PHD), None


def attend(states: States, places: Places, scale: float | None, window: int | None, kernel: Kernel) -> Tensor:
    """Return attention of a packed row in transformers' shapes, three of [1, H, T, D] -> [1, T, H, D]; keys may have
    fewer heads.

    A query sees the ``window`` last tokens of its sequence, itself included; all where it is None.
    """
    query_THD, key_THD, value_THD = (of_rows[0].transpose(0, 1) for of_rows in states)
    output_THD = kernel(
        query_THD, _Laid.apply(key_THD, places), _Laid.apply(value_THD, places), places, scale, window
    )
    return output_THD[None]


def why_not_varlen(query: Tensor, dtype: torch.dtype) -> str | None:
    """Return why a row cannot go through the kernel; None if it can. ``dtype``: what products are computed in."""
    if not query.is_cuda:
        return "it needs a CUDA card"
    if dtype not in HALF:
        return f"it knows no {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(query.device) < FIRST_CAPABILITY:
        return "the card is older than Ampere"
    if query.shape[-1] > LARGEST_HEAD or query.shape[-1] % HEAD_MULTIPLE:
        return f"heads of {query.shape[-1]} values do not fit"
    if _varlen_attn() is None:
        return f"torch {torch.__version__} does not have it"
    return None


def _varlen_attn() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and later
    except ImportError:
        return None
    return varlen_attn


def flash(
    query_THD: Tensor,
    key_KHD: Tensor,
    value_KHD: Tensor,
    places: Places,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Run torch's variable-length flash attention. A ``Kernel``."""
    call = _varlen_attn()
    assert call is not None  # why_not_varlen has looked
    known = inspect.signature(call).parameters
    options: dict[str, Any] = {"scale": scale} if "scale" in known else {}
    if scale is not None and "scale" not in known:  # the kernel divides by the root of the head size
        query_THD = query_THD * (scale * query_THD.shape[-1] ** 0.5)
    if "enable_gqa" in known:
        options["enable_gqa"] = query_THD.shape[1] != key_KHD.shape[1]
    elif (groups := query_THD.shape[1] // key_KHD.shape[1]) > 1:
        key_KHD, value_KHD = (states.repeat_interleave(groups, dim=1) for states in (key_KHD, value_KHD))
    if "window_size" in known:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        assert window is None, "a window needs a newer torch"
        options["is_causal"] = True
    return call(
        query_THD,
        key_KHD,
        value_KHD,
        places.ends_q_S1,
        places.ends_k_S1,
        places.longest_q,
        places.longest_k,
        **options,
    )
