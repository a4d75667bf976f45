"""Answers for a list of prompts, in batches: greedy ones, which `evaluate` shows and `answer` probes with, or sampled ones.

A plain loop instead of ``model.generate``: that one mixes a checkpoint's sampling settings (temperature, repetition
penalty) into what is asked for, and keeps computing rows that have ended.

Shapes: R rows of a batch, P tokens of its longest prompt, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpo_core.data.render_limits import rendered_by_library
from dpo_core.model.decoding import decoding_of

TURN_PROBE = "pairline turn end probe"
Choose = Callable[
    [torch.Tensor, list[int], int], torch.Tensor
]  # logits [R, V], number of each row's prompt, tokens so far


def own_choice(next_R: torch.Tensor) -> torch.Tensor:
    """Return what this process has chosen, where it computes alone."""
    return next_R


@dataclass(frozen=True, slots=True)
class Generation:
    """How answers are computed: at most ``max_new_tokens`` each, ``batch_size`` prompts at a time, or as many as
    ``prompt_tokens`` allow, padding included.

    ``agree`` gives the next tokens, int64 [R], that this process goes on with. Processes that compute one answer together
    need it: each would stop by its own choice, and one that differs in one token leaves the others waiting for it.
    ``may_record``: a token's forward may become a graph of the card, as the weights lie where they are for all of them.
    """

    max_new_tokens: int
    batch_size: int
    agree: Callable[[torch.Tensor], torch.Tensor] = own_choice
    prompt_tokens: int | None = None
    may_record: bool = True

    def rows(self, longest: int) -> int:
        """Return how many prompts of at most ``longest`` tokens are answered at a time."""
        allowed = self.batch_size if self.prompt_tokens is None else self.prompt_tokens // longest
        return max(1, min(self.batch_size, allowed))


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special token with which the chat template closes an assistant's turn, as ids; empty if it uses none.

    A base model's eos (``<|endoftext|>``) often differs from it (``<|im_end|>``); an answer ends at either.
    """
    if not tokenizer.chat_template:
        return ()
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": TURN_PROBE}]
    text = rendered_by_library(tokenizer, messages)
    _, found, tail = text.rpartition(TURN_PROBE)
    tail_ids = tokenizer.encode(tail.lstrip(), add_special_tokens=False) if found else []
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return tuple(tail_ids[:1]) if tail_ids and tail_ids[0] in special else ()


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return every id that ends an answer, ascending: the generation config's, the model's, the tokenizer's, the
    template's.
    """
    found: set[int] = set(turn_end_ids(tokenizer))
    for value in (
        getattr(model.generation_config, "eos_token_id", None),
        next(
            (
                value
                for config in (model.config, model.config.get_text_config())
                if (value := getattr(config, "eos_token_id", None)) is not None
            ),
            None,
        ),
        tokenizer.eos_token_id,
    ):
        if value is not None:
            found.update(value if isinstance(value, list | tuple) else [value])
    return tuple(sorted(found))


def _left_padded(
    prompts: list[np.ndarray], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts -> ids [R, P] and mask [R, P], padded on the left so that every row's next token is the last column."""
    width = max(len(ids) for ids in prompts)
    ids_RP = np.full((len(prompts), width), pad_id, dtype=np.int64)
    mask_RP = np.zeros_like(ids_RP)
    for row, ids in enumerate(prompts):
        ids_RP[row, width - len(ids) :], mask_RP[row, width - len(ids) :] = ids, 1
    return torch.from_numpy(ids_RP).to(device), torch.from_numpy(mask_RP).to(device)


def _continue_batch(
    model: PreTrainedModel,
    prompts: list[np.ndarray],
    batch: list[int],
    ends: tuple[int, ...],
    generation: Generation,
    choose: Choose,
) -> list[list[int]]:
    """New token ids per prompt numbered in ``batch``, with the end token. Once half of the rows have ended they leave."""
    ids_RP, mask_RP = _left_padded(
        [prompts[number] for number in batch], ends[0] if ends else 0, model.device
    )
    decoding = decoding_of(model, ids_RP, mask_RP, generation.max_new_tokens, generation.may_record)
    answers: dict[int, list[int]] = {number: [] for number in batch}
    live = list(batch)  # live[i]: the prompt that row i continues
    running = torch.ones(len(batch), dtype=torch.bool)
    for step in range(generation.max_new_tokens):
        next_R = generation.agree(choose(decoding.logits_RV, live, step))
        for row, token in enumerate(next_R.tolist()):
            if running[row]:
                answers[live[row]].append(token)
                running[row] = token not in ends
        running &= decoding.have_place()  # an answer ends where the model has no place for more
        if not running.any() or step + 1 == generation.max_new_tokens:
            break
        if decoding.can_drop_rows and int(running.sum()) <= len(live) // 2:
            keep = running.nonzero()[:, 0].to(model.device)
            decoding.keep_rows(keep)
            live = [live[row] for row in keep.tolist()]
            next_R, running = next_R[keep], torch.ones(len(live), dtype=torch.bool)
        decoding.read(next_R)
    return list(answers.values())


