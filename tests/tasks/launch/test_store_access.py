"""A step's user can write its folders and read its inputs, or an error says what cannot be read."""

import contextlib
import os
import shutil

import pytest

from dpo_core.contract.errors import StoreError
from tasks.launch.store_access import STORE_MARKER, check_readable, hand_over, let_read, with_link_targets

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
    assert set(with_link_targets((folder,), (folder,))) == {folder, blob}


def test_a_link_in_what_a_step_left_is_not_followed(folder, tmp_path):
    (tmp_path / "private").write_text("root's own")
    (folder / "tokenizer.json").symlink_to(tmp_path / "private")
    assert with_link_targets((folder,), ()) == (folder,)


def test_a_folder_that_a_step_replaces_by_a_link_meanwhile_leads_nowhere(tmp_path, monkeypatch):
    """Steps that share a cache run beside each other, so one of them may change what is being handed over."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    cache, private = tmp_path / "cache", tmp_path / "private"
    for place in (cache / "sub", private):
        place.mkdir(parents=True)
        (place / "file").touch()
    give, scan = os.chown, os.scandir

    def swap() -> None:
        if (cache / "sub").is_dir() and not (cache / "sub").is_symlink():
            (cache / "sub").rename(tmp_path / "moved")
            (cache / "sub").symlink_to(private)

    def give_then_swap(path, *user, **where) -> None:
        give(path, *user, **where)
        if path == "sub":
            swap()

    def scan_then_swap(place="."):
        found = scan(place)
        if str(place) == str(cache):
            entries = list(found)
            swap()
            return contextlib.nullcontext(iter(entries))
        return found

    monkeypatch.setattr(os, "chown", give_then_swap)
    monkeypatch.setattr(os, "scandir", scan_then_swap)
    with contextlib.suppress(StoreError):
        hand_over((cache,), SOMEONE)
    assert {path.lstat().st_uid for path in (private, private / "file")} == {0}


@pytest.mark.parametrize(("marked", "expected"), [(True, 0o640), (False, 0o600)])
def test_roots_own_files_in_its_store_are_readable_for_the_step_whatever_the_umask(
    tmp_path, marked, expected
):
    if os.geteuid() != 0:
        pytest.skip("only root has another user's steps")
    snapshot = tmp_path / "store" / "checkpoints" / "ab"
    snapshot.mkdir(parents=True)
    if marked:
        (tmp_path / "store" / STORE_MARKER).touch()
    (tmp_path / "private").write_text("not of the store")
    (tmp_path / "private").chmod(0o600)
    (snapshot / "link").symlink_to(tmp_path / "private")
    (snapshot / "file").touch()
    (snapshot / "file").chmod(0o600)
    snapshot.chmod(0o700)
    let_read((snapshot,), SOMEONE)
    assert (snapshot / "file").stat().st_mode & 0o777 == expected
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    (snapshot / "link").unlink()
    with (
        contextlib.nullcontext() if marked else pytest.raises(StoreError, match="cannot be read by the user")
    ):
        check_readable((snapshot,), SOMEONE)


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
    give = os.chown

    def give_while_others_write(path, *user, **where) -> None:
        give(path, *user, **where)
        if path != ".":
            monkeypatch.setattr(os, "chown", give)
            for number in range(0, 20, 2):
                (folder / f"file{number}").unlink()
                shutil.rmtree(folder / f"sub{number}")

    monkeypatch.setattr(os, "chown", give_while_others_write)
    hand_over((folder,), SOMEONE)
    left = [folder, *folder.rglob("*")]
    assert len(left) == 31
    assert {path.lstat().st_uid for path in left} == {10001}
