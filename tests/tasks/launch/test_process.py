"""The process launcher with real child processes: ends, crashes, kills, time-outs, orphans, secrets."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_core.contract.errors import StoreError, TimedOut
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context, Stopped
from tasks.launch.launcher import CommandSpec
from tasks.launch.process import ProcessLauncher
from tests.signalled import Terminated, asked_to_stop_twice
from tests.waiting import wait_until

pytestmark = pytest.mark.integration  # real processes


def python_command(folder, script: str, timeout_seconds: float = 300, **more) -> CommandSpec:
    return CommandSpec((sys.executable, "-c", textwrap.dedent(script)), folder, timeout_seconds, **more)


def run(command: CommandSpec) -> tuple[int, list[str]]:
    lines: list[str] = []
    ended = ProcessLauncher(ComputeConfig(stop_grace_seconds=8)).run(
        (command,), Context(), lines.append, no_preparation
    )
    return ended.exit_code, lines


def no_preparation() -> None:
    """Nothing to do before these steps."""


def is_alive(pid: int) -> bool:
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_dead(pid: int) -> bool:
    return wait_until(lambda: not is_alive(pid), f"the end of process {pid}")


def test_both_streams_arrive_line_by_line_with_the_exit_code(tmp_path):
    code, lines = run(
        python_command(
            tmp_path,
            """
        import os, sys
        print(os.getcwd(), flush=True)
        print("to stderr", file=sys.stderr, flush=True)
        print("last, without newline", end="")
        sys.exit(7)""",
        )
    )
    assert code == 7
    assert lines == [str(tmp_path), "to stderr", "last, without newline"]


def test_a_killed_child_is_told_by_a_negative_code(tmp_path):
    code, _ = run(python_command(tmp_path, "import os; os.kill(os.getpid(), 9)"))
    assert code == -signal.SIGKILL


def test_bytes_that_are_no_text_do_not_stop_the_log(tmp_path):
    _, lines = run(python_command(tmp_path, r"import sys; sys.stdout.buffer.write(b'a\xff\nb\n')"))
    assert [line[0] for line in lines] == ["a", "b"]


def test_a_step_over_its_time_is_asked_first_then_stopped_with_all_its_children(tmp_path):
    """The leader stands for `accelerate launch`: it dies of SIGTERM, and with it (by PDEATHSIG) would the trainer."""
    (tmp_path / "trainer.py").write_text(
        textwrap.dedent("""
        import ctypes, os, signal, time
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        open("trainer", "w").write(str(os.getpid()))
        def checkpoint(*_):
            time.sleep(0.3)
            open("checkpoint", "w").close()
        signal.signal(signal.SIGTERM, checkpoint)
        while True:
            time.sleep(0.1)""")
    )
    with pytest.raises(TimedOut, match="longer than 8 s"):
        run(
            python_command(
                tmp_path,
                """
            import subprocess, sys
            subprocess.run([sys.executable, "trainer.py"])""",
                timeout_seconds=8,  # to come up in
            )
        )
    assert (tmp_path / "checkpoint").exists()
    assert wait_until_dead(int((tmp_path / "trainer").read_text()))


def test_a_single_process_is_asked_first(tmp_path):
    with pytest.raises(TimedOut):
        run(
            python_command(
                tmp_path,
                """
            import signal, sys, time
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(open("asked", "w").close()))
            time.sleep(600)""",
                timeout_seconds=8,
            )
        )
    assert (tmp_path / "asked").exists()


def test_what_a_finished_step_leaves_running_is_stopped(tmp_path):
    code, lines = run(
        python_command(
            tmp_path,
            """
        import subprocess
        print(subprocess.Popen(["sleep", "600"]).pid)""",
        )
    )
    assert code == 0
    assert wait_until_dead(int(lines[0]))


def is_stopped_as_soon_as_it_is_up(folder: Path, context: Context, on_line: Callable[[str], None]) -> bool:
    """Run a step that would sleep; it says when it is up."""
    sleeping = python_command(
        folder,
        """
        import os, time
        open("pid", "w").write(str(os.getpid()))
        print("up", flush=True)
        time.sleep(600)""",
    )
    with pytest.raises((KeyboardInterrupt, Stopped)) as stopped:
        ProcessLauncher(ComputeConfig(stop_grace_seconds=1)).run(
            (sleeping,), context, on_line, no_preparation
        )
    assert isinstance(stopped.value, Stopped) == (context.stop is not None)
    return wait_until_dead(int((folder / "pid").read_text()))


def test_cancelling_the_wait_stops_the_step(tmp_path):
    def cancel(line: str) -> None:
        raise KeyboardInterrupt

    assert is_stopped_as_soon_as_it_is_up(tmp_path, Context(), cancel)


def test_a_second_sigterm_does_not_cut_the_stop_short(tmp_path):
    """As from a worker that is taken down while a run of its is being cancelled."""
    slow_to_stop = python_command(
        tmp_path,
        """
        import pathlib, signal, sys, time
        def checkpoint(*_):
            pathlib.Path("asked").touch()
            while not pathlib.Path("go-on").exists():
                time.sleep(0.05)
            pathlib.Path("checkpoint").write_text("written")
            sys.exit(20)
        signal.signal(signal.SIGTERM, checkpoint)
        pathlib.Path("up").touch()
        time.sleep(600)""",
    )
    up, asked, go_on = (tmp_path / name for name in ("up", "asked", "go-on"))
    with asked_to_stop_twice(up.exists, asked.exists, go_on.touch), pytest.raises(Terminated):
        ProcessLauncher(ComputeConfig(stop_grace_seconds=300)).run(
            (slow_to_stop,), Context(), print, no_preparation
        )
    assert (tmp_path / "checkpoint").exists()


def test_a_step_in_a_thread_is_stopped_by_its_event(tmp_path):
    stop = threading.Event()
    assert is_stopped_as_soon_as_it_is_up(tmp_path, Context(stop=stop), lambda line: stop.set())


def test_killing_the_orchestrator_kills_the_step(tmp_path):
    orchestrator = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from tasks.launch.compute_config import ComputeConfig
        from tasks.launch.context import Context
        from tasks.launch.launcher import CommandSpec
        from tasks.launch.process import ProcessLauncher
        script = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'
        command = CommandSpec((sys.executable, "-c", script), Path({str(tmp_path)!r}), 600)
        ProcessLauncher(ComputeConfig()).run((command,), Context(), lambda line: print(line, flush=True), lambda: None)"""),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    step = int(orchestrator.stdout.readline())
    orchestrator.kill()
    orchestrator.wait()
    orchestrator.stdout.close()
    assert wait_until_dead(step)


