"""Templates that take for ever, take all memory or write without end: dropped row by row, the others rendered as ever."""

import resource
import signal
import threading
import time

import numpy as np
import pytest

from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.jobs import AnswerJob
from dpo_core.contract.progress import Progress
from dpo_core.contract.store import hash_files
from dpo_core.data import render_limits
from dpo_core.data.chat_template import Renderer
from dpo_core.data.pairs import PreferencePair
from dpo_core.data.pool import PoolMaker, chunks_of, make_pool
from dpo_core.data.render_limits import Over, RenderLimits, rendered_by_library
from dpo_core.data.tokenize import PairTokenizer, TokenizeRules
from dpo_core.model.generate import turn_end_ids
from dpo_core.model.pad_token import choose_pad_token
from dpo_core.steps.answer import run as answer
from tests.tiny_models import CHATML, make_model, make_tokenizer

BAD = "evil"
LOOPS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3
)
DOUBLING = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
SQUARING = "{% set ns = namespace(x=7) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x % 3 }}"
ATTACKS = {
    "loops": LOOPS,
    "doubling": DOUBLING,
    "squaring": SQUARING,
    "power": "{{ 7 ** (messages | length * 9999999) % 3 }}",
    "product": "{{ 'a' * (messages | length * 4000000000) }}",
    "list": "{{ ([0] * (messages | length * 4000000000)) | length }}",
    "method": "{{ 'a'.ljust(4000000000) | length }}",
    "format": "{{ '%4000000000d' % messages | length }}",
    "rounded": "{{ (messages | length) | round(99999999, 'floor') }}",
    "output": "{% for a in range(99999) %}{% for b in range(99999) %}0123456789{% endfor %}{% endfor %}",
    "long": "{{ 'a' * (messages | length * 17000000) }}",
}


