"""Pairs -> the tensors of one forward, in one of two layouts that give the same numbers.

    padded           one row per side: chosen_0, rejected_0, chosen_1, ...         mask [R, T]
    prefix_sharing   one row per pair: [prompt, rest of chosen, rest of rejected]  mask [R, 1, T, T]

The shared prompt is the longest common **token** prefix of the two sequences, so sharing is exact whatever the chat
template does at the boundary. Position ids of the rejected part restart at the end of the prefix and a mask hides the
chosen part from it. A layout is nothing but data: which hidden state (``predictor_N``) predicts which token
(``target_N``) of which sequence (``sequence_N``: 2 * pair for chosen, 2 * pair + 1 for rejected).

Shapes: B pairs, R rows, T tokens, N predicted tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from dpo_core.config import ForwardLayout
from dpo_core.data.pairs import TokenizedPair


@dataclass(frozen=True, slots=True)
class PairBatch:
    """One forward's worth of pairs."""

    ids_RT: Tensor  # int64
    position_ids_RT: Tensor  # int64
    attention_mask: Tensor  # bool [R, T] or [R, 1, T, T]; True = visible
    predictor_N: Tensor  # int64, index into the R * T hidden states
    target_N: Tensor  # int64
    sequence_N: Tensor  # int64
    tail_N: Tensor  # float32, 1 for a sequence's tokens beyond the first min(tokens of chosen, tokens of rejected), else 0
    tokens_2B: Tensor  # float32, predicted tokens per sequence (chosen, rejected, chosen, ...)
    weight_B: Tensor  # float32, 1 for a pair, 0 for a filler that only keeps ranks in step
    row_B: Tensor  # int64, row numbers in the data set

    def to(self, device: torch.device) -> "PairBatch":
        """The same batch on a device."""
        return PairBatch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def common_prefix_length(pair: TokenizedPair) -> int:
    """Length of the longest common token prefix of the two sequences."""
    shorter = min(len(pair.chosen_ids), len(pair.rejected_ids))
    differs = np.flatnonzero(pair.chosen_ids[:shorter] != pair.rejected_ids[:shorter])
    return int(differs[0]) if len(differs) else shorter


def _predicted(ids_T: np.ndarray, trained_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the trained tokens that something precedes, and the tokens there."""
    positions = np.flatnonzero(trained_T)
    positions = positions[positions > 0]
    return positions, ids_T[positions]


def _batch(rows: list[np.ndarray], positions: list[np.ndarray], mask: Tensor, predicted: list[tuple], pairs: int,
           row_numbers: Sequence[int], weights: Sequence[float]) -> PairBatch:
    """Pad rows on the right and concatenate the predicted tokens: (row, predictor position, target, sequence)."""
    width = max(len(row) for row in rows)
    ids_RT, position_ids_RT = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for r, (row, position) in enumerate(zip(rows, positions, strict=True)):
        ids_RT[r, : len(row)], position_ids_RT[r, : len(row)] = row, position
    predictor_N = np.concatenate([row * width + predictor for row, predictor, _, _ in predicted])
    sequence_N = np.concatenate([np.full(len(target), sequence) for _, _, target, sequence in predicted])
    target_N = np.concatenate([target for _, _, target, _ in predicted]).astype(np.int64)
    tokens_2B = np.bincount(sequence_N, minlength=2 * pairs)
    shared_2B = np.repeat(tokens_2B.reshape(-1, 2).min(axis=1), 2)
    tail_N = np.concatenate([np.arange(len(target)) >= shared_2B[sequence] for _, _, target, sequence in predicted])
    return PairBatch(
        ids_RT=torch.from_numpy(ids_RT), position_ids_RT=torch.from_numpy(position_ids_RT), attention_mask=mask,
        predictor_N=torch.from_numpy(predictor_N), target_N=torch.from_numpy(target_N),
        sequence_N=torch.from_numpy(sequence_N), tail_N=torch.from_numpy(tail_N.astype(np.float32)),
        tokens_2B=torch.from_numpy(tokens_2B.astype(np.float32)),
        weight_B=torch.tensor(list(weights), dtype=torch.float32), row_B=torch.tensor(list(row_numbers)),
    )


def _collate_padded(pairs: Sequence[TokenizedPair], row_numbers: Sequence[int], weights: Sequence[float]) -> PairBatch:
    sides = [side for p in pairs for side in ((p.chosen_ids, p.chosen_trained), (p.rejected_ids, p.rejected_trained))]
    rows = [ids for ids, _ in sides]
    mask_RT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.bool)
    predicted = []
    for r, (ids, trained) in enumerate(sides):
        mask_RT[r, : len(ids)] = True
        positions, targets = _predicted(ids, trained)
        predicted.append((r, positions - 1, targets, r))
    return _batch(rows, [np.arange(len(row)) for row in rows], mask_RT, predicted, len(pairs), row_numbers, weights)


def _collate_shared(pairs: Sequence[TokenizedPair], row_numbers: Sequence[int], weights: Sequence[float]) -> PairBatch:
    prefixes = [common_prefix_length(pair) for pair in pairs]
    rows = [np.concatenate([p.chosen_ids, p.rejected_ids[n:]]) for p, n in zip(pairs, prefixes, strict=True)]
    width = max(map(len, rows))
    mask_R1TT = torch.ones(len(rows), 1, width, width, dtype=torch.bool).tril_()
    positions, predicted = [], []
    for r, (pair, prefix) in enumerate(zip(pairs, prefixes, strict=True)):
        chosen_end, end = len(pair.chosen_ids), len(rows[r])
        mask_R1TT[r, 0, chosen_end:end, prefix:chosen_end] = False
        positions.append(np.concatenate([np.arange(chosen_end), np.arange(prefix, len(pair.rejected_ids))]))
        at, targets = _predicted(pair.chosen_ids, pair.chosen_trained)
        predicted.append((r, at - 1, targets, 2 * r))
        at, targets = _predicted(pair.rejected_ids, pair.rejected_trained)
        # The rejected sequence's token i >= prefix stands chosen_end - prefix places further right in the row.
        predicted.append((r, np.where(at - 1 < prefix, at - 1, at - 1 + chosen_end - prefix), targets, 2 * r + 1))
    return _batch(rows, positions, mask_R1TT, predicted, len(pairs), row_numbers, weights)


def collate(pairs: Sequence[TokenizedPair], row_numbers: Sequence[int], layout: ForwardLayout,
            weights: Sequence[float] | None = None) -> PairBatch:
    """Lay pairs out for one forward. ``weights`` are 1 for every pair unless given."""
    collate_layout = _collate_shared if layout == "prefix_sharing" else _collate_padded
    return collate_layout(pairs, row_numbers, [1.0] * len(pairs) if weights is None else weights)
