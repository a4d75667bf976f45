"""A directory that nothing could be published in is refused before anything is trained, and nothing is changed by it."""

import errno
import os
from pathlib import Path

import pytest

from dpo_core.contract.config import AdapterConfig, OptimConfig
from dpo_core.contract.errors import ConfigError, DiskFull
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.store import new_directory
from tasks.publish.directory_rights import PUBLISHED, check_directory
from tasks.publish.model_card import CardInputs, render_card


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def published(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in PUBLISHED:
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    "place", ["new", "there", "several/new/folders", "link/new", "checkpoint", "to-checkpoint"]
)
def test_a_place_that_can_be_published_in_is_let_pass_and_nothing_is_left_behind(tmp_path, place):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "to-checkpoint").symlink_to(published(tmp_path / "checkpoint"))
    before = names_below(tmp_path)
    check_directory(tmp_path / place)
    assert names_below(tmp_path) == before
    if "checkpoint" not in place:  # what was promised is so
        with new_directory(tmp_path / place) as aside:
            (aside / "config.json").write_text("{}")


PARENT = CheckpointRef(path="/store/x", fingerprint="f" * 64, tokenizer_fingerprint="t", source="org/sft")
KNOWN = CardInputs(name="mine", loss=LossConfig(name="dpo"))
PREPARED = KNOWN.model_copy(update={"parent": PARENT, "data_fingerprint": "d" * 64})
ENDED = PREPARED.model_copy(update={"steps": 9, "metrics_after": {"loss": 0.5}})


@pytest.mark.parametrize(
    ("expected", "change", "lacking"),
    [
        (KNOWN, {}, None),
        (PREPARED, {}, None),
        (KNOWN, {"name": "another"}, "# mine"),
        (KNOWN, {"loss": LossConfig(name="dpo", beta=0.2)}, "| beta | 0.1 |"),
        (KNOWN, {"optim": OptimConfig(learning_rate=1e-3)}, "| learning rate | "),
        (KNOWN, {"adapter": AdapterConfig(kind="lora")}, None),  # more is said than is known
        (PREPARED, {"data_fingerprint": "e" * 64}, "`dddd"),
        (PREPARED, {"parent": PARENT.model_copy(update={"fingerprint": "g" * 64})}, "`ffff"),
        (KNOWN, {"data_fingerprint": "e" * 64}, None),  # what is not prepared yet is not known
    ],
)
def test_a_checkpoint_of_another_run_is_told_from_this_one_s_own(tmp_path, expected, change, lacking):
    """By what its card says of its settings; of rows and weights as well once they are known."""
    place = published(tmp_path / "checkpoint")
    (place / "README.md").write_text(render_card(ENDED.model_copy(update=change)))
    other = KNOWN.model_copy(update={"name": "a member of the sweep"})
    if lacking is None:
        check_directory(place, [other, expected])  # one of several that may win is enough
        return
    with pytest.raises(
        ConfigError, match=r"holds the checkpoint of another run.* delete this one"
    ) as refused:
        check_directory(place, [expected])
    assert lacking in str(refused.value)
    check_directory(place)  # of whom nothing is known


REFUSED = {
    "file": "file is no directory",
    "file/below": "cannot be made: .*file is no directory",
    "link": "link is a link to .*there, which is not replaced",
    "dangling": "dangling is a link to .*nowhere",
    "dangling/below": "cannot be made: .*dangling is no directory",
    "thesis": "thesis holds something other than a published checkpoint .no config.json and no README.md.",
    "n" * 250: "cannot be written in .*File name too long",
}


@pytest.mark.parametrize("place", REFUSED)
def test_what_would_fail_at_the_end_is_refused_with_what_to_do(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "one.tex").write_text("years of work")
    before = names_below(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"upload\.directory .*{REFUSED[place]}.*[Nn]ame another directory"
    ):
        check_directory(tmp_path / place)
    assert names_below(tmp_path) == before


def test_a_place_that_may_not_be_written_is_refused():
    """Of the kernel's own file system, which lets nobody make folders, whoever runs the test."""
    with pytest.raises(ConfigError, match=r"cannot be written in /sys \(.*\).*Make it writable"):
        check_directory(Path("/sys/pairline/checkpoint"))


def test_where_a_disk_is_mounted_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path)
    with pytest.raises(ConfigError, match=rf"is where a disk is mounted.*Name {tmp_path}/checkpoint\."):
        check_directory(tmp_path)
    check_directory(tmp_path / "checkpoint")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_room_is_told_and_nothing_is_left_on_it(tmp_path, monkeypatch, number):
    def full(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull, match=r"No space left in .*, where upload\.directory .*new is to be"):
        check_directory(tmp_path / "new")
    assert names_below(tmp_path) == []
