"""The context is the commit: the same bytes wherever and whenever it is packed, and nothing that is not in the commit."""

import io
import os
import tarfile

import pytest

from dpo_core.contract.errors import ConfigError
from tasks.image.context import CODE, read_sources, tar_bytes, write_tar
from tests.tasks.image.checkout import commit, git, write


def test_one_commit_gives_the_same_bytes_in_every_checkout(checkout, tmp_path):
    other = tmp_path / "elsewhere"
    git(checkout, "clone", "--quiet", str(checkout), str(other))
    for path in (other / "dpo_core").iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    git(other, "config", "core.filemode", "false")  # a checkout that cannot keep modes
    first, second = read_sources(checkout), read_sources(other)
    assert tar_bytes(first.below(*CODE)) == tar_bytes(second.below(*CODE))
    assert not second.dirty


def test_a_tar_tells_neither_time_nor_owner(tmp_path):
    (tmp_path / "wheel").write_bytes(b"large")
    buffer = io.BytesIO()
    write_tar(buffer, [("b", tmp_path / "wheel"), ("a", b"1")])
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        entries = tar.getmembers()
        assert tar.extractfile("b").read() == b"large"
    assert [(e.name, e.mtime, e.uid, e.gid, e.uname, e.mode) for e in entries] == [
        (name, 0, 0, 0, "", 0o644) for name in ("a", "b")
    ]


def test_only_what_the_image_holds_is_packed(checkout):
    sources = read_sources(checkout)
    assert sorted(sources.below(*CODE)) == [
        "dpo_core/__init__.py",
        "dpo_core/loss/losses.py",
        "pyproject.toml",
    ]
    assert not any(name.startswith("flows") for name in sources.files)
    assert sources.commit == sources.revision == git(checkout, "rev-parse", "HEAD")


def test_a_commit_elsewhere_changes_the_commit_and_not_the_revision(checkout):
    before = read_sources(checkout)
    write(checkout, **{"flows/dpo_stage.py": "# another flow\n"})
    after_commit = commit(checkout)
    after = read_sources(checkout)
    assert after.commit == after_commit != before.commit
    assert (after.revision, after.files) == (before.revision, before.files)


@pytest.mark.parametrize(
    "path",
    ["dpo_core/loss/losses.py", "dpo_core/new.py", "images/trainer/Dockerfile", "requirements/train-cpu.txt"],
)
def test_a_dirty_tree_is_refused_by_name(checkout, path):
    write(checkout, **{path: "changed\n"})
    with pytest.raises(ConfigError, match=rf"{path} in .*image\.dirty_tree"):
        read_sources(checkout)


@pytest.mark.parametrize(
    "path", ["flows/dpo_stage.py", "notes.txt", "dpo_core/__pycache__/losses.cpython-311.pyc"]
)
def test_what_is_not_in_the_image_may_be_dirty(checkout, path):
    write(checkout, **{path: "changed\n"})
    assert not read_sources(checkout).dirty


def test_a_dirty_tree_is_taken_as_it_is_by_choice(checkout):
    write(
        checkout,
        **{
            "dpo_core/loss/losses.py": "BETA = 9\n",
            "dpo_core/new.py": "",
            "dpo_core/__pycache__/x.pyc": "no",
        },
    )
    (checkout / "dpo_core/__init__.py").unlink()
    sources = read_sources(checkout, dirty_tree="tag")
    assert sources.dirty
    assert sources.below("dpo_core") == {"dpo_core/loss/losses.py": b"BETA = 9\n", "dpo_core/new.py": b""}
    assert sources.commit == git(checkout, "rev-parse", "HEAD")


def test_what_is_no_checkout_is_refused_with_the_way_out(tmp_path, checkout):
    (tmp_path / "installed").mkdir()
    with pytest.raises(ConfigError, match=r"no git checkout.*image\.use"):
        read_sources(tmp_path / "installed")
    with pytest.raises(ConfigError, match=r"installed as a package.*image\.use"):
        read_sources(checkout / "dpo_core")  # a folder inside somebody's repository
