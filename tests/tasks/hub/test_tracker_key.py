"""The tracker's key is in the environment while the training runs, and at no other time."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.tracking_config import WANDB_KEY, TrackingConfig
from tasks.hub import tracker_key as module
from tasks.hub.tracker_key import with_tracker_key
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import CommandSpec
from tasks.launch.process import ProcessLauncher, clean_environment
from tasks.launch.workplace import Workplace

ONLINE = TrackingConfig(trackers=("wandb",), wandb_mode="online", wandb_key_block="wandb-key")
KEY = "planted-wandb-key"
PLACE = Workplace(Path("/store"), ProcessLauncher(ComputeConfig()))


@pytest.fixture(autouse=True)
def _no_key_of_the_machines_owner(monkeypatch):
    monkeypatch.delenv(WANDB_KEY, raising=False)


@pytest.fixture
def _block(monkeypatch):
    """The block's loading is tested where there is a server (tests/flows/test_both_ends.py)."""
    monkeypatch.setattr(module, "load_secret", lambda name, setting, variable: {"wandb-key": KEY}[name])


@pytest.mark.usefixtures("_block")
def test_the_key_of_the_block_reaches_the_step_that_names_it_alone(tmp_path, caplog):
    def seen(place: Workplace, *secrets: str) -> str | None:
        command = CommandSpec(
            argv=("true",),
            folder=tmp_path,
            timeout_seconds=1,
            step="train",
            job_fingerprint="f",
            secrets=secrets,
        )
        return clean_environment(command, place.context).get(WANDB_KEY)

    with with_tracker_key(PLACE, ONLINE) as place:
        assert (seen(place, WANDB_KEY), seen(place, "HF_TOKEN"), seen(place)) == (KEY, None, None)
        assert WANDB_KEY not in os.environ
        assert KEY not in repr(place)
        with ThreadPoolExecutor() as pool:  # another run of this process
            assert pool.submit(seen, PLACE, WANDB_KEY).result() is None
        logging.getLogger("wandb").warning("refused: %s", KEY)
    assert seen(PLACE, WANDB_KEY) is None
    assert "refused" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.usefixtures("_block")
def test_the_block_counts_more_than_the_environment(monkeypatch):
    monkeypatch.setenv(WANDB_KEY, "own")
    with with_tracker_key(PLACE, ONLINE) as place:
        assert place.context.secret(WANDB_KEY) == KEY
    assert PLACE.context.secret(WANDB_KEY) == "own"


def test_online_without_a_key_is_refused_and_offline_needs_none():
    with (
        pytest.raises(ConfigError, match="there is no key"),
        with_tracker_key(PLACE, TrackingConfig(trackers=("wandb",), wandb_mode="online")),
    ):
        pass
    with with_tracker_key(PLACE, TrackingConfig(trackers=("wandb",))):
        assert WANDB_KEY not in os.environ
