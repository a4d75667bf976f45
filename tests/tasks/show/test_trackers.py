"""Where a training is tracked: a link that a step wrote down, or the command for its files."""

from pathlib import Path
from typing import get_args

import pytest
from wandb import Settings

from dpo_core.contract.tracking_config import WANDB_ADDRESS_FILE, Tracker, TrackingConfig
from tasks.show.trackers import LONGEST_ADDRESS, place_of, wandb_address

ADDRESS = "https://wandb.ai/a-team/pairline/runs/0123456789abcdef"


def test_online_the_run_s_page_is_linked_and_else_files_have_a_command(tmp_path: Path):
    shown = {name: place_of(name, tmp_path) for name in get_args(Tracker)}
    assert all(str(tmp_path) in place and place.startswith("`") for place in shown.values())
    assert f"tensorboard --logdir {tmp_path}" in shown["tensorboard"]
    (tmp_path / WANDB_ADDRESS_FILE).write_text(ADDRESS)
    assert place_of("wandb", tmp_path).endswith(f"]({ADDRESS})")


@pytest.mark.parametrize("project", ["pairline", "a+b", "my_project-1.2", "a=b@c", "a(b)", "projekt-ü"])
@pytest.mark.parametrize("server", ["https://api.wandb.ai", "http://127.0.0.1:8080"])
def test_an_address_as_wandb_itself_makes_it_is_linked(tmp_path: Path, project: str, server: str):
    """No server of theirs has been asked: this is the address that their client would give the run."""
    TrackingConfig(project=project)
    asked = Settings(base_url=server, entity="a team", project=project, run_id="0123456789abcdef")
    (tmp_path / WANDB_ADDRESS_FILE).write_text(asked.run_url)
    assert asked.run_url.endswith("/runs/0123456789abcdef")
    assert wandb_address(tmp_path) == asked.run_url


@pytest.mark.parametrize(
    "written",
    [
        b"javascript:alert(1)",
        b"https://a/b) [c](https://d",
        b"https://a/b\n",
        b"https://a/b?c=<d>",
        b"https://a/" + b"b" * LONGEST_ADDRESS,
        b"https://a/\xff",
        b"",
    ],
)
def test_what_is_no_address_is_no_link(tmp_path: Path, written: bytes):
    """The step may write what it likes."""
    (tmp_path / WANDB_ADDRESS_FILE).write_bytes(written)
    assert wandb_address(tmp_path) == ""


def test_an_address_that_is_a_pipe_or_a_folder_is_none(tmp_path: Path):
    (tmp_path / WANDB_ADDRESS_FILE).mkdir()
    assert wandb_address(tmp_path) == ""
