"""Conversations and pairs on which our templates are held against open-instruct's."""

import hashlib
import json
from pathlib import Path

from dpo_core.data.formats import to_pair
from dpo_core.data.pairs import PreferencePair

QUICKSTART = Path(__file__).parents[3] / "recipes" / "quickstart" / "preferences.jsonl"
NUM_PAIRS = 500
ROLES = ("system", "user", "assistant", "user", "assistant")
TEXTS = (
    ("S", "a", "b", "c", "d"),
    ("S\n", " a\n", "\nb<think>x</think>\n\ny ", "c{{x}}", "<think>d</think>e"),
    ("", "<think>", "</think>", "'q'", "\\n\t\\\\boxed{}"),
)


def plain_conversations() -> list[list[dict]]:
    """Turns of a role and a text: with a system turn and without, one answer and two, closed and open."""
    made = []
    for texts in TEXTS:
        turns = [{"role": role, "content": text} for role, text in zip(ROLES, texts, strict=True)]
        made += [turns[start:end] for start in (0, 1) for end in (2, 3, 4, 5)]
    return made


def function_conversations() -> list[list[dict]]:
    """Turns with Ai2's functions, calls of them and what they gave."""
    system, user = {"role": "system", "content": "S"}, {"role": "user", "content": "a"}
    call = {"role": "assistant", "content": "b", "function_calls": "f(x=1)"}
    result, answer = {"role": "environment", "content": "42"}, {"role": "assistant", "content": "c"}
    offered = {"functions": '[{"name": "f"}]'}
    return [
        [{**system, **offered}, user, call, result, answer],
        [{**user, **offered}, call, result, answer],
        [{**user, **offered}, call],
    ]


def pairs() -> list[PreferencePair]:
    """Real rows, one of them also as a second turn, with a system turn, and with answers that think first."""
    made = [to_pair(json.loads(line))[1] for line in QUICKSTART.read_text().splitlines()[:5]]
    first = made[0]
    earlier = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello!\n"},
        {"role": "assistant", "content": "<think>A greeting.</think>\n\nHello to you."},
    ]
    return [
        *made,
        _changed(first, earlier, ""),
        _changed(first, [], "<think>"),
        _changed(first, earlier, "<think>\n"),
    ]


def many_pairs() -> list[PreferencePair]:
    """500 pairs of real texts: all rows of the quickstart, and some again as a second turn behind another row's question and
    answer, a third of those with answers that think first, a third that do so on a line of its own."""
    rows = [to_pair(json.loads(line))[1] for line in QUICKSTART.read_text().splitlines()]
    made = list(rows)
    for number in range(NUM_PAIRS - len(rows)):
        thought = ("", "<think>", "<think>\n")[number % 3]
        made.append(_changed(rows[number], rows[-1 - number].chosen, thought))
    return made


def sha(value: object) -> str:
    """Short hash of what JSON can write."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _changed(pair: PreferencePair, before: list[dict], thought: str) -> PreferencePair:
    prompt = [*before, *pair.prompt]
    chosen, rejected = (
        [*prompt, {"role": "assistant", "content": thought + side[-1]["content"]}]
        for side in (pair.chosen, pair.rejected)
    )
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected)
