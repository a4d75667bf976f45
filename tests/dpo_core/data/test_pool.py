"""Worker processes: what happens when one of them, or their parent, is killed."""

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers

from dpo_core.contract.errors import CheckpointError, StepCrashed
from dpo_core.data import pool, workers
from dpo_core.data.messages import prompt_key
from dpo_core.data.pool import Chunk, PoolMaker, _Outcome, _part, chunks_of, make_pool
from dpo_core.data.tokenize import PairTokenizer, TokenizeRules
from dpo_core.data.workers import in_workers
from tests.tiny_models import make_tokenizer
from tests.waiting import wait_until

SLEEPING_POOL = """
import os, pathlib, sys, time
import numpy as np
from dpo_core.data import pool
pool.MIN_ROWS_FOR_SEVERAL = 1
def maker(chunk):
    (pathlib.Path(sys.argv[1]) / str(os.getpid())).touch()
    time.sleep(600)
list(pool.make_pool(maker, [pool.Chunk(0, np.array([i])) for i in range(2)], 2, 2))
"""


def _die(chunk):
    os.kill(os.getpid(), signal.SIGKILL)


def _is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.integration
def test_a_worker_that_dies_is_a_crash_that_is_worth_a_retry(monkeypatch):
    monkeypatch.setattr(pool, "MIN_ROWS_FOR_SEVERAL", 1)
    with pytest.raises(StepCrashed, match="num_workers") as raised:
        list(make_pool(_die, [Chunk(0, np.array([0])), Chunk(0, np.array([1]))], 2, 2))
    assert raised.value.retryable


def _stuck_on(*rows):
    """A maker that some rows keep in a library for ever, where no handler of a signal runs."""
    haystack, needle = "a" * 1_000_000, "ab" + "a" * 500_000
    return _Failing(rows, lambda: haystack.rfind(needle))


class _Failing:
    """A maker that fails at some rows."""

    def __init__(self, rows, fail):
        self.rows, self.fail = set(rows), fail

    def __call__(self, chunk):
        if self.rows & set(chunk.rows.tolist()):
            self.fail()
        return self.part(chunk, [_Outcome(row) for row in chunk.rows.tolist()])

    def part(self, chunk, outcomes):
        return _part(chunk, outcomes)


def _reasons(maker, num_rows, num_workers):
    """The reason of each dropped row; every row must be there, in order."""
    parts = list(make_pool(maker, chunks_of([np.arange(num_rows)]), num_rows, num_workers))
    facts = [fact for part in parts for fact in part.facts.to_pylist()]
    assert [fact["row"] for fact in facts] == list(range(num_rows))
    return {fact["row"]: fact["reason"] for fact in facts if fact["reason"]}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(pool, "ROWS_PER_CHUNK", 4)
    monkeypatch.setattr(pool, "SECONDS_PER_CHUNK", 0.5)
    monkeypatch.setattr(pool, "SECONDS_PER_ROW", 0.5)


@pytest.mark.integration
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("stuck", "num_workers", "rows_for_several"),
    [((0,), 2, 1), ((5, 59), 2, 1), ((5,), 1, 1), ((5,), 2, 1024)],
)
def test_a_row_that_no_handler_can_end_is_dropped_and_all_others_are_there(
    stuck, num_workers, rows_for_several, monkeypatch
):
    monkeypatch.setattr(pool, "MIN_ROWS_FOR_SEVERAL", rows_for_several)
    assert _reasons(_stuck_on(*stuck), 60, num_workers) == dict.fromkeys(stuck, "over_limits")


@pytest.mark.integration
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fail", [lambda: b"a" * (1 << 46), lambda: ctypes.string_at(0), os.abort])
def test_a_row_that_ends_its_process_is_dropped(fail):
    faulthandler.disable()  # pytest's, which would print this process's stack
    assert _reasons(_Failing((5,), fail), 20, 1) == {5: "over_limits"}


def _tokenizing(texts, tokenizer):
    return PoolMaker((Texts(texts),), ({},), PairTokenizer(tokenizer, TokenizeRules(1 << 24)))


