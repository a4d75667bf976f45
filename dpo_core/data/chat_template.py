"""Conversations rendered to text in batches, with the chat template that a tokenizer carries."""

import hashlib
import json
import logging
import re
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, cast

from dpo_core.contract.errors import CheckpointError
from dpo_core.data import template_clock, turn_forms
from dpo_core.data.messages import NOTHING_ELSE, OTHER_ROLES, PLAIN_ROLES
from dpo_core.data.render_limits import (
    LIMITS,
    SHORT_CHARACTERS,
    Over,
    Refused,
    Rendered,
    RenderLimits,
    TimeIsUp,
)
from dpo_core.data.template_fields import message_fields

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from transformers import PreTrainedTokenizerBase


log = logging.getLogger(__name__)


def template_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the template as one string; several templates under names become JSON of them."""
    template = tokenizer.chat_template
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def template_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return SHA-256 (hex) of the template's text."""
    return hashlib.sha256(template_text(tokenizer).encode()).hexdigest()


def _environment() -> "Environment":
    """The library's sandbox for templates, a little quicker.

    The sandbox looks up what an attribute may do each time; for the counters of a loop, of which every template asks and
    which are plain values, the answer is known. That is a third of the time of a rendering.

    Raises ``ImportError`` or ``AttributeError`` with a version of transformers that compiles templates elsewhere: what is
    imported here is not among the names it promises to keep.
    """
    from jinja2.runtime import LoopContext
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template("").environment.overlay()  # shares filters, globals and extensions

    class KnowsLoops(type(environment)):  # type: ignore[misc]  # which class that is transformers decides
        def getattr(self, obj: object, attribute: str) -> object:
            if type(obj) is LoopContext and attribute in ("first", "last", "index", "index0"):
                return getattr(obj, attribute)
            return super().getattr(obj, attribute)

    environment.__class__ = KnowsLoops
    return environment


def _compiled(environment: "Environment", text: str) -> "Template":
    template = environment.from_string(text)
    template.globals = dict(
        template.globals
    )  # every rendering copies them, from a chain of mappings three times as slowly
    return template