def conversation(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def attacked(attack: str) -> str:
    """ChatML that attacks where a message is ``BAD``."""
    return f"{{% if messages[0]['content'] == '{BAD}' %}}{attack}{{% endif %}}{CHATML}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less time than a row really has, so that the tests take less."""
    monkeypatch.setattr(render_limits, "TICK_SECONDS", 0.1)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_row_over_the_limits_is_told_and_its_neighbours_are_rendered(name: str) -> None:
    renderer = Renderer(make_tokenizer(attacked(ATTACKS[name])))
    started, before = time.process_time(), resource.getrlimit(resource.RLIMIT_AS)
    texts = renderer.render([conversation("a"), conversation(BAD), conversation("b")], [None] * 3)
    assert texts == ["<|im_start|>user\na<|im_end|>\n", Over.LIMITS, "<|im_start|>user\nb<|im_end|>\n"]
    assert renderer.render_by_library(conversation(BAD), None, True) is Over.LIMITS
    tool = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert renderer.render([conversation(BAD)], [tool]) == [Over.LIMITS]
    assert time.process_time() - started < 20
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_the_memory_of_this_process_stays_what_it_was() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    renderer = Renderer(make_tokenizer(attacked(DOUBLING)))
    assert renderer.render([conversation(BAD)], [None]) == [Over.LIMITS]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 700 << 10  # KiB


@pytest.mark.parametrize(
    "attack",
    [
        "{{ 7 ** 9999999 % 3 }}",
        "{{ ('a' * 4000000000) | length }}",
        "{{ 'a' | center(4000000000) }}",
        "{{ 5 | round(99999999, 'floor') }}",
    ],
)
def test_constants_are_not_computed_without_limits_either(attack: str) -> None:
    """The compiler of templates computes them, before any row is rendered."""
    started = time.process_time()
    try:
        texts = Renderer(make_tokenizer(attack)).render([conversation("a")], [None])
    except CheckpointError as error:
        assert "while it is compiled" in str(error)  # noqa: PT017
    else:
        assert not isinstance(texts[0], str)
    assert time.process_time() - started < 10


def test_a_template_that_is_over_for_every_row_is_given_up() -> None:
    renderer = Renderer(make_tokenizer(attacked(ATTACKS["product"])))
    with pytest.raises(
        CheckpointError, match=r"on more than 32 rows: a rendering has .*checkpoint\.chat_template"
    ):
        renderer.render([conversation(BAD)] * 40, [None] * 40)


def test_a_slow_machine_drops_no_row() -> None:
    """The clock does not count, only what the process computes."""
    limits = RenderLimits()

    def slow() -> str:
        time.sleep(0.5)
        return "text"

    with limits.batch():
        assert limits.render(slow) == "text"


def test_many_long_rows_are_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts of a batch add up, and neither their memory nor their time is held against the last one."""
    monkeypatch.setattr(render_limits, "MAX_MEMORY_BYTES", 64 << 20)
    monkeypatch.setattr(render_limits, "MAX_TEXT_CHARACTERS", 4 << 20)
    texts = Renderer(make_tokenizer()).render([conversation("a" * (4_000_000))] * 60, [None] * 60)
    assert all(isinstance(text, str) for text in texts)


def test_outside_the_main_thread_memory_and_length_are_limited() -> None:
    found: list = []
    renderer = Renderer(make_tokenizer(attacked(ATTACKS["product"])))
    texts = [conversation(BAD), conversation("a")]
    thread = threading.Thread(target=lambda: found.extend(renderer.render(texts, [None] * 2)))
    thread.start()
    thread.join(60)
    assert found == [Over.LIMITS, "<|im_start|>user\na<|im_end|>\n"]


# ----------------------------------------------------------------------------------------------------------- where it counts


def pair(text: str, answer: str = "yes") -> PreferencePair:
    prompt = conversation(text)
    return PreferencePair(
        prompt,
        [*prompt, {"role": "assistant", "content": answer}],
        [*prompt, {"role": "assistant", "content": "no"}],
    )


@pytest.mark.parametrize("name", ["loops", "product"])
def test_a_dropped_row_has_its_reason(name: str) -> None:
    template = attacked(ATTACKS[name])
    in_answer = template.replace("messages[0]", "messages[-1]")
    for text, rows in (
        (template, [pair("a"), pair(BAD), pair("b")]),
        (in_answer, [pair("a"), pair("c", BAD), pair("b")]),
    ):
        results = PairTokenizer(make_tokenizer(text), TokenizeRules(64))(rows)
        assert results[1].reason == "over_limits"
        plain = PairTokenizer(make_tokenizer(), TokenizeRules(64))([rows[0], rows[2]])
        for got, expected in zip((results[0], results[2]), plain, strict=True):
            assert [side.ids.tolist() for side in got] == [side.ids.tolist() for side in expected]


class Rows:
    """A source of rows that all are ``row``."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    def values(self, numbers: list[int]) -> list[dict]:
        return [self.rows[number] for number in numbers]


def test_tokenising_processes_have_the_limits_too() -> None:
    rows = [
        {"prompt": BAD if number == 700 else "a", "chosen": "yes", "rejected": "no"} for number in range(1100)
    ]
    maker = PoolMaker((Rows(rows),), ({},), PairTokenizer(make_tokenizer(attacked(LOOPS)), TokenizeRules(64)))
    chunks = chunks_of([np.arange(len(rows))])
    reasons = [
        reason
        for part in make_pool(maker, chunks, len(rows), num_workers=2)
        for reason in part.facts.column("reason").to_pylist()
    ]
    assert [number for number, reason in enumerate(reasons) if reason] == [700]
    assert reasons[700] == "over_limits"


def test_probes_and_exports_say_what_is_wrong_with_the_template(tmp_path) -> None:
    tokenizer = make_tokenizer(LOOPS)
    for rendering in (
        lambda: rendered_by_library(tokenizer, conversation("a")),
        lambda: turn_end_ids(tokenizer),
        lambda: choose_pad_token(tokenizer, None, 400),
    ):
        with pytest.raises(CheckpointError, match="The checkpoint's chat template goes over its limits"):
            rendering()
    folder = make_model(tmp_path / "model", make_tokenizer(LOOPS))
    job = AnswerJob(checkpoint_path=folder, files=hash_files(folder), prompts=("a",)).at(tmp_path)
    with pytest.raises(CheckpointError, match="goes over its limits"):
        answer(job, Progress("answer", active=False))
