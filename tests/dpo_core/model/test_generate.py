"""Greedy answers against ``model.generate``, one prompt at a time, and where an answer ends."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from dpo_core.model import decoding
from dpo_core.model.attention import PAIRWISE, set_kernel
from dpo_core.model.decoding import FixedDecoding, decoding_of
from dpo_core.model.generate import (
    Generation,
    answer_greedily,
    continue_all,
    end_token_ids,
    greedy_answers,
    sample_answers,
    turn_end_ids,
)
from tests.tiny_architectures import PACKED, tiny
from tests.tiny_models import make_model, make_tokenizer

QUESTIONS = (
    "hi",
    "What is the capital of France?",
    "x " * 60,
    "sea",
    "Write a list of three things about the sky.",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("generate"))


@pytest.fixture(scope="module")
def loaded(folder: Path):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)[
            "input_ids"
        ]
        for text in QUESTIONS
    ]
    return model, tokenizer, prompts


def stock_answer(model, tokenizer, ids: list[int], tokens: int) -> str:
    output = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_are_those_of_stock_generate_whatever_the_batch(loaded, batch_size: int) -> None:
    model, tokenizer, prompts = loaded
    expected = [stock_answer(model, tokenizer, ids, 24) for ids in prompts]
    assert len(set(expected)) == len(expected)  # else order could not be told
    assert answer_greedily(model, tokenizer, prompts, Generation(24, batch_size)) == expected


def test_rows_that_end_leave_the_batch_and_the_others_go_on(loaded) -> None:
    model, tokenizer, prompts = loaded
    firsts = [answer_greedily(model, tokenizer, [ids], Generation(3, 1)) for ids in prompts]
    with torch.no_grad():
        ending = [int(model(torch.tensor([ids])).logits[0, -1].argmax()) for ids in prompts]
    chosen = ending[0]  # the first token of answer 0 becomes an end: that row (and its likes) end at once
    model.generation_config.eos_token_id = chosen
    try:
        found = greedy_answers(model, tokenizer, prompts, Generation(3, 5))
    finally:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    answers = [answer.text for answer in found]
    assert answers[0] == ""
    assert found[0].has_ended
    assert not all(answer.has_ended for answer in found)  # three tokens are few
    survivors = [index for index, answer in enumerate(answers) if answer]
    assert survivors
    assert all(answers[index] == firsts[index][0] for index in survivors)


def test_sampling_settings_of_the_checkpoint_do_not_matter(loaded) -> None:
    model, tokenizer, prompts = loaded
    before = answer_greedily(model, tokenizer, prompts, Generation(8, 4))
    model.generation_config.repetition_penalty = 5.0
    try:
        assert answer_greedily(model, tokenizer, prompts, Generation(8, 4)) == before
    finally:
        model.generation_config.repetition_penalty = None


def test_an_answer_ends_at_eos_and_at_the_end_of_the_turn(loaded) -> None:
    model, _, _ = loaded
    base_like = make_tokenizer(eos_token="<|endoftext|>")  # eos is not what closes a turn
    im_end = base_like.convert_tokens_to_ids("<|im_end|>")
    assert turn_end_ids(base_like) == (im_end,)
    assert end_token_ids(model, base_like) == (0, im_end)
    assert turn_end_ids(make_tokenizer(chat_template=None)) == ()


def test_an_empty_prompt_is_refused(loaded) -> None:
    model, tokenizer, prompts = loaded
    with pytest.raises(ValueError, match="prompt 1 of 2 has no tokens"):
        answer_greedily(model, tokenizer, [prompts[0], []], Generation(4, 2))


def test_long_prompts_are_answered_fewer_at_a_time():
    """By the longest of a batch, as padding is memory, too; one prompt is always answered."""
    bounded = Generation(4, batch_size=16, prompt_tokens=100)
    assert [bounded.rows(longest) for longest in (1, 6, 7, 50, 51, 101)] == [16, 16, 14, 2, 1, 1]
    assert Generation(4, batch_size=16).rows(10_000) == 16


def test_an_answer_ends_where_the_model_has_no_place_for_more():
    """GPT-2 learns a vector for each place; a token beyond them would be an index error, after the training."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=12)).eval()
    prompts = [list(range(3, 3 + length)) for length in (12, 10, 4)]
    draws = [np.random.default_rng(number) for number in range(3)]
    answers = sample_answers(
        model, make_tokenizer(), prompts, draws, Generation(max_new_tokens=6, batch_size=3)
    )
    assert [len(answer) for answer in answers] == [1, 3, 6]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Callable]:
    """Steps are given to a recorder as on a card; this one gives them back as they are. -> those that it was given"""
    steps: list[Callable] = []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        steps.append(step)
        weak = weakref.WeakMethod(step)  # a graph does not hold what it was recorded of
        return lambda: weak()()

    monkeypatch.setattr(decoding, "recorder", lambda device: record)
    return steps


