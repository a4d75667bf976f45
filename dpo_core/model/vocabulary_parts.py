"""The vocabulary of a head: all of it here, or a part on each of the processes that compute together.

Of logits z that lie on several processes, log p(t) = z_t - log sum_v exp z_v takes the largest logit, and three sums, from
all of them; the slope in a process's own logits needs nothing of the others any more.

Shapes: n tokens of a chunk, V tokens of the vocabulary that are here.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dpo_core.model.tensor_ranks import TensorRanks


class Scored(NamedTuple):
    """Float32 [n] each (float64 for float64 logits); [0] where it was not asked for or is not needed."""

    logps: Tensor
    squares: Tensor  # log sum_v p(v)^2
    normalisers: Tensor  # log sum_v exp z_v


class Vocabulary(Protocol):
    """How log-probabilities and their slopes come from the logits that are here."""

    def scores(self, logits_nV: Tensor, targets_n: Tensor, squares: bool) -> Scored:
        """Return the targets' log-probabilities."""
        ...

    def misses(self, logits_nV: Tensor, targets_n: Tensor, scored: Scored) -> Tensor:
        """Return softmax(z) - onehot(t) of the logits that are here, in their dtype: minus the slope of log p(t)."""
        ...


def logps_from_logits(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return log softmax(logits)[target], computed in fp32 at least. -> float32 [N]"""
    exact = torch.promote_types(logits_NV.dtype, torch.float32)
    return -cross_entropy(logits_NV.to(exact), targets_N, reduction="none")


@torch.no_grad()
def squares_from_logits(logits_NV: Tensor) -> Tensor:
    """Return log sum_v p(v)^2 of p = softmax(logits), in fp32 at least: the log of the probability that a token drawn from p
    has on average. -> float32 [N]"""
    exact = torch.promote_types(logits_NV.dtype, torch.float32)
    return logits_NV.log_softmax(dim=-1, dtype=exact).mul_(2).logsumexp(dim=-1)


@dataclass(frozen=True, slots=True)
class WholeVocabulary:
    """See ``Vocabulary``."""

    def scores(self, logits_nV: Tensor, targets_n: Tensor, squares: bool) -> Scored:
        logps_n = logps_from_logits(logits_nV, targets_n)
        nothing = logps_n.new_zeros(0)
        return Scored(logps_n, squares_from_logits(logits_nV) if squares else nothing, nothing)

    def misses(self, logits_nV: Tensor, targets_n: Tensor, scored: Scored) -> Tensor:
        # At the target 1 - p is exact, however near p is to 1.
        miss_nV = logits_nV.softmax(dim=-1)
        return miss_nV.scatter_(1, targets_n[:, None], torch.expm1(scored.logps[:, None]).to(miss_nV.dtype))


@dataclass(frozen=True, slots=True)
class SharedVocabulary:
    """See ``Vocabulary``. All processes have the same tokens and call it together."""

    ranks: TensorRanks
    first: int  # of the tokens that are here

    def scores(self, logits_nV: Tensor, targets_n: Tensor, squares: bool) -> Scored:
        exact = logits_nV.to(torch.promote_types(logits_nV.dtype, torch.float32))
        largest_n = self.ranks.largest(exact.amax(dim=-1))
        above_nV = (exact - largest_n[:, None]).exp_()
        own_n, place_n = self._places(targets_n, logits_nV.shape[1])
        sums = [above_nV.sum(dim=-1), torch.where(own_n, exact.gather(1, place_n[:, None])[:, 0], 0)]
        sums += [above_nV.square_().sum(dim=-1)] if squares else []
        total_n, target_n, *square_n = self.ranks.sum(torch.stack(sums))
        normaliser_n = largest_n + total_n.log()
        squares_n = square_n[0].log() - 2 * total_n.log() if squares else target_n.new_zeros(0)
        return Scored(target_n - normaliser_n, squares_n, normaliser_n)

    def misses(self, logits_nV: Tensor, targets_n: Tensor, scored: Scored) -> Tensor:
        miss_nV = (logits_nV - scored.normalisers[:, None]).exp_().to(logits_nV.dtype)
        own_n, place_n = self._places(targets_n, logits_nV.shape[1])
        at_target_n1 = torch.expm1(scored.logps[:, None]).to(miss_nV.dtype)
        kept_n1 = miss_nV.gather(1, place_n[:, None])
        return miss_nV.scatter_(1, place_n[:, None], torch.where(own_n[:, None], at_target_n1, kept_n1))

    def _places(self, targets_n: Tensor, num_here: int) -> tuple[Tensor, Tensor]:
        """Which targets are here, and where; 0 for the others."""
        place_n = targets_n - self.first
        own_n = (place_n >= 0) & (place_n < num_here)
        return own_n, torch.where(own_n, place_n, 0)
