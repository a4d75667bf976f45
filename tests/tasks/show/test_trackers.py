"""Where a training is tracked: a link that a step wrote down, or the command for its files."""

from pathlib import Path
from typing import get_args

import pytest

from dpo_core.contract.tracking_config import WANDB_ADDRESS_FILE, Tracker
from tasks.show.trackers import LONGEST_ADDRESS, place_of, wandb_address

ADDRESS = "https://wandb.ai/a-team/pairline/runs/0123456789abcdef"


def test_online_the_run_s_page_is_linked_and_else_files_have_a_command(tmp_path: Path):
    shown = {name: place_of(name, tmp_path) for name in get_args(Tracker)}
    assert all(str(tmp_path) in place and place.startswith("`") for place in shown.values())
    assert f"tensorboard --logdir {tmp_path}" in shown["tensorboard"]
    (tmp_path / WANDB_ADDRESS_FILE).write_text(ADDRESS)
    assert place_of("wandb", tmp_path).endswith(f"]({ADDRESS})")


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
