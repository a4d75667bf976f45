"""Answers of which the chat template leaves out something, and what the evaluation then asks."""

import pytest

from dpo_core.contract.drops import RowDropped
from dpo_core.data.pairs import PreferencePair
from dpo_core.data.tokenize import PairTokenizer, TokenizeRules
from tests.tiny_models import CHATML, make_tokenizer

USER = {"role": "user", "content": "the sea?"}
TURN = "<|im_start|>{{ m['role'] }}\n%s<|im_end|>\n"
OPEN = "{%% if add_generation_prompt %%}<|im_start|>assistant\n%s{%% endif %%}"


def template(text: str, opened: str = "") -> str:
    return "{% for m in messages %}" + TURN % text + "{% endfor %}" + OPEN % opened


# Own words, same behaviour as R1-Distill's: a finished turn keeps only what follows </think>, a prompt opens a thought.
R1 = template("{{ m['content'].split('</think>')[-1].lstrip() }}", "<think>\n")
PARTS_ONLY = template("{% for part in m['content'] %}{{ part['text'] }}{% endfor %}")
READS_REASONING = template(
    "{% if m['reasoning_content'] %}<think>\n{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}{{ m['content'] }}"
)
QWEN3 = template(
    "{% set c = m['content'].split('</think>') %}{% if m['role'] == 'assistant' %}<think>\n"
    "{{ c[0].replace('<think>', '').strip() if c | length > 1 else '' }}\n</think>\n\n{% endif %}{{ c[-1].lstrip() }}"
)
AS_JSON = template("{{ m['content'] | tojson }}")
TRIMMED = template("{{ m['content'] | trim }}")


def pair(chosen: dict | str, rejected: dict | str) -> PreferencePair:
    sides = [
        {"role": "assistant", **({"content": one} if isinstance(one, str) else one)}
        for one in (chosen, rejected)
    ]
    return PreferencePair([USER], *([USER, side] for side in sides))


def tokenizer(text: str) -> PairTokenizer:
    return PairTokenizer(make_tokenizer(text), TokenizeRules(1000))


def outcome(text: str, chosen: dict | str, rejected: dict | str) -> str | tuple[bool, bool]:
    """Why a pair is dropped, or whether a part of chosen, of rejected is left out."""
    result = tokenizer(text)([pair(chosen, rejected)])[0]
    return result.reason if isinstance(result, RowDropped) else tuple(side.left_out for side in result)


CASES = {
    "thinking cut off": (
        R1,
        "<think>\nblue\n</think>\n\nblue sea",
        "<think>\nred\n</think>\n\nred sea",
        (True, True),
    ),
    "one side thinks": (R1, "<think>\nblue\n</think>\n\nblue sea", "red sea", (True, False)),
    "short thinking, of letters that the answer has": (R1, "<think>a</think>a sea", "b", (True, False)),
    "nobody thinks": (R1, "yes", "no", (False, False)),
    "thinking alone differs": (
        R1,
        "<think>\nadd\n</think>\n\n4",
        "<think>\nguess\n</think>\n\n4",
        "identical_tokens",
    ),
    "thinking is all there is": (R1, "<think>\nadd\n</think>", "4", "answer_left_out"),
    "rejected is thinking alone": (R1, "4", "<think>hm</think>\n", "answer_left_out"),
    "texts are nothing to it": (PARTS_ONLY, "yes it is", "no", "answer_left_out"),
    "another order of blanks": (
        QWEN3,
        "<think>blue</think>blue sea",
        "<think>\nred\n</think>\n\nred",
        (False, False),
    ),
    "thoughts that are put in": (QWEN3, "blue sea", "red sea", (False, False)),
    "escapes": (AS_JSON, 'a "blue"\nsea', "red\tsea", (False, False)),
    "blanks at the ends": (TRIMMED, "  yes\n\n", "\nno ", (False, False)),
    "reasoning that is read": (
        READS_REASONING,
        {"content": "4", "reasoning_content": "add"},
        {"content": "4", "reasoning_content": "guess"},
        (False, False),
    ),
    "reasoning that is not read": (
        CHATML,
        {"content": "4", "reasoning_content": "add"},
        {"content": "5", "reasoning_content": "guess"},
        (True, True),
    ),
    "reasoning alone, not read": (
        CHATML,
        {"content": "", "reasoning_content": "add"},
        "4",
        "answer_left_out",
    ),
    "reasoning alone, read": (
        READS_REASONING,
        {"content": "", "reasoning_content": "add"},
        "4",
        (False, False),
    ),
    "the same but for reasoning that is not read": (
        CHATML,
        {"content": "4", "reasoning_content": "add"},
        {"content": "4", "thinking": "guess"},
        "identical_tokens",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_template_leaves_out_is_told(case):
    *row, expected = CASES[case]
    assert outcome(*row) == expected


def call(**arguments: object) -> dict:
    made = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"content": "", "tool_calls": [made]}


CALLS = {
    "rendered as JSON": (
        "{{ m['tool_calls'] | tojson if m['tool_calls'] else m['content'] }}",
        (False, False),
    ),
    "the name alone": (
        "{{ m['tool_calls'][0]['function']['name'] if m['tool_calls'] else m['content'] }}",
        "identical_tokens",
    ),
    "one argument of two": (
        "{{ m['tool_calls'][0]['function']['arguments']['city'] if m['tool_calls'] else m['content'] }}",
        (True, True),
    ),
    "named and not written": ("{{ '' if m['tool_calls'] else m['content'] }}", "answer_left_out"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_are_a_part_of_the_answer(case):
    text, expected = CALLS[case]
    row = call(city="Oslo", days=3), call(city="Rome", days=3)
    assert outcome(template(text), *row) == expected


@pytest.mark.parametrize(
    ("text", "context"),
    [
        (R1, "<|im_start|>user\nthe sea?<|im_end|>\n<|im_start|>assistant\n"),
        (QWEN3, "<|im_start|>user\nthe sea?<|im_end|>\n<|im_start|>assistant\n"),
        (CHATML, "<|im_start|>user\nthe sea?<|im_end|>\n<|im_start|>assistant\n"),
        (
            CHATML.replace("add_generation_prompt", "false"),
            "<|im_start|>user\nthe sea?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_the_evaluation_asks_in_the_context_that_was_trained(text, context):
    """Not in one that no trained row has: a thought opened, or no turn of the assistant at all."""
    made = tokenizer(text)
    row = pair("<think>\nblue\n</think>\n\nblue sea", "<think>\nred\n</think>\n\nred sea")
    (prompt,) = made.prompt_ids([row])
    assert made.tokenizer.decode(prompt) == context
    for side in made([row])[0]:
        assert side.ids[: len(prompt)].tolist() == prompt.tolist()
        assert not side.trained[: len(prompt)].any()
        assert side.trained[len(prompt) :].all()
