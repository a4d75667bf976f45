"""Pairs -> the tensors of one forward, in one of three layouts that give the same numbers.

    padded           one row per side: chosen_0, rejected_0, chosen_1, ...
    prefix_sharing   one row per pair: [prompt, rest of chosen, rest of rejected]
    packed           one row for all: the rows of prefix_sharing one after the other, no padding

The shared prompt is the longest common **token** prefix of the two sequences, so sharing is exact whatever the chat
template does at the boundary. Position ids of the rejected part restart at the end of the prefix. ``segment_RT`` says
which part of which pair a token is; who sees whom follows from it (``dpo_core.model.attention``). A layout is nothing
but data: which hidden state (``predictor_N``) predicts which token (``target_N``) of which sequence (``sequence_N``:
2 * pair for chosen, 2 * pair + 1 for rejected).

Shapes: B pairs, R rows, T tokens, N predicted tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpo_core.contract.config import ForwardLayout
from dpo_core.data.pair_file import common_prefix_length
from dpo_core.data.pairs import TokenizedPair

PARTS = 3  # of a pair: shared prefix, rest of chosen, rest of rejected
ON_HOST = ("row_B", "parts_B3")


@dataclass(frozen=True, slots=True)
class PairBatch:
    """One forward's worth of pairs. Tensors are on its device but for those that the host reads (``ON_HOST``): asking a
    card for them would wait for all that it has yet to compute."""

    ids_RT: Tensor  # int64
    position_ids_RT: Tensor  # int64
    segment_RT: Tensor  # int64, PARTS * (number of the pair in its row) + part (0 prefix, 1 chosen, 2 rejected); -1 padding
    predictor_N: Tensor  # int64, index into the R * T hidden states
    target_N: Tensor  # int64
    sequence_N: Tensor  # int64
    tail_N: Tensor  # float32, 1 for a sequence's tokens beyond the first min(tokens of chosen, tokens of rejected), else 0
    tokens_2B: Tensor  # float32, predicted tokens per sequence (chosen, rejected, chosen, ...)
    weight_B: Tensor  # float32, 1 for a pair, 0 for a filler that only keeps ranks in step
    row_B: Tensor  # int64, row numbers in the data set; on the host
    parts_B3: (
        Tensor  # int64, tokens of shared prefix, rest of chosen, rest of rejected; on the host; padded: none
    )
    layout: ForwardLayout

    def to(self, device: torch.device) -> "PairBatch":
        """Return the same batch on a device. The host does not wait for a card."""
        moved: dict[str, Any] = {
            f.name: to_device(getattr(self, f.name), device)
            for f in fields(self)
            if f.name not in (*ON_HOST, "layout")
        }
        return replace(self, **moved)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor there. From memory that may be paged out a card copies only while the host waits, so it is
    pinned.
    """
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def padding_share(batches: Sequence[PairBatch]) -> float:
    """Return the fraction of the tokens of these forwards that are padding."""
    computed = sum(batch.segment_RT.numel() for batch in batches)
    return sum(int((batch.segment_RT < 0).sum()) for batch in batches) / computed


@dataclass(slots=True)
class _Rows:
    """Rows under construction: tokens, positions and segments of each, what is predicted from where, and where prefixes are
    shared the pairs' parts (see ``PairBatch.parts_B3``)."""

    ids: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    segments: list[np.ndarray] = field(default_factory=list)
    predicted: list[tuple[int, np.ndarray, np.ndarray]] = field(
        default_factory=list
    )  # row, predictor, target; by sequence
    parts: list[tuple[int, int, int]] = field(default_factory=list)

    def predict(self, ids_T: np.ndarray, trained_T: np.ndarray, place_T: np.ndarray | None = None) -> None:
        """The next sequence, in the last row: its trained tokens that something precedes. ``place_T``: where in the row
        its tokens stand, if not from the beginning on."""
        at = np.flatnonzero(trained_T)
        at = at[at > 0]
        self.predicted.append((len(self.ids) - 1, at - 1 if place_T is None else place_T[at - 1], ids_T[at]))