class Texts:
    """A source of rows with these prompts."""

    def __init__(self, texts):
        self.texts = texts

    def values(self, rows):
        return [{"prompt": self.texts[row], "chosen": "yes", "rejected": "no"} for row in rows]


def _memory_that_ends_a_row() -> None:
    """Print the reasons: of a process of its own, as what a large one has freed, its workers may use beside their limit."""
    workers.MAX_MEMORY_BYTES = 256 << 20  # about half of what the text takes
    texts = ["a"] * 7 + [" a" * 6_000_000] + ["b"] * 7
    print(_reasons(_tokenizing(texts, make_tokenizer()), len(texts), 1))


@pytest.mark.integration
def test_a_row_that_takes_a_tokenizer_too_much_memory_is_dropped():
    """Rust ends its process where an allocation fails, and no exception tells."""
    program = f"from {__name__} import {_memory_that_ends_a_row.__name__} as run; run()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "{7: 'over_limits'}\n", done.stderr


@pytest.mark.integration
def test_a_tokenizers_expression_without_end_costs_the_row():
    tokenizer = make_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("(?:a|aa)+!"), "isolated"), backend.pre_tokenizer]
    )
    texts = ["a", "a" * 60, "b"]
    assert _reasons(_tokenizing(texts, tokenizer), len(texts), 1) == {1: "over_limits"}


def test_a_prompt_that_is_stuck_without_its_answers_is_told():
    over = CheckpointError("over")
    made = in_workers(_stuck_on(1), iter(chunks_of([np.arange(4)])), 1, 0.5, over)
    with pytest.raises(CheckpointError, match="over"):
        list(made)
    made = in_workers(_die, iter(chunks_of([np.arange(4)])), 1, 0.5, over)
    with pytest.raises(StepCrashed):
        list(made)


@pytest.mark.integration
@pytest.mark.usefixtures("impatient")
def test_a_tokenizer_that_is_stuck_on_every_row_is_given_up(monkeypatch):
    monkeypatch.setattr(pool, "MAX_ROWS_OVER", 2)
    with pytest.raises(CheckpointError, match="on each of 2 rows"):
        list(make_pool(_stuck_on(*range(8)), chunks_of([np.arange(8)]), 8, 2))


@pytest.mark.integration
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", SLEEPING_POOL, str(tmp_path)])
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        workers = [int(path.name) for path in tmp_path.iterdir()]
        assert all(map(_is_alive, workers))
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(map(_is_alive, workers)))


def test_chunks_cover_every_selected_row_once(monkeypatch):
    monkeypatch.setattr(pool, "ROWS_PER_CHUNK", 3)
    chunks = list(chunks_of([np.array([1, 2, 5, 7]), np.array([], dtype=np.int64), np.array([0])]))
    assert [(chunk.source, chunk.rows.tolist()) for chunk in chunks] == [(0, [1, 2, 5]), (0, [7]), (2, [0])]


def test_blanks_at_the_ends_of_turns_make_no_other_prompt():
    turn = {"role": "user", "content": "Hi?"}
    assert prompt_key([turn]) == prompt_key([{**turn, "content": " Hi?\n"}])
    assert (
        len(
            {
                prompt_key([turn]),
                prompt_key([turn, turn]),
                prompt_key([{**turn, "role": "system"}]),
                prompt_key([{**turn, "content": "H i?"}]),
            }
        )
        == 4
    )


def test_a_rows_variables_go_before_its_sets():
    answers = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = [{**answers}, {**answers, "chat_template_kwargs": {"thinks": True, "n": 2}}]
    template = "{% for m in messages %}{{ thinks }}{{ n }}{{ m.content }}{% endfor %}"
    tokenizer = PairTokenizer(make_tokenizer(template), TokenizeRules(64))
    maker = PoolMaker((Texts([]),), ({},), tokenizer, template_kwargs=({"thinks": False},))
    pairs = [maker.pair(0, row)[1] for row in rows]
    assert [pair.template_kwargs for pair in pairs] == [{"thinks": False}, {"thinks": True, "n": 2}]
    chosen = [sides[0] for sides in tokenizer(pairs)]
    assert [tokenizer.tokenizer.decode(side.ids) for side in chosen] == ["FalseaFalseb", "True2aTrue2b"]
