"""What an objective sees of a pair: sums of log-probabilities and counts of tokens. Shapes: B pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Sums of log-probabilities over the trained tokens of each side, and how many tokens that are. All float [B].

    A tail is the part of a sum that lies beyond the other side's length: over the trained tokens after the first
    min(chosen_tokens, rejected_tokens). It is 0 on the shorter side.

    ``*_squares_B``, which WPO's weights alone need and ``PairScorer`` computes where it is told to: sums over the trained
    tokens of log sum_v p(v)^2, the log of the probability that the policy expects of a token that it draws itself.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    chosen_tail_B: Tensor
    rejected_tail_B: Tensor
    chosen_squares_B: Tensor | None = None
    rejected_squares_B: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are there."""
        return tuple(name for name in self.__slots__ if getattr(self, name) is not None)

    def each(self, change: Callable[[Tensor], Tensor]) -> "PairLogps":
        """Return the same with every field as ``change`` gives it."""
        return PairLogps(**{name: change(getattr(self, name)) for name in self.names})

    @classmethod
    def joined(cls, parts: "Sequence[PairLogps]") -> "PairLogps":
        """Return the pairs of all parts, which have the same fields, behind each other."""
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0].names})

    def __getitem__(self, places: Tensor | slice) -> "PairLogps":
        """Some of the pairs."""
        return self.each(lambda field_B: field_B[places])

    def per_token(self) -> "PairLogps":
        """Return the same with means per token in place of sums (token counts become one)."""
        one = torch.ones_like(self.chosen_tokens_B)
        return PairLogps(
            self.chosen_B / self.chosen_tokens_B,
            self.rejected_B / self.rejected_tokens_B,
            one,
            one,
            self.chosen_tail_B / self.chosen_tokens_B,
            self.rejected_tail_B / self.rejected_tokens_B,
            None if self.chosen_squares_B is None else self.chosen_squares_B / self.chosen_tokens_B,
            None if self.rejected_squares_B is None else self.rejected_squares_B / self.rejected_tokens_B,
        )


def policy_weights(policy: PairLogps) -> Tensor:
    """Return how likely the policy finds a pair's answers beside answers of its own, detached. [B]

    The exponential of the mean over tokens of log p(t) - log sum_v p(v)^2, of both answers multiplied (Zhou et al. 2024,
    arXiv 2406.11827, eq. 2 with the sampled alignment of its section 3.2): 1 for what the policy expects of itself.
    """
    mean = policy.per_token()
    if mean.chosen_squares_B is None or mean.rejected_squares_B is None:
        raise AssertionError("scored without squares: PairScorer.with_squares is off")
    return torch.exp(
        mean.chosen_B - mean.chosen_squares_B + mean.rejected_B - mean.rejected_squares_B
    ).detach()