class Renderer:
    """Renders conversations with a tokenizer's template, within limits (``render_limits``). A conversation that the template
    refuses becomes ``Refused``, one that it goes over its limits with ``Over.LIMITS``."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", day: date | None = None) -> None:
        self.tokenizer, self.limits = tokenizer, RenderLimits()
        self._named_roles: dict[str, bool] = {}
        text = template_text(tokenizer)
        self.clock = template_clock.clock(text, day)
        self.renders_tools = "tools" in text
        self.unread_calls = turn_forms.unread(text, "tool_calls", "function_calls")
        self.unread_tools = turn_forms.unread(text, "functions", "tools")
        self.opens_turn = (
            "add_generation_prompt" in text
        )  # else a prompt's rendering lacks the assistant's header

    @cached_property
    def _template(self) -> "Template | None":
        try:
            environment = _environment()
        except (ImportError, AttributeError) as error:
            log.warning(
                "Templates are rendered by transformers itself, about half as fast, as its compiler of templates "
                "has moved: %s",
                error,
            )
            return None
        template = self.limits.run(
            _compiled, environment, self.tokenizer.get_chat_template()
        )  # constants are computed here
        if isinstance(template, Over):
            raise CheckpointError(
                f"The chat template goes over its limits while it is compiled: {LIMITS}. Choose another "
                "one (checkpoint.chat_template)."
            )
        return template

    @cached_property
    def message_fields(self) -> frozenset[str]:
        """What the template reads of a message, and ``role=word`` for words of a result's role that it knows."""
        try:
            read = message_fields(_environment().parse(self.tokenizer.get_chat_template()))
            return read | {f"role={word}" for word in OTHER_ROLES if self._names_role(word)}
        except Exception:  # no template, or one that renders nothing either, of which each row says why
            return NOTHING_ELSE

    def leaves_unnamed(self, turns: list[dict]) -> bool:
        """Return whether a turn has a role that the template does not name, though it names that of tools' results."""
        roles = {turn["role"] for turn in turns} - PLAIN_ROLES
        return bool(roles) and self._names_role("tool") and not all(map(self._names_role, roles))

    def _names_role(self, word: str) -> bool:
        """Whether the template's text quotes a role's word, or the tokenizer has a token of it."""
        if word not in self._named_roles:
            quoted = re.search(rf"['\"]{re.escape(word)}['\"]", template_text(self.tokenizer)) is not None
            self._named_roles[word] = quoted or f"<|{word}|>" in self.tokenizer.get_added_vocab()
        return self._named_roles[word]

    @cached_property
    def _names(self) -> dict:
        return {"tools": None, "documents": None, **self.clock, **self.tokenizer.special_tokens_map}

    def render(
        self,
        conversations: list[list[dict]],
        tools: list[list[dict] | None],
        open_turn: bool = False,
        arguments: list[dict] | None = None,
    ) -> list[Rendered]:
        """Return text of each conversation, with the assistant's header at the end for ``open_turn``. ``arguments``: further
        variables of the template, for each conversation its own (``enable_thinking``).

        Raises ``CheckpointError`` for a template that goes over its limits again and again.
        """
        with self.limits.batch():
            return [
                self.render_by_library(turns, of_turns, open_turn, given)
                if of_turns or not turn_forms.is_plain(turns)
                else self._render_plain(turns, open_turn, given)
                for turns, of_turns, given in zip(
                    conversations, tools, arguments or [{}] * len(conversations), strict=True
                )
            ]

    def _render_plain(self, turns: list[dict], open_turn: bool, arguments: dict) -> Rendered:
        """What ``render_by_library`` gives for turns of a role and a text, without the steps that such turns pass
        unchanged."""
        limits = self.limits
        try:
            template = self._template
            if template is None:
                return self.render_by_library(turns, None, open_turn, arguments)
            limits.number += 1  # what limits.render does, without its calls: 1 us of 15
            try:
                context = template.new_context(
                    {**self._names, **arguments, "messages": turns, "add_generation_prompt": open_turn}
                )
                text = "".join(template.root_render_func(context))
            finally:
                limits.number += 1
            return text if len(text) < SHORT_CHARACTERS else limits.admitted(text)
        except (TimeIsUp, MemoryError):
            return limits.over()
        except CheckpointError:
            raise
        except Exception as error:  # raise_exception, undefined names, type errors: the template's own code
            return Refused.by(error)

    def render_by_library(
        self, turns: list[dict], tools: list[dict] | None, open_turn: bool, arguments: dict | None = None
    ) -> Rendered:
        """Return text of one conversation, by transformers alone: the slow twin.

        Objects that the template cannot take, or writes in Python's spelling, are tried as JSON text.
        """
        prepared = self._prepare(turns)
        text = self._by_library(prepared, tools, open_turn, arguments or {})
        if isinstance(text, Over) or not turn_forms.objects_of(prepared):
            return text
        if isinstance(text, str) and not turn_forms.prints_objects(text, prepared):
            return text
        other = self._by_library(turn_forms.with_json_text(prepared), tools, open_turn, arguments or {})
        return other if isinstance(other, str) else text

    def _by_library(
        self, turns: list[dict], tools: list[dict] | None, open_turn: bool, arguments: dict
    ) -> Rendered:
        def text_of(prepared: list[dict]) -> str:
            texts = self.tokenizer.apply_chat_template(
                [prepared],
                tools=None if tools is None else [*tools],
                tokenize=False,
                add_generation_prompt=open_turn,
                **arguments,
            )
            return cast(list[str], texts)[0]  # as many as conversations, and no ids without tokenize

        try:
            with self.limits.batch(), template_clock.in_library(self._texts(), self.clock):
                return self.limits.render(text_of, turns)
        except CheckpointError:
            raise
        except Exception as error:  # as above
            return Refused.by(error)

    def _texts(self) -> list[str]:
        texts = self.tokenizer.chat_template
        return list(texts.values()) if isinstance(texts, dict) else [texts]

    def _prepare(self, turns: list[dict]) -> list[dict]:
        """Calls become text for a template that knows none, so that they are not left out."""
        for field in self.unread_calls:
            turns = [turn_forms.calls_as_text(turn, field) if turn.get(field) else turn for turn in turns]
        return turns

    def leaves_out_tools(self, turns: list[dict], tools: list[dict] | None) -> bool:
        """Return whether tools of the row, or of its turns, are nothing that the template reads."""
        if tools and not self.renders_tools:
            return True
        return any(len(turn) > 2 and any(map(turn.get, self.unread_tools)) for turn in turns)
