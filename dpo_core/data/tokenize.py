"""Preference pairs -> token ids and label masks, in batches.

A side is rendered whole, and its ids are those of the whole text. Which tokens carry the loss is decided in the text:
a turn's trained part begins where the rendering of everything before it, with the assistant's header opened, ends
(header masked), and ends where the rendering up to and including it ends (turn-closing tokens trained), as
open-instruct's ``last_turn_tulu_tokenize_and_truncate_v1`` does by token counts. A token that begins inside is trained.

Shapes: T tokens of one sequence.
"""

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from dpo_core.contract.drops import RowDropped
from dpo_core.contract.errors import CheckpointError
from dpo_core.data.before_answer import SENTINEL, BeforeAnswer
from dpo_core.data.chat_template import Renderer
from dpo_core.data.encode import EncodedText, Encoder
from dpo_core.data.left_out import is_all_there, left_out
from dpo_core.data.pairs import PreferencePair
from dpo_core.data.render_limits import Over, Refused, Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_TOLD_APART = RowDropped(
    "template_error", "a prompt's rendering is not how the whole begins, so its turns cannot be told apart"
)


class Span(NamedTuple):
    """Trained characters [start, end) of a rendering, to its end where ``end`` is None. ``exact_start`` False: a token
    that reaches over the start counts as trained, because the header's own end is unknown."""

    start: int
    end: int | None
    exact_start: bool = True


class TokenizedSide(NamedTuple):
    ids: np.ndarray  # int32 [T]
    trained: np.ndarray  # bool [T]
    truncated: bool
    left_out: bool = False  # the template leaves out a part of the answer
    prompt_left_out: bool = False  # ... or of the prompt
    # Tokens of what stands before the answer by itself (``prompt_ids``), where the side is known to begin with them.
    num_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TokenizeRules:
    """How sequences are cut and labelled; see ``DataConfig``."""

    max_length_tokens: int
    when_too_long: Literal["truncate", "drop"] = "truncate"
    train_on: Literal["last_turn", "all_turns"] = "last_turn"
    num_rows: int | None = None  # of the model's embedding, where the tokenizer has ids beyond them