class GreedyAnswer(NamedTuple):
    """``has_ended``: by a token that ends answers; else it was cut at ``max_new_tokens``, or the model had no place left."""

    text: str
    has_ended: bool


def answer_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[np.ndarray | list[int]],
    generation: Generation,
    on_answers: Callable[[int], None] | None = None,
) -> list[str]:
    """Return the texts of ``greedy_answers``."""
    found = greedy_answers(model, tokenizer, prompts_ids, generation, on_answers)
    return [answer.text for answer in found]


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[np.ndarray | list[int]],
    generation: Generation,
    on_answers: Callable[[int], None] | None = None,
) -> list[GreedyAnswer]:
    """Return answers to prompts given as token ids (template and generation prompt included), in the prompts' order.

    An answer ends at an id of ``end_token_ids`` or after ``max_new_tokens`` and is decoded without special tokens.
    ``on_answers(n)`` is called after each batch with its number of prompts. Prompts are batched by length, so little
    is padded; in fp32 an answer does not depend on its batch except where two logits tie within float noise.
    Raises ``ValueError`` for an empty prompt.
    """
    ends = end_token_ids(model, tokenizer)
    answers_ids = continue_all(
        model,
        ends,
        prompts_ids,
        generation,
        on_answers,
        lambda logits_RV, rows, step: logits_RV.argmax(dim=-1),
    )
    found = []
    for ids in answers_ids:
        has_ended = ids[-1] in ends
        text = cast(str, tokenizer.decode(ids[:-1] if has_ended else ids, skip_special_tokens=True))
        found.append(GreedyAnswer(text.strip(), has_ended))
    return found


@torch.no_grad()
def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[np.ndarray | list[int]],
    draws: Sequence[np.random.Generator],
    generation: Generation,
    on_answers: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Return one answer a prompt, drawn from the model's own distribution (temperature 1, nothing cut off), as token
    ids with the end token unless it was cut at ``generation.max_new_tokens``.

    Each prompt has its own source of random numbers, so an answer depends neither on its batch nor on who else is asked.
    """
    if not len(prompts_ids):  # of fewer prompts than ranks
        return []
    uniform_NT = np.stack([draw.random(generation.max_new_tokens) for draw in draws])

    def invert(logits_RV: torch.Tensor, rows: list[int], step: int) -> torch.Tensor:
        """The first token at which the cumulative distribution exceeds the prompt's uniform number."""
        cumulative_RV = logits_RV.double().softmax(dim=-1).cumsum(dim=-1)
        uniform_R1 = (
            torch.from_numpy(uniform_NT[rows, step]).to(logits_RV.device)[:, None] * cumulative_RV[:, -1:]
        )
        return torch.searchsorted(cumulative_RV, uniform_R1, right=True)[:, 0].clamp(
            max=logits_RV.shape[-1] - 1
        )

    return continue_all(model, end_token_ids(model, tokenizer), prompts_ids, generation, on_answers, invert)


def continue_all(
    model: PreTrainedModel,
    ends: tuple[int, ...],
    prompts_ids: Sequence[np.ndarray | list[int]],
    generation: Generation,
    on_answers: Callable[[int], None] | None,
    choose: Choose,
) -> list[list[int]]:
    """Return new token ids per prompt, with the end token, in the prompts' order."""
    prompts = [np.asarray(ids, dtype=np.int64) for ids in prompts_ids]
    for index, ids in enumerate(prompts):
        if not len(ids):
            raise ValueError(
                f"prompt {index} of {len(prompts)} has no tokens; render it with the chat template first"
            )
    by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    with _in_eval_mode(model):
        while by_length:
            rows = generation.rows(len(prompts[by_length[0]]))
            batch, by_length = by_length[:rows], by_length[rows:]
            for index, answer in zip(
                batch, _continue_batch(model, prompts, batch, ends, generation, choose), strict=True
            ):
                answers[index] = answer
            if on_answers:
                on_answers(len(batch))
    return answers


@contextlib.contextmanager
def _in_eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Each module is given back its own mode: a policy in training recomputes its layers, and its norms may not."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