@pytest.mark.parametrize("kernel", ["sdpa", PAIRWISE["sdpa"]])
def test_answers_from_tensors_of_full_length_are_the_same(folder, loaded, recorded, kernel):
    """What a card replays as a graph, against keys and values that grow: prompts of several lengths, rows that end early,
    greedy and drawn."""
    _, tokenizer, prompts = loaded
    model = AutoModelForCausalLM.from_pretrained(folder)
    set_kernel(model, kernel)
    with torch.no_grad():
        model.generation_config.eos_token_id = int(model(torch.tensor([prompts[1]])).logits[0, -1].argmax())

    def answers(may_record: bool) -> list:
        generation = Generation(24, 3, may_record=may_record)
        draws = [np.random.default_rng(number) for number in range(len(prompts))]
        return [
            *greedy_answers(model, tokenizer, prompts, generation),
            *sample_answers(model, tokenizer, prompts, draws, generation),
        ]

    growing = answers(may_record=False)
    assert not recorded
    assert answers(may_record=True) == growing
    assert len(recorded) == 4  # two batches, greedy and drawn
    assert any(answer.has_ended for answer in growing[: len(prompts)])


SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("model", "is_fixed"),
    [
        (lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)), True),
        (lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)), True),
        (lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)), False),
        (lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=2)), False),
        (lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LONG_ROPE)), False),
        (lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="eager")), False),
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4)), False),
        (lambda: FalconForCausalLM(FalconConfig(**SHAPE, alibi=True)), False),
        (lambda: Lfm2ForCausalLM(Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"])), False),
    ],
    ids=[
        "llama",
        "mistral",
        "a window",
        "experts",
        "long rope",
        "eager",
        "learned positions",
        "alibi",
        "other layers",
    ],
)
@torch.no_grad()
def test_only_what_is_the_same_kernels_for_every_token_is_recorded(recorded, model, is_fixed):
    prompts = torch.randint(3, 300, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    made = decoding_of(model().eval(), *prompts, 8, may_record=True)
    assert bool(recorded) == is_fixed
    assert isinstance(made, FixedDecoding) == is_fixed


@torch.no_grad()
def test_of_every_architecture_that_is_recorded_the_answers_are_the_same(recorded):
    """In fp32, with prompts of several lengths: what the fixed tensors' mask shows is what the growing ones hold."""
    prompts = [np.arange(3, 3 + length) for length in (2, 9, 17)]
    names = []
    for name, config in PACKED.items():
        if name in ("gemma2", "gpt_oss"):  # they have no sdpa
            continue
        model, before = tiny(config, kernel="sdpa"), len(recorded)
        growing, fixed = (
            continue_all(model, (5,), prompts, Generation(12, 3, may_record=may), None, first_of_most)
            for may in (False, True)
        )
        assert fixed == growing, name
        names += [name] if len(recorded) > before else []
    assert {"llama", "qwen2", "qwen3", "olmo2", "smollm3", "granite", "gemma"} <= set(names), names


def first_of_most(logits_RV: torch.Tensor, rows: list[int], step: int) -> torch.Tensor:
    return logits_RV.argmax(dim=-1)


def refuses(step: Callable[[], None]) -> Callable[[], None]:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def stands_still(step: Callable[[], None]) -> Callable[[], None]:
    """Does right once: what counts does not go on counting."""
    turns = iter([step])
    return lambda: next(turns, lambda: None)()


def makes_nothing_of_it(step: Callable[[], None]) -> Callable[[], None]:
    return lambda: None


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (refuses, "kernel by kernel: operation not permitted when stream is capturing"),
        (stands_still, "kernel by kernel: the recorded step is off by"),
        (makes_nothing_of_it, "kernel by kernel: the recorded step is off by"),
    ],
)
def test_a_recorded_step_that_is_wrong_is_not_used(loaded, monkeypatch, caplog, record, words):
    model, tokenizer, prompts = loaded
    expected = greedy_answers(model, tokenizer, prompts, Generation(8, 5, may_record=False))
    monkeypatch.setattr(decoding, "recorder", lambda device: record)
    monkeypatch.setattr(decoding, "_given_up", Event())
    with caplog.at_level("INFO", logger="dpo_core"):
        assert greedy_answers(model, tokenizer, prompts, Generation(8, 5)) == expected
        greedy_answers(model, tokenizer, prompts, Generation(8, 5))
    assert caplog.text.count(words) == 1  # it is not tried again, of no model
    assert "more" not in caplog.text


def test_keys_and_values_are_gone_with_the_batch(recorded):
    """At once, not when garbage is collected: the next batch needs the memory."""
    prompts = torch.randint(3, 300, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    with torch.no_grad():
        made = [decoding_of(model, *prompts, 8, may_record=True)]
    recorded.clear()
    gone = weakref.ref(made[0])
    gc.disable()
    try:
        made.clear()
        assert gone() is None
    finally:
        gc.enable()
