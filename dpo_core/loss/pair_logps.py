"""What an objective sees of a pair: sums of log-probabilities and counts of tokens. Shapes: B pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Sums of log-probabilities over the trained tokens of each side, and how many tokens that are. All float [B].

    A tail is the part of a sum that lies beyond the other side's length: over the trained tokens after the first
    min(chosen_tokens, rejected_tokens). It is 0 on the shorter side.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    chosen_tail_B: Tensor
    rejected_tail_B: Tensor

    def __getitem__(self, places: Tensor | slice) -> "PairLogps":
        """Some of the pairs."""
        return PairLogps(*(getattr(self, name)[places] for name in self.__slots__))

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
        )
