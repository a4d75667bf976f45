"""A container's first program where it has nobody else to end it: its standard input, and what it tells of memory."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dpo_core.contract.rank_container import END_WITH_INPUT
from dpo_core.in_container import killed_for_memory


def test_the_command_ends_when_the_input_does_and_has_none_itself():
    script = "import os, sys, time; print(sys.stdin.read() == '', os.environ.get(NAME), flush=True); time.sleep(60)"
    program = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dpo_core.in_container",
            sys.executable,
            "-c",
            script.replace("NAME", repr(END_WITH_INPUT)),
        ],
        env=os.environ | {END_WITH_INPUT: "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    assert program.stdout.readline() == "True None\n"
    began = time.monotonic()
    program.stdin.close()
    assert program.wait(timeout=50) == 128 + 9
    assert time.monotonic() - began < 50
    program.stdout.close()


def test_of_several_requests_to_stop_the_command_hears_one():
    script = """
        import signal, time
        def stop(*_):
            print("asked", flush=True)
            time.sleep(1)
            raise SystemExit(20)
        signal.signal(signal.SIGTERM, stop)
        print("up", flush=True)
        time.sleep(60)
    """
    program = subprocess.Popen(
        [sys.executable, "-m", "dpo_core.in_container", sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "up\n"
    program.send_signal(signal.SIGTERM)
    assert program.stdout.readline() == "asked\n"
    program.send_signal(signal.SIGTERM)
    said, _ = program.communicate(timeout=50)
    assert (said, program.returncode) == ("", 20)


@pytest.mark.parametrize(
    ("file", "text", "killed"),
    [
        ("memory.events", "low 0\nmax 3\noom 1\noom_kill 1\n", True),
        ("memory.events", "low 0\noom_kill 0\n", False),
        ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", True),
        ("elsewhere", "", False),
    ],
)
def test_the_kernel_tells_whether_it_killed_for_memory(file: str, text: str, killed: bool, tmp_path: Path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert killed_for_memory(tmp_path) == killed
