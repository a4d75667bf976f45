"""The values that flow from rows to batches. Shapes: T tokens of one sequence."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

SHORTEST_REPEATED = 20  # characters: "Why?" may well begin two answers


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One row in canonical form: message lists ending in the assistant's answer.

    ``prompt`` is the conversation before the last assistant turn; ``chosen`` and ``rejected`` are whole conversations,
    prompt included. A message is ``{"role": ..., "content": ..., ...}``. ``constraints`` are the verifiable
    instructions of the prompt (``dpo_core.data.checkers``), empty where the row has none. ``template_kwargs`` are further
    variables for the chat template. ``has_replaced`` tells whether halves of characters were replaced,
    ``prompt_passed_by`` whether a column of what comes before the answers says what does not stand there.
    """

    prompt: list[dict]
    chosen: list[dict]
    rejected: list[dict]
    tools: list[dict] | None = None
    constraints: tuple[dict, ...] = ()
    template_kwargs: dict = field(default_factory=dict)
    has_replaced: bool = False
    prompt_passed_by: bool = False


def readable_prompt(pair: PreferencePair) -> str:
    """Return the user's last message, or the last turn that says something."""
    users = [turn["content"] for turn in pair.prompt if turn["role"] == "user" and turn["content"].strip()]
    return (
        users[-1]
        if users
        else next((turn["content"] for turn in reversed(pair.prompt) if turn["content"]), "")
    )


def repeats_prompt(pair: PreferencePair) -> bool:
    """Return whether both answers begin with all that the turn before them says: whole texts, where answers are meant."""
    asked = pair.prompt[-1]["content"].strip() if pair.prompt else ""
    answers = (side[-1]["content"].lstrip() for side in (pair.chosen, pair.rejected))
    return len(asked) >= SHORTEST_REPEATED and all(answer.startswith(asked) for answer in answers)


class RowMarks(NamedTuple):
    """What is counted of kept rows, each in a column of the pool: see ``SourceLedger``."""

    truncated: bool = False
    left_out: bool = False
    prompt_left_out: bool = False
    replaced: bool = False
    prompt_passed_by: bool = False
    prompt_repeated: bool = False
    unnamed_role: bool = False


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """A pair as token ids, each side tokenised whole. ``*_trained[t]`` tells whether token t carries the loss."""

    row_key: str  # content key of the row (hex): hash of the four arrays
    chosen_ids: np.ndarray  # int32 [T]
    chosen_trained: np.ndarray  # bool [T]
    rejected_ids: np.ndarray  # int32 [T]
    rejected_trained: np.ndarray  # bool [T]
