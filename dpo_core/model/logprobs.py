"""Log-probabilities of target tokens from hidden states, without ever holding all logits.

One autograd function computes logits chunk by chunk, and again in the backward, from hidden states and the head's weight.
The head **module** is entered once a forward whatever the number of chunks: back ends that share weights out gather them
in a module's hooks, and ranks whose chunks differ in number would wait for each other for ever.

    log p(t) = z_t - log sum_v exp z_v,   z = W h + b        d log p(t) / dz = onehot(t) - softmax(z)
    log sum_v p(v)^2, without a gradient, where it is asked for

Where processes share the vocabulary out (``compute.tensor_degree``), V is what of it is here.

Shapes: N predicted tokens, n those of a chunk, H hidden size, V vocabulary, S sequences.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from dpo_core.contract.step_memory import CARD_CHUNK_LOGITS
from dpo_core.model.tensor_parallel import TensorShare
from dpo_core.model.tensor_ranks import SharedInput
from dpo_core.model.vocabulary_parts import (
    Scored,
    SharedVocabulary,
    Vocabulary,
    WholeVocabulary,
    logps_from_logits,
    squares_from_logits,
)

CHUNK_LOGITS = 1 << 25  # logits held at once on a CPU: 128 MiB in fp32, and as much again in the backward


class TokenScores(NamedTuple):
    """What the head says of the tokens."""

    logps_N: Tensor  # float32, of the targets
    squares_N: Tensor  # float32, see ``squares_from_logits``; [0] where they were not asked for


def scores_from_logits(logits_NV: Tensor, targets_N: Tensor, squares: bool) -> TokenScores:
    """Return both of logits that are all there."""
    logps_N = logps_from_logits(logits_NV, targets_N)
    return TokenScores(logps_N, squares_from_logits(logits_NV) if squares else logps_N.new_zeros(0))


@dataclass(frozen=True, slots=True)
class LogitRule:
    """What an architecture does to the head's product: z = cap tanh(factor z' / cap)."""

    factor: float = 1.0
    cap: float | None = None

    def __call__(self, product_NV: Tensor) -> Tensor:
        """Return logits of a product; in fp32 at least where there is something to do, as 1 - tanh^2 near 0 has no bits
        in bf16.
        """
        if self == PLAIN:
            return product_NV
        product_NV = product_NV.to(torch.promote_types(product_NV.dtype, torch.float32)) * self.factor
        return product_NV if self.cap is None else torch.tanh(product_NV / self.cap) * self.cap

    def slope(self, slope_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """Return the slope in the product, of the slope in the logits."""
        if self.cap is not None:
            slope_NV = slope_NV * (1 - (logits_NV / self.cap).square())
        return slope_NV if self.factor == 1 else slope_NV * self.factor


PLAIN = LogitRule()
WHOLE: Vocabulary = WholeVocabulary()


@dataclass(frozen=True, slots=True)
class VocabularyHead:
    """A model's output embedding and its rule for logits; see ``vocabulary_head``."""

    projection: nn.Module
    rule: LogitRule

    def target_logps(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        """Return the log-probability of each target given the hidden state that predicts it. -> float32 [N]"""
        return self.token_scores(hidden_NH, targets_N, squares=False).logps_N

    def token_scores(self, hidden_NH: Tensor, targets_N: Tensor, squares: bool) -> TokenScores:
        """Return the log-probability of each target given the hidden state that predicts it, and the squares if asked for.

        Memory does not grow with N x V where the projection is a plain linear layer; of another kind (4 bits, say) all
        logits are made at once.
        """
        projection, device = self.projection, hidden_NH.device.type
        if not isinstance(projection, nn.Linear) or type(projection).forward is not nn.Linear.forward:
            return scores_from_logits(self.rule(projection(hidden_NH)), targets_N, squares)
        autocast = torch.is_autocast_enabled(device)
        share, rows, vocabulary = TensorShare.of(projection), projection.out_features, WHOLE
        if share:
            vocabulary = SharedVocabulary(share.ranks, share.ranks.part(rows)[0])
            rows = share.ranks.largest_part(rows)  # equally many chunks on each process

        def of_weight(hidden_NH: Tensor) -> tuple[Tensor, Tensor]:
            weight_VH, bias_V = projection.weight, projection.bias  # whole inside the module's call alone
            dtype = torch.get_autocast_dtype(device) if autocast else weight_VH.dtype
            chunk = max(1, (CHUNK_LOGITS if device == "cpu" else CARD_CHUNK_LOGITS) // rows)
            how = _How(self.rule, dtype, chunk, torch.is_grad_enabled(), squares, vocabulary)
            if share:
                hidden_NH = SharedInput.apply(hidden_NH, share.ranks)
            return _TargetLogps.apply(hidden_NH, weight_VH, bias_V, targets_N, how)

        with _forward_of(projection, of_weight):
            return TokenScores(*projection(hidden_NH))


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[[Tensor], object]) -> Iterator[None]:
    """Within it a call of the module computes ``forward`` between its hooks."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@dataclass(frozen=True, slots=True)
class _How:
    """``dtype``: of products, as autocast would have it. ``keep``: a backward may follow."""

    rule: LogitRule
    dtype: torch.dtype
    chunk: int
    keep: bool
    squares: bool = False
    vocabulary: Vocabulary = WHOLE

    def logits(self, hidden_nH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
        """Logits [n, V] by a weight that has ``dtype`` already."""
        return self.rule(
            linear(hidden_nH.to(self.dtype), weight_VH, bias_V if bias_V is None else bias_V.to(self.dtype))
        )


class _TargetLogps(torch.autograd.Function):
    """(hidden states, weight, bias) -> log-probabilities and squares; the logits of a single chunk are kept, of several
    made again."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor, how: _How
    ) -> tuple[Tensor, Tensor]:
        """-> float32 [N] each (float64 for float64 weights), the second one [0] where it was not asked for"""
        scored: list[Scored] = []
        with torch.autocast(hidden_NH.device.type, enabled=False):
            weight = weight_VH.to(how.dtype)
            pieces = list(zip(hidden_NH.split(how.chunk), targets_N.split(how.chunk), strict=True))
            for hidden_nH, targets_n in pieces:
                logits_nV = None  # of the chunk before: two would not fit
                logits_nV = how.logits(hidden_nH, weight, bias_V)
                scored.append(how.vocabulary.scores(logits_nV, targets_n, how.squares))
        logps_N, squares_N, normalisers_N = map(torch.cat, zip(*scored, strict=True))
        ctx.mark_non_differentiable(squares_N)
        if how.keep:
            ctx.how = how
            kept_NV = logits_nV if len(pieces) == 1 else None
            ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, logps_N, normalisers_N, kept_NV)
        return logps_N, squares_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, slope_N: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Slopes in hidden states, weight and bias; the weight's is summed over chunks in fp32."""
        hidden_NH, weight_VH, bias_V, targets_N, logps_N, normalisers_N, kept_NV = ctx.saved_tensors
        how, (of_hidden, of_weight, of_bias) = ctx.how, ctx.needs_input_grad[:3]
        by_hidden = torch.empty_like(hidden_NH) if of_hidden else None
        by_weight = _WeightSlope(weight_VH, several=kept_NV is None) if of_weight else None
        by_bias = torch.zeros_like(bias_V, dtype=logps_N.dtype) if of_bias else None
        with torch.autocast(hidden_NH.device.type, enabled=False):
            weight = weight_VH.to(how.dtype)
            for start in range(0, len(targets_N), how.chunk):
                at = slice(start, start + how.chunk)
                logits_nV = how.logits(hidden_NH[at], weight, bias_V) if kept_NV is None else kept_NV
                scored = Scored(logps_N[at], logps_N.new_zeros(0), normalisers_N[at])
                miss_nV = how.vocabulary.misses(logits_nV, targets_N[at], scored)
                miss_nV = how.rule.slope(miss_nV, logits_nV).to(how.dtype)
                del logits_nV
                times_n1 = -slope_N[at, None]
                if by_hidden is not None:
                    torch.mul(miss_nV @ weight, times_n1, out=by_hidden[at])
                if by_weight is not None:
                    by_weight.add(miss_nV.t(), (hidden_NH[at] * times_n1).to(how.dtype))
                if by_bias is not None:
                    by_bias += (miss_nV.to(by_bias.dtype) * times_n1).sum(dim=0)
        return (
            by_hidden,
            None if by_weight is None else by_weight.total,
            None if by_bias is None else by_bias.to(bias_V.dtype),
            None,
            None,
        )