def test_secrets_stay_out_of_a_step_that_does_not_name_them(tmp_path, monkeypatch):
    """What is not known to be needed stays out as well, whatever it is called."""
    for name in (
        "HF_TOKEN",
        "WANDB_API_KEY",
        "PREFECT_API_URL",
        "MY_PASSWORD",
        "OPENAI_KEY",
        "DB_PASS",
        "SSH_PRIVATE_KEY",
        "GITHUB_PAT",
        "DATABASE_URL",
        "PAIRLINE_DATABASE_URL",
        "PIP_INDEX_URL",
        "AWS_SESSION",
        "HTTPS_PROXY",
    ):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("OMP_TEST_PLAIN", "seen")
    script = "import os; print(sorted(k for k, v in os.environ.items() if v in ('planted', 'seen', 'given')))"
    _, lines = run(python_command(tmp_path, script, env={"GIVEN": "given"}))
    assert lines == ["['GIVEN', 'OMP_TEST_PLAIN']"]
    _, lines = run(python_command(tmp_path, script, needs_network=True))
    assert lines == ["['HTTPS_PROXY', 'OMP_TEST_PLAIN']"]
    _, lines = run(python_command(tmp_path, script, secrets=("HF_TOKEN",)))
    assert lines == ["['HF_TOKEN', 'OMP_TEST_PLAIN']"]


def test_a_program_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match="/no/such/python"):
        run(CommandSpec(("/no/such/python",), tmp_path, 5))


def test_the_step_lives_in_its_own_session(tmp_path):
    _, lines = run(python_command(tmp_path, "import os; print(os.getsid(0))"))
    assert int(lines[0]) != os.getsid(0)


def test_a_killed_rank_is_named_though_torchrun_ends_with_1(tmp_path):
    """What it prints is taken from a run of two ranks (tests/dpo_core/engine/test_sharded.py)."""
    report = "Root Cause (first observed failure):\n[0]:\n  time      : 2026-03-01_17:40:00\n"
    report += "  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)"
    for code, cause in ((1, "rank 1 was killed by signal 9 (SIGKILL)."), (0, "")):
        command = python_command(tmp_path, f"import sys; print({report!r}); sys.exit({code})")
        launcher = ProcessLauncher(ComputeConfig())
        assert launcher.run((command,), Context(), print, no_preparation).cause == cause