def _padded_rows(pairs: Sequence[TokenizedPair]) -> _Rows:
    rows = _Rows()
    for ids, trained in (
        side
        for p in pairs
        for side in ((p.chosen_ids, p.chosen_trained), (p.rejected_ids, p.rejected_trained))
    ):
        rows.ids.append(ids)
        rows.positions.append(np.arange(len(ids)))
        rows.segments.append(np.zeros(len(ids), np.int64))
        rows.predict(ids, trained)
    return rows


def _shared_rows(pairs: Sequence[TokenizedPair]) -> _Rows:
    rows = _Rows()
    for pair in pairs:
        prefix = common_prefix_length(pair.chosen_ids, pair.rejected_ids)
        chosen_end, rejected_end = len(pair.chosen_ids), len(pair.rejected_ids)
        rows.parts.append((prefix, chosen_end - prefix, rejected_end - prefix))
        rows.ids.append(np.concatenate([pair.chosen_ids, pair.rejected_ids[prefix:]]))
        rows.positions.append(np.concatenate([np.arange(chosen_end), np.arange(prefix, rejected_end)]))
        rows.segments.append(np.repeat(np.arange(PARTS), rows.parts[-1]))
        rows.predict(pair.chosen_ids, pair.chosen_trained)
        place = np.arange(rejected_end)
        place[prefix:] += chosen_end - prefix
        rows.predict(pair.rejected_ids, pair.rejected_trained, place)
    return rows


def _packed_row(pairs: Sequence[TokenizedPair]) -> _Rows:
    rows = _shared_rows(pairs)
    starts = np.cumsum([0] + [len(ids) for ids in rows.ids])
    segments = [segment + PARTS * number for number, segment in enumerate(rows.segments)]
    return _Rows(
        [np.concatenate(rows.ids)],
        [np.concatenate(rows.positions)],
        [np.concatenate(segments)],
        [(0, predictor + starts[row], target) for row, predictor, target in rows.predicted],
        rows.parts,
    )


LAYOUTS: dict[ForwardLayout, Callable[[Sequence[TokenizedPair]], _Rows]] = {
    "padded": _padded_rows,
    "prefix_sharing": _shared_rows,
    "packed": _packed_row,
}


def _padded(rows: list[np.ndarray], filler: int) -> Tensor:
    """Rows side by side, filled up on the right. -> int64 [R, T]"""
    out_RT = np.full((len(rows), max(map(len, rows))), filler, np.int64)
    for out_T, row in zip(out_RT, rows, strict=True):
        out_T[: len(row)] = row
    return torch.from_numpy(out_RT)


def collate(
    pairs: Sequence[TokenizedPair],
    row_numbers: Sequence[int],
    layout: ForwardLayout,
    weights: Sequence[float] | None = None,
) -> PairBatch:
    """Lay pairs out for one forward. ``weights`` are 1 for every pair unless given."""
    rows = LAYOUTS[layout](pairs)
    width = max(map(len, rows.ids))
    tokens_2B = np.array([len(target) for _, _, target in rows.predicted])
    shared_2B = np.repeat(tokens_2B.reshape(-1, 2).min(axis=1), 2)
    tail_N = np.concatenate(
        [np.arange(tokens) >= shared for tokens, shared in zip(tokens_2B, shared_2B, strict=True)]
    )
    return PairBatch(
        ids_RT=_padded(rows.ids, 0),
        position_ids_RT=_padded(rows.positions, 0),
        segment_RT=_padded(rows.segments, -1),
        predictor_N=torch.from_numpy(np.concatenate([row * width + at for row, at, _ in rows.predicted])),
        target_N=torch.from_numpy(
            np.concatenate([target for _, _, target in rows.predicted]).astype(np.int64)
        ),
        sequence_N=torch.from_numpy(np.repeat(np.arange(2 * len(pairs)), tokens_2B)),
        tail_N=torch.from_numpy(tail_N.astype(np.float32)),
        tokens_2B=torch.from_numpy(tokens_2B.astype(np.float32)),
        weight_B=torch.tensor([1.0] * len(pairs) if weights is None else list(weights), dtype=torch.float32),
        row_B=torch.tensor(list(row_numbers)),
        parts_B3=torch.tensor(rows.parts, dtype=torch.int64).view(-1, PARTS),
        layout=layout,
    )
