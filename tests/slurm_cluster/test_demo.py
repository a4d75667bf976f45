"""`make demo LAUNCHER=slurm`: what asks it to end reaches the run, which ends its jobs; the private cluster ends with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm_cluster.test_launcher import wait_for
from tests.slurm_cluster.trial import processes

pytestmark = pytest.mark.integration
COMMAND = """
import signal, sys, time
from pathlib import Path
def stop(*_):
    time.sleep(1)  # as writing a checkpoint does
    Path(sys.argv[1], "stopped").touch()
    sys.exit(7)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
Path(sys.argv[1], "up").touch()
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_lets_the_run_end_and_leaves_no_daemon(tmp_path: Path, number: int):
    argv = [sys.executable, "-m", "examples.slurm.run", sys.executable, "-c", COMMAND, str(tmp_path)]
    with subprocess.Popen(argv, env=os.environ | {"TMPDIR": str(tmp_path)}, start_new_session=True) as demo:
        wait_for(lambda: (tmp_path / "up").exists())
        # Ctrl-C reaches all of a terminal; `kill` and a scheduler's time limit this process alone.
        (os.killpg if number == signal.SIGINT else os.kill)(demo.pid, number)
        assert demo.wait(timeout=300) == 7
    assert (tmp_path / "stopped").exists()
    assert not list(tmp_path.glob("pairline-slurm-*"))
    assert not [argv for _, argv in processes() if "slurm" in argv[0] and str(tmp_path) in " ".join(argv)]
