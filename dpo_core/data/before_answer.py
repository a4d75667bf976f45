"""What a chat template leaves out of that which stands before an answer: turns, parts of turns, tools.

What the rows say is looked for in the rendered text, letter by letter, which finds it in nearly all of them. Where it does
not, a text that stands for the turn's tells whether the template writes it at all, and where.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from dpo_core.contract.drops import RowDropped
from dpo_core.data.left_out import left_out
from dpo_core.data.pairs import PreferencePair

if TYPE_CHECKING:
    from dpo_core.data.chat_template import Renderer

# Stands in for what a turn says: unlikely in any real text, and without a case, for templates that change it.
SENTINEL = "\ue000\ue5a7\ue001"
END_OF_THOUGHT = "</think>"


class BeforeAnswer:
    """Looks at pairs as a tokenizer's template renders them."""

    def __init__(self, renderer: "Renderer") -> None:
        self.renderer = renderer

    @cached_property
    def _unwritten_roles(self) -> frozenset[str]:
        """Roles of a prompt whose turns the template takes without writing anything of their text."""
        said = {"role": "user", "content": SENTINEL}
        probes = {"user": [said], "system": [{**said, "role": "system"}, {**said, "content": "hello"}]}
        texts = self.renderer.render(list(probes.values()), [None, None], open_turn=True)
        found = zip(probes, texts, strict=True)
        return frozenset(role for role, text in found if isinstance(text, str) and SENTINEL not in text)

    def is_left_out(self, pair: PreferencePair, text: str, start: int) -> bool:
        """Return whether the template leaves out a turn of the prompt, or a part of one, in ``text``, which is that of
        the chosen side with the answer's beginning at ``start``. Thoughts of earlier turns may be left out.

        Raises ``RowDropped`` for one that is written behind the answer.
        """
        roles, context = self._unwritten_roles, text[:start]
        if roles and any(turn["role"] in roles and turn["content"].strip() for turn in pair.prompt):
            return True
        return any(
            self._is_missing(pair, number, text, start)
            for number, turn in enumerate(pair.prompt)
            if (len(turn) > 2 or turn["content"] not in context)
            and not all(said in context for said in _said_by(turn))
        )

    def _is_missing(self, pair: PreferencePair, number: int, text: str, start: int) -> bool:
        turn = pair.prompt[number]
        bare = text[:start].casefold()
        if any(call["function"]["name"].casefold() not in bare for call in turn.get("tool_calls", ())):
            return True
        turns = [*pair.chosen]
        turns[number] = {**turn, "content": SENTINEL}
        other = self.renderer.render([turns], [pair.tools], False, [pair.template_kwargs])[0]
        if not isinstance(other, str):  # a template that looks into the text: letters alone can be counted
            other = SENTINEL
        elif SENTINEL not in other:
            return bool(_content(turn))
        elif other.startswith(text[:start]):
            raise RowDropped("template_error", "it writes a turn of the prompt behind the answer")
        said = {"role": turn["role"], "content": _content(turn)}
        return left_out(said, text, other.replace(SENTINEL, "")) != "nothing"

    def leaves_out_tools(self, pair: PreferencePair, prompt: str) -> bool:
        """Return whether the template, which knows tools, writes nothing of the pair's in this prompt: it may do so in a
        system turn alone, which the conversation lacks."""
        if not pair.tools:
            return False
        said, text = json.dumps(pair.prompt, ensure_ascii=False).casefold(), prompt.casefold()
        names = [name.casefold() for name in map(_name_of, pair.tools) if name]
        if any(name not in text for name in names):
            return True
        if names and all(text.count(name) > said.count(name) for name in names):
            return False
        return self.renderer.render([pair.prompt], [None], True, [pair.template_kwargs])[0] == prompt


def _content(turn: dict) -> str:
    """What a turn says that every template should write: of the assistant's, what follows its thought."""
    content = turn["content"]
    return (content.rpartition(END_OF_THOUGHT)[2] if turn["role"] == "assistant" else content).strip()


def _said_by(turn: dict) -> Iterator[str]:
    yield _content(turn)
    if len(turn) > 2:
        yield from (call["function"]["name"] for call in turn.get("tool_calls", ()))


def _name_of(tool: dict) -> str | None:
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
