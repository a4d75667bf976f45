"""What a judge is: it forms an opinion on each pair of answers, and keeps what it said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dpo_core.contract.jobs import AnswerPair
from dpo_core.contract.judgement import Opinion


@dataclass(frozen=True, slots=True)
class Session:
    """What came of judging. ``said``: by pair, what a reader may want to see of how the judge came to it."""

    opinions: tuple[Opinion, ...]
    said: tuple[list[str], ...]
    asked: int  # scores or questions that were not kept from earlier
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Judge(Protocol):
    """A reward model, or a model that is asked."""

    def judge(self, answers: Sequence[AnswerPair]) -> Session:
        """Give an opinion on each pair, in their order."""
        ...