class PairTokenizer:
    """Tokenises pairs by ``rules`` with the tokenizer's chat template."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", rules: TokenizeRules, day: date | None = None
    ) -> None:
        self.tokenizer, self.rules = tokenizer, rules
        self.renderer, self.encoder = Renderer(tokenizer, day), Encoder(tokenizer)
        self.before_answer = BeforeAnswer(self.renderer)

    def prompt_texts(self, pairs: list[PreferencePair]) -> list[Rendered]:
        """Return the prompts with the assistant's turn opened: what a model would be asked to continue."""
        return self.renderer.render(
            [pair.prompt for pair in pairs],
            [pair.tools for pair in pairs],
            open_turn=True,
            arguments=[pair.template_kwargs for pair in pairs],
        )

    def prompt_ids(self, pairs: list[PreferencePair]) -> list[np.ndarray]:
        """Return token ids int32 [T] of what stands before the answers of pairs that could be tokenised: what the model was
        trained behind is what it is asked with.

        That is the prompt with the assistant's turn opened. A template that opens the turn otherwise than it renders it
        (``<think>`` for a prompt, reasoning cut off in a finished turn), or not at all, gives the turn's own header.
        """
        contexts = []
        whole = self.renderer.render(
            [pair.chosen for pair in pairs],
            [pair.tools for pair in pairs],
            arguments=[pair.template_kwargs for pair in pairs],
        )
        for pair, text, opened in zip(pairs, whole, self.prompt_texts(pairs), strict=True):
            try:
                start = (
                    self._start(pair.chosen, len(pair.chosen) - 1, text, opened, pair)
                    if isinstance(text, str) and isinstance(opened, str)
                    else None
                )
            except RowDropped:
                start = None
            if start is None or not isinstance(text, str):
                raise CheckpointError(
                    "The chat template renders a conversation that it refuses the next time. Choose another "
                    "one (checkpoint.chat_template)."
                )
            contexts.append(text[: start[0]])
        return [text.ids for text in self.encoder.encode(contexts)]

    def __call__(self, pairs: list[PreferencePair]) -> list[tuple[TokenizedSide, TokenizedSide] | RowDropped]:
        """Return chosen and rejected side of each pair, or why the pair is dropped."""
        results: list[tuple[TokenizedSide, TokenizedSide] | RowDropped] = [NOT_TOLD_APART] * len(pairs)
        prompts, rendered = self._rendered(pairs)
        usable: list[tuple[int, list[list[Span]], list[tuple[bool, bool]]]] = []
        texts: list[tuple[str, str]] = []
        opened: list[str] = []
        for i, pair in enumerate(pairs):
            chosen, rejected, prompt = rendered[0][i], rendered[1][i], prompts[i]
            if self.renderer.leaves_out_tools(pair.prompt, pair.tools):
                results[i] = RowDropped("template_without_tools")
                continue
            try:
                chosen, rejected, prompt = _text(chosen), _text(rejected), _text(prompt)
                spans = [
                    self._spans(pair, pair.chosen, chosen, prompt),
                    self._spans(pair, pair.rejected, rejected, prompt),
                ]
                if all(spans):
                    if self.before_answer.leaves_out_tools(pair, prompt):
                        raise RowDropped("template_without_tools")
                    of_answers = self._left_out(pair, (chosen, rejected), spans)
                    of_prompt = self.before_answer.is_left_out(pair, chosen, spans[0][-1].start)
                    usable.append((i, spans, [(part, of_prompt) for part in of_answers]))
                    texts.append((chosen, rejected))
                    opened.append(prompt)
            except RowDropped as dropped:
                results[i] = dropped
        encoded = self.encoder.encode_pairs(texts, opened)
        for (i, spans, parts), sides, (text, _) in zip(usable, encoded, texts, strict=True):
            try:
                chosen_side, rejected_side = self._label(sides, spans, parts)
                number = self.encoder.prefix_tokens(sides[0], text, spans[0][-1].start)
                results[i] = chosen_side._replace(num_prompt_tokens=number), rejected_side
            except RowDropped as dropped:
                results[i] = dropped
        return results

    # ------------------------------------------------------------------------------------------------------- the text

    def _rendered(self, pairs: list[PreferencePair]) -> tuple[list[Rendered], list[list[Rendered]]]:
        """The prompts, and the chosen and rejected sides. A row whose limits are used up is rendered no further."""
        prompts = self.prompt_texts(pairs)
        sides, over = [], [text is Over.LIMITS for text in prompts]
        for turns in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs]):
            within = [i for i, is_over in enumerate(over) if not is_over]
            made = self.renderer.render(
                [turns[i] for i in within],
                [pairs[i].tools for i in within],
                arguments=[pairs[i].template_kwargs for i in within],
            )
            texts: list[Rendered] = [Over.LIMITS] * len(pairs)
            for i, text in zip(within, made, strict=True):
                texts[i], over[i] = text, text is Over.LIMITS
            sides.append(texts)
        return prompts, sides

    def _render_one(self, turns: list[dict], pair: PreferencePair, open_turn: bool = False) -> str:
        """Text of ``turns`` with the tools and the variables of ``pair``."""
        return _text(self.renderer.render([turns], [pair.tools], open_turn, [pair.template_kwargs])[0])

    def _spans(self, pair: PreferencePair, turns: list[dict], text: str, prompt: str | None) -> list[Span]:
        """Trained spans of one rendered side; empty if the turns cannot be told apart."""
        last = len(turns) - 1
        spans = []
        if self.rules.train_on == "all_turns":
            earlier = [index for index, turn in enumerate(turns[:-1]) if turn["role"] == "assistant"]
            for index in earlier:
                opened, closed = self._turn_edges(turns, index, pair)
                start = self._start(turns, index, text, opened, pair)
                if start is None or not text.startswith(closed):
                    return []
                spans.append(Span(start[0], len(closed), start[1]))
        start = self._start(turns, last, text, prompt, pair)
        return [*spans, Span(start[0], None, start[1])] if start is not None else []

    def _turn_edges(self, turns: list[dict], index: int, pair: PreferencePair) -> tuple[str | None, str]:
        opened = self._render_one(turns[:index], pair, open_turn=True) if index else None
        return opened, self._render_one(turns[: index + 1], pair)

    def _start(
        self, turns: list[dict], index: int, text: str, opened: str | None, pair: PreferencePair
    ) -> tuple[int, bool] | None:
        """Where the trained text of turn ``index`` begins and whether that is a header's exact end."""
        if self.renderer.opens_turn and opened is not None and text.startswith(opened):
            return len(opened), True
        # The template opens a turn differently for a prompt (or not at all): find where the turn's content begins by
        # rendering a text in its place.
        header, _ = self._frame(turns, index, pair)
        return (len(header), False) if text.startswith(header) else None

    def _frame(self, turns: list[dict], index: int, pair: PreferencePair) -> tuple[str, str]:
        """What stands before and behind turn ``index`` whatever it says. Raises ``RowDropped``, also where the template
        does not write its text."""
        said = {"role": turns[index]["role"], "content": SENTINEL}
        text = self._render_one([*turns[:index], said, *turns[index + 1 :]], pair)
        before, found, behind = text.partition(SENTINEL)
        if not found:
            raise RowDropped("answer_left_out", "the chat template does not write a turn's text")
        return before, behind

    def _left_out(self, pair: PreferencePair, texts: tuple[str, str], spans: list[list[Span]]) -> list[bool]:
        """Whether the template leaves out a part of each side's answer. Raises ``RowDropped`` for one left out wholly."""
        parts = []
        for turns, text, side_spans in zip((pair.chosen, pair.rejected), texts, spans, strict=True):
            rendered = text[side_spans[-1].start :]
            if is_all_there(turns[-1], rendered):
                parts.append(False)
                continue
            try:
                before, behind = self._frame(turns, len(turns) - 1, pair)
            except RowDropped:
                if len(turns[-1]) == 2:  # a text, and no text is written
                    raise
                before = behind = ""  # of calls, nothing of what is there is frame for certain
            missing = left_out(turns[-1], rendered, before[side_spans[-1].start :] + behind)
            if missing == "all":
                raise RowDropped("answer_left_out", "the chat template writes nothing of an answer")
            parts.append(missing == "part")
        return parts

    # ----------------------------------------------------------------------------------------------------- the tokens

    def _label(
        self,
        encoded: tuple[EncodedText, EncodedText],
        spans: list[list[Span]],
        parts: list[tuple[bool, bool]],
    ) -> tuple[TokenizedSide, TokenizedSide]:
        """Both sides of a pair, labelled and cut. A side must keep a token of its last turn: labels of earlier turns
        are the same on both sides and prefer neither. Raises ``RowDropped``."""
        limit, sides, has_answer = self.rules.max_length_tokens, [], True
        for text, side_spans, part in zip(encoded, spans, parts, strict=True):
            length = len(text.ids)
            if self.rules.num_rows is not None and (text.ids[:limit] >= self.rules.num_rows).any():
                raise RowDropped("token_without_row")
            trained = np.zeros(length, dtype=bool)
            for span in side_spans:
                start = text.token_at(span.start, span.exact_start)
                end = length if span.end is None else text.token_at(span.end)
                trained[start:end] = True
            if length > limit and self.rules.when_too_long == "drop":
                raise RowDropped("too_long")
            has_answer &= start < min(end, limit)  # of the last span
            sides.append(TokenizedSide(text.ids[:limit], trained[:limit], length > limit, *part))
        if not has_answer:
            raise RowDropped("no_label_left")
        # The answers differ as text; as inputs of a model they need not, and then the loss is ln 2 whatever it learns.
        left, right = sides[0].ids, sides[1].ids
        if len(left) == len(right) and bool((left == right).all()):
            raise RowDropped("identical_tokens")
        return sides[0], sides[1]


def _text(rendered: Rendered) -> str:
    """A rendered text. Raises ``RowDropped`` where there is none."""
    if isinstance(rendered, Over):
        raise RowDropped(rendered.value)
    if isinstance(rendered, Refused):
        raise RowDropped("template_error", rendered.sentence)
    return rendered
