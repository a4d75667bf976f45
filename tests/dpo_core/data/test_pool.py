"""Worker processes: what happens when one of them, or their parent, is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dpo_core.data import pool
from dpo_core.data.pool import Chunk, chunks_of, make_pool, prompt_key
from dpo_core.errors import StepCrashed

SLEEPING_POOL = """
import os, pathlib, sys, time
import numpy as np
from dpo_core.data import pool
pool.MIN_ROWS_FOR_WORKERS = 1
def maker(chunk):
    (pathlib.Path(sys.argv[1]) / str(os.getpid())).touch()
    time.sleep(600)
list(pool.make_pool(maker, [pool.Chunk(0, np.array([i])) for i in range(2)], 2, 2))
"""


def _die(chunk):
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def _is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_a_worker_that_dies_is_a_crash_that_is_worth_a_retry(monkeypatch):
    monkeypatch.setattr(pool, "MIN_ROWS_FOR_WORKERS", 1)
    with pytest.raises(StepCrashed, match="num_workers") as raised:
        list(make_pool(_die, [Chunk(0, np.array([0])), Chunk(0, np.array([1]))], 2, 2))
    assert raised.value.retryable


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", SLEEPING_POOL, str(tmp_path)])
    try:
        _wait_until(lambda: len(list(tmp_path.iterdir())) == 2, seconds=60)
        workers = [int(path.name) for path in tmp_path.iterdir()]
        assert all(map(_is_alive, workers))
    finally:
        parent.kill()
        parent.wait()
    _wait_until(lambda: not any(map(_is_alive, workers)), seconds=20)


def test_chunks_cover_every_selected_row_once(monkeypatch):
    monkeypatch.setattr(pool, "ROWS_PER_CHUNK", 3)
    chunks = list(chunks_of([np.array([1, 2, 5, 7]), np.array([], dtype=np.int64), np.array([0])]))
    assert [(chunk.source, chunk.rows.tolist()) for chunk in chunks] == [(0, [1, 2, 5]), (0, [7]), (2, [0])]


def test_blanks_at_the_ends_of_turns_make_no_other_prompt():
    turn = {"role": "user", "content": "Hi?"}
    assert prompt_key([turn]) == prompt_key([{**turn, "content": " Hi?\n"}])
    assert len({prompt_key([turn]), prompt_key([turn, turn]), prompt_key([{**turn, "role": "system"}]),
                prompt_key([{**turn, "content": "H i?"}])}) == 4
