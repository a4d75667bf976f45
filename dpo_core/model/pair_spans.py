"""Where the pairs of a packed row lie, and attention that goes pair by pair with stock calls.

Shapes: T tokens, H heads, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpo_core.data.pair_batch import PairBatch
from dpo_core.model.varlen import Places, States


def to_add(mask: Tensor) -> Tensor:
    """Return the mask for eager attention, which adds its mask instead of selecting by it."""
    return torch.where(mask, 0.0, torch.finfo(torch.float32).min)


@dataclass(slots=True)
class PairSpans:
    """Where the pairs of one packed row lie, and the masks that attention inside a pair needs (same for all layers)."""

    lengths: list[tuple[int, int, int]]  # tokens of prefix, rest of chosen, rest of rejected, pair after pair
    device: torch.device
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)
    laid: Places | None = None

    @property
    def places(self) -> Places:
        """The same pairs as sequences; made once a forward."""
        if self.laid is None:
            self.laid = Places.of(self.lengths, self.device)
        return self.laid

    @classmethod
    def of(cls, batch: PairBatch) -> "PairSpans":
        """Return the spans of a packed batch, which is one row."""
        return cls([tuple(pair) for pair in batch.parts_B3.tolist()], batch.ids_RT.device)

    def mask(self, queries: int, keys: int, window: int | None, additive: bool) -> Tensor | None:
        """Return the causal mask [1, 1, queries, keys] of the last ``queries`` of ``keys`` tokens; None where sdpa's own
        causality says it.

        ``additive``: as eager attention wants it, which knows no causality of its own.
        """
        if window is not None and keys <= window:
            window = None
        if queries == keys and window is None and not additive:
            return None
        shape = (queries, keys, window)
        if shape not in self.masks:
            distance = torch.arange(keys - queries, keys, device=self.device)[:, None] - torch.arange(
                keys, device=self.device
            )
            visible = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
            self.masks[shape] = (to_add(visible) if additive else visible)[None, None]
        return self.masks[shape]


def pairwise(stock: Callable, additive: bool, states: States, spans: PairSpans, window: int | None) -> Tensor:
    """Return attention of a packed row, pair by pair: prefix and chosen as one causal sequence, then rejected over its
    prefix.

    ``states``: query, key, value, [1, H, T, D] -> [1, T, H, D]. No pair is compared with another, and no mask has the
    row's width.
    """

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return stock(queries, keys, values, spans.mask(queries.shape[2], keys.shape[2], window, additive))[0]

    # One split: its backward is one concatenation, while each slice's would write zeros of the whole row.
    sizes = [size for prefix, chosen, rejected in spans.lengths for size in (prefix + chosen, rejected)]
    queries, keys, values = (whole.split(sizes, dim=2) for whole in states)
    outputs = []
    for pair, (prefix, _, rejected) in enumerate(spans.lengths):
        side = 2 * pair
        outputs.append(attend(queries[side], keys[side], values[side]))
        if rejected:
            outputs.append(
                attend(
                    queries[side + 1],
                    *(
                        torch.cat([parts[side][:, :, :prefix], parts[side + 1]], dim=2)
                        for parts in (keys, values)
                    ),
                )
            )
    return torch.cat(outputs, dim=1)
