"""A step's user can write its folders and read its inputs, or an error says what cannot be read."""

import os
import shutil

import pytest

from dpo_core.errors import StoreError
from tasks.launch.store_access import check_readable, hand_over, with_link_targets

SOMEONE = (10001, 10001)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "input"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_text("x")
    for path in (folder, folder / "sub"):
        path.chmod(0o755)
    (folder / "sub" / "file").chmod(0o644)
    return folder


def test_readable_inputs_pass(folder):
    check_readable((folder, folder / "sub" / "file"), SOMEONE)


@pytest.mark.parametrize(("part", "mode"), [("sub/file", 0o600), ("", 0o700)])
def test_an_input_that_the_steps_user_may_not_read_is_named(folder, part, mode):
    (folder / part).chmod(mode)
    with pytest.raises(StoreError, match=rf"{folder / part} cannot be read by the user 10001.*chmod o\+r"):
        check_readable((folder,), SOMEONE)
    check_readable((folder,), (os.getuid(), os.getgid()))


def test_an_input_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match="nowhere is an input of the step and does not exist"):
        check_readable((tmp_path / "nowhere",), SOMEONE)


def test_what_links_inside_an_input_point_to_is_an_input_too(folder, tmp_path):
    """As in the Hub's cache: snapshots/<commit>/model.safetensors -> ../../blobs/<hash>."""
    blob = tmp_path / "blobs" / "abc"
    blob.parent.mkdir()
    blob.write_text("weights")
    (folder / "model.safetensors").symlink_to("../blobs/abc")
    (folder / "again").symlink_to("sub/file")
    assert set(with_link_targets((folder,))) == {folder, blob}


def test_folders_are_made_and_given_to_the_steps_user(folder, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    (folder / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").write_text("root's own")
    hand_over((folder, tmp_path / "new"), SOMEONE)
    assert {path.lstat().st_uid for path in (folder, *folder.rglob("*"), tmp_path / "new")} == {10001}
    assert (tmp_path / "kept").stat().st_uid == 0


def test_files_that_vanish_meanwhile_leave_no_other_behind(tmp_path, monkeypatch):
    """As where two steps share a cache: one renames what it wrote aside while the other's folders are handed over."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    folder = tmp_path / "cache"
    for number in range(20):
        (folder / f"sub{number}").mkdir(parents=True)
        (folder / f"sub{number}" / "file").touch()
        (folder / f"file{number}").touch()
    give = os.lchown

    def give_while_others_write(path, *user) -> None:
        give(path, *user)
        if path != folder:
            monkeypatch.setattr(os, "lchown", give)
            for number in range(0, 20, 2):
                (folder / f"file{number}").unlink()
                shutil.rmtree(folder / f"sub{number}")

    monkeypatch.setattr(os, "lchown", give_while_others_write)
    hand_over((folder,), SOMEONE)
    left = [folder, *folder.rglob("*")]
    assert len(left) == 31
    assert {path.lstat().st_uid for path in left} == {10001}
