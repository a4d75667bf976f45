"""Preference pairs -> token ids and label masks, in batches.

A side is rendered whole, and its ids are those of the whole text. Which tokens carry the loss is decided in the text:
a turn's trained part begins where the rendering of everything before it, with the assistant's header opened, ends
(header masked), and ends where the rendering up to and including it ends (turn-closing tokens trained), as
open-instruct's ``last_turn_tulu_tokenize_and_truncate_v1`` does by token counts. A token that begins inside is trained.

Shapes: T tokens of one sequence.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from dpo_core.contract.drops import DropReason, RowDropped
from dpo_core.contract.errors import CheckpointError
from dpo_core.data.chat_template import Renderer
from dpo_core.data.encode import EncodedText, Encoder
from dpo_core.data.pairs import PreferencePair
from dpo_core.data.render_limits import Over

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands in for an answer where a template's prompt rendering is no prefix of the whole: unlikely in any real text.
SENTINEL = "\ue000answer\ue001"


@dataclass(frozen=True, slots=True)
class Span:
    """Trained characters [start, end) of a rendering, to its end where ``end`` is None. ``exact_start`` False: a token
    that reaches over the start counts as trained, because the header's own end is unknown."""

    start: int
    end: int | None
    exact_start: bool = True


@dataclass(frozen=True, slots=True)
class TokenizedSide:
    ids: np.ndarray  # int32 [T]
    trained: np.ndarray  # bool [T]
    truncated: bool


@dataclass(frozen=True, slots=True)
class TokenizeRules:
    """How sequences are cut and labelled; see ``DataConfig``."""

    max_length_tokens: int
    when_too_long: Literal["truncate", "drop"] = "truncate"
    train_on: Literal["last_turn", "all_turns"] = "last_turn"
    num_rows: int | None = None  # of the model's embedding, where the tokenizer has ids beyond them


