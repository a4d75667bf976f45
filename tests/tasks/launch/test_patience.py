"""Waiting for who does not answer: a real refused connection in an engine's place, and a controller's by its programs."""

import socket
import threading
import time
from pathlib import Path

import pytest

from tasks.launch.context import Context, Stopped
from tasks.launch.docker.engine import ContainerEngine
from tasks.launch.docker.engine_answers import EngineLost
from tasks.launch.patience import NoAnswer, Silence, patiently
from tasks.launch.slurm.client import NotAuthenticated, SlurmAway, queue
from tests.tasks.launch.slurm.recorded import NO_ANSWER, RecordedSlurm

LONG = 600.0


class Late:
    """Answers from the third time on."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> int:
        self.asked += 1
        if self.asked < 3:
            raise EngineLost("not yet")
        return self.asked


@pytest.fixture
def silent_engine(tmp_path: Path) -> ContainerEngine:
    """An engine's socket, behind which nobody listens any more."""
    place = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))
    return ContainerEngine(f"unix://{place}")


def stopped_soon() -> Context:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    return Context(stop=stop)


def test_who_answers_late_has_answered():
    assert patiently(Late(), Context(), LONG) == 3


def test_a_run_is_stopped_while_an_engine_is_away(silent_engine: ContainerEngine):
    begun = time.monotonic()
    with pytest.raises(Stopped):
        patiently(lambda: silent_engine.find("x"), stopped_soon(), LONG)
    assert time.monotonic() - begun < 60  # of the ten minutes that it would be waited for


def test_a_run_is_stopped_while_a_controller_is_away(monkeypatch, tmp_path):
    slurm = RecordedSlurm(tmp_path / "bin", monkeypatch)
    slurm.does("squeue", NO_ANSWER)
    begun = time.monotonic()
    with pytest.raises(Stopped):
        patiently(queue, stopped_soon(), LONG)
    assert time.monotonic() - begun < 60


def test_an_engine_that_stays_away_is_given_up(silent_engine: ContainerEngine):
    with pytest.raises(EngineLost, match="did not answer"):
        patiently(lambda: silent_engine.find("x"), Context(), 0.5)


def test_who_is_not_known_is_given_up_sooner_than_who_is_away(monkeypatch):
    """As where slurmctld is started again, and munged after it: what counts is for how long it has said so."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    silence = Silence(3600.0)

    def is_too_long(after_seconds: float, away: NoAnswer) -> bool:
        now[0] += after_seconds
        return silence.is_too_long(away)

    assert not is_too_long(0, SlurmAway("away"))
    assert not is_too_long(1000, NotAuthenticated("who?"))
    assert not is_too_long(299, NotAuthenticated("who?"))
    assert not is_too_long(0, SlurmAway("away"))
    assert not is_too_long(299, NotAuthenticated("who?"))
    assert is_too_long(300, NotAuthenticated("who?"))
    silence.end()
    assert not is_too_long(3599, SlurmAway("away"))
    assert not is_too_long(3599, SlurmAway("away"))
    assert is_too_long(1, SlurmAway("away"))