class _WeightSlope:
    """The sum over chunks of products [V, n] x [n, H]."""

    def __init__(self, weight_VH: Tensor, several: bool) -> None:
        """A single product needs no sum, and is no more exact in fp32."""
        self.weight = weight_VH
        exact = torch.promote_types(weight_VH.dtype, torch.float32)
        self.sum_VH = torch.zeros_like(weight_VH, dtype=exact) if several else None

    def add(self, left_Vn: Tensor, right_nH: Tensor) -> None:
        """Add a product in its own dtype; the sum is fp32."""
        if self.sum_VH is None:
            self.sum_VH = left_Vn @ right_nH
        elif left_Vn.dtype == self.sum_VH.dtype:
            self.sum_VH.addmm_(left_Vn, right_nH)
        elif (
            left_Vn.is_cuda
        ):  # the product's own sums are fp32, and they are not rounded before they are added
            torch.addmm(self.sum_VH, left_Vn, right_nH, out_dtype=self.sum_VH.dtype, out=self.sum_VH)
        else:
            self.sum_VH += left_Vn @ right_nH

    @property
    def total(self) -> Tensor:
        """In the weight's dtype."""
        return torch.zeros_like(self.weight) if self.sum_VH is None else self.sum_VH.to(self.weight.dtype)


def sum_by_sequence(logps_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """Sum token log-probabilities of each sequence. -> float32 [S]"""
    return logps_N.new_zeros(num_sequences).index_add(0, sequence_N, logps_N)