class PairTokenizer:
    """Tokenises pairs by ``rules`` with the tokenizer's chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", rules: TokenizeRules) -> None:
        self.tokenizer, self.rules = tokenizer, rules
        self.renderer, self.encoder = Renderer(tokenizer), Encoder(tokenizer)

    def prompt_texts(self, pairs: list[PreferencePair]) -> list[str | Over | None]:
        """Return the prompts with the assistant's turn opened: what a model would be asked to continue."""
        return self.renderer.render(
            [pair.prompt for pair in pairs], [pair.tools for pair in pairs], open_turn=True
        )

    def prompt_ids(self, pairs: list[PreferencePair]) -> list[np.ndarray]:
        """Return token ids int32 [T] of the prompts with the assistant's turn opened, for pairs that could be
        tokenised.
        """
        texts = self.prompt_texts(pairs)
        rendered = [text for text in texts if isinstance(text, str)]
        if len(rendered) < len(texts):
            raise CheckpointError(
                "The chat template renders a conversation that it refuses the next time. Choose another "
                "one (checkpoint.chat_template)."
            )
        return [text.ids for text in self.encoder.encode(rendered)]

    def __call__(self, pairs: list[PreferencePair]) -> list[tuple[TokenizedSide, TokenizedSide] | DropReason]:
        """Return chosen and rejected side of each pair, or why the pair is dropped."""
        results: list[tuple[TokenizedSide, TokenizedSide] | DropReason] = ["template_error"] * len(pairs)
        prompts, rendered = self._rendered(pairs)
        usable: list[tuple[int, list[list[Span]]]] = []
        texts: list[tuple[str, str]] = []
        opened: list[str] = []
        for i, pair in enumerate(pairs):
            chosen, rejected, prompt = rendered[0][i], rendered[1][i], prompts[i]
            if pair.tools and not self.renderer.renders_tools:
                results[i] = "template_without_tools"
            elif isinstance(chosen, Over) or isinstance(rejected, Over) or isinstance(prompt, Over):
                results[i] = "over_limits"
            elif chosen is not None and rejected is not None and prompt is not None:
                try:
                    spans = [
                        self._spans(pair, pair.chosen, chosen, prompt),
                        self._spans(pair, pair.rejected, rejected, prompt),
                    ]
                except RowDropped as dropped:
                    results[i] = dropped.reason
                    continue
                if all(spans):
                    usable.append((i, spans))
                    texts.append((chosen, rejected))
                    opened.append(prompt)
        encoded = self.encoder.encode_pairs(texts, opened)
        for (i, spans), sides in zip(usable, encoded, strict=True):
            results[i] = self._label(sides, spans)
        return results

    # ------------------------------------------------------------------------------------------------------- the text

    def _rendered(
        self, pairs: list[PreferencePair]
    ) -> tuple[list[str | Over | None], list[list[str | Over | None]]]:
        """The prompts, and the chosen and rejected sides. A row whose limits are used up is rendered no further."""
        prompts = self.prompt_texts(pairs)
        sides, over = [], [text is Over.LIMITS for text in prompts]
        for turns in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs]):
            within = [i for i, is_over in enumerate(over) if not is_over]
            made = self.renderer.render([turns[i] for i in within], [pairs[i].tools for i in within])
            texts: list[str | Over | None] = [Over.LIMITS] * len(pairs)
            for i, text in zip(within, made, strict=True):
                texts[i], over[i] = text, text is Over.LIMITS
            sides.append(texts)
        return prompts, sides

    def _render_one(self, turns: list[dict], tools: list[dict] | None, open_turn: bool = False) -> str | None:
        text = self.renderer.render([turns], [tools], open_turn)[0]
        if isinstance(text, Over):
            raise RowDropped(text.value)
        return text

    def _spans(self, pair: PreferencePair, turns: list[dict], text: str, prompt: str | None) -> list[Span]:
        """Trained spans of one rendered side; empty if the turns cannot be told apart."""
        last = len(turns) - 1
        spans = []
        if self.rules.train_on == "all_turns":
            earlier = [index for index, turn in enumerate(turns[:-1]) if turn["role"] == "assistant"]
            for index in earlier:
                opened, closed = self._turn_edges(turns, index, pair.tools)
                start = self._start(turns, index, text, opened, pair.tools)
                if start is None or closed is None or not text.startswith(closed):
                    return []
                spans.append(Span(start[0], len(closed), start[1]))
        start = self._start(turns, last, text, prompt, pair.tools)
        return [*spans, Span(start[0], None, start[1])] if start is not None else []

    def _turn_edges(
        self, turns: list[dict], index: int, tools: list[dict] | None
    ) -> tuple[str | None, str | None]:
        opened = self._render_one(turns[:index], tools, open_turn=True) if index else None
        return opened, self._render_one(turns[: index + 1], tools)

    def _start(
        self, turns: list[dict], index: int, text: str, opened: str | None, tools: list[dict] | None
    ) -> tuple[int, bool] | None:
        """Where the trained text of turn ``index`` begins and whether that is a header's exact end."""
        if self.renderer.opens_turn and opened is not None and text.startswith(opened):
            return len(opened), True
        # The template opens a turn differently for a prompt (or not at all): find where the turn's content begins by
        # rendering another content in its place. Calls of tools have no content to replace.
        if "tool_calls" in turns[index]:
            return None
        marked = [*turns[:index], {**turns[index], "content": SENTINEL}, *turns[index + 1 :]]
        with_sentinel = self._render_one(marked, tools)
        if with_sentinel is None or SENTINEL not in with_sentinel:
            return None
        header = with_sentinel[: with_sentinel.index(SENTINEL)]
        return (len(header), False) if text.startswith(header) else None

    # ----------------------------------------------------------------------------------------------------- the tokens

    def _label(
        self, encoded: tuple[EncodedText, EncodedText], spans: list[list[Span]]
    ) -> tuple[TokenizedSide, TokenizedSide] | DropReason:
        """Both sides of a pair, labelled and cut. A side must keep a token of its last turn: labels of earlier turns
        are the same on both sides and prefer neither."""
        limit, sides, has_answer = self.rules.max_length_tokens, [], True
        for text, side_spans in zip(encoded, spans, strict=True):
            length = len(text.ids)
            if self.rules.num_rows is not None and (text.ids[:limit] >= self.rules.num_rows).any():
                return "token_without_row"
            trained = np.zeros(length, dtype=bool)
            for span in side_spans:
                start = text.token_at(span.start, span.exact_start)
                end = length if span.end is None else text.token_at(span.end)
                trained[start:end] = True
            if length > limit and self.rules.when_too_long == "drop":
                return "too_long"
            has_answer &= start < min(end, limit)  # of the last span
            sides.append(TokenizedSide(text.ids[:limit], trained[:limit], truncated=length > limit))
        if not has_answer:
            return "no_label_left"
        # The answers differ as text; as inputs of a model they need not, and then the loss is ln 2 whatever it learns.
        return (sides[0], sides[1]) if not np.array_equal(sides[0].ids, sides[1].ids) else "identical_tokens"
