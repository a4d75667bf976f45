"""Log-probabilities of target tokens from hidden states, without ever holding all logits.

Shapes: N predicted tokens, H hidden size, V vocabulary, S sequences.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 25  # logits held at once: 128 MiB in fp32, and as much again in the backward


def logps_from_logits(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """log softmax(logits)[target], computed in fp32. -> float32 [N]"""
    return -cross_entropy(logits_NV.float(), targets_N, reduction="none")


def target_logps(hidden_NH: Tensor, targets_N: Tensor, head: Callable[[Tensor], Tensor], vocab_size: int) -> Tensor:
    """Log-probability of each target given the hidden state that predicts it. -> float32 [N]

    ``head`` maps hidden states [n, H] to logits [n, V]. It is applied to chunks; with more than one chunk a chunk's
    logits are recomputed in the backward, so memory does not grow with N x V.
    """
    chunk = max(1, CHUNK_LOGITS // vocab_size)
    if len(targets_N) <= chunk:
        return logps_from_logits(head(hidden_NH), targets_N)

    def chunk_logps(hidden_nH: Tensor, targets_n: Tensor) -> Tensor:
        return logps_from_logits(head(hidden_nH), targets_n)

    pieces = zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True)
    if torch.is_grad_enabled() and hidden_NH.requires_grad:
        return torch.cat([checkpoint(chunk_logps, hidden, targets, use_reentrant=False) for hidden, targets in pieces])
    return torch.cat([chunk_logps(hidden, targets) for hidden, targets in pieces])


def sum_by_sequence(logps_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """Sum token log-probabilities of each sequence. -> float32 [S]"""
    return logps_N.new_zeros(num_sequences).index_add(0, sequence_N, logps_N)
