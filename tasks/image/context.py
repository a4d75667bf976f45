"""What goes into a build: the commit's files, as a tar whose bytes depend on their names and contents alone."""

import io
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dpo_core.contract.errors import ConfigError
from tasks.image.config import ImageConfig

CODE = ("dpo_core", "pyproject.toml")  # what the code image adds to the dependency image
BUILD = ("images/trainer", "requirements")  # what says how to build
GIT_TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class SourceTree:
    """The files of ``CODE`` and ``BUILD``. ``dirty``: they are the working tree's and differ from the commit's."""

    commit: str
    revision: str  # the newest commit that changed one of these files
    dirty: bool
    files: dict[str, bytes]  # by POSIX path relative to the checkout, sorted

    def below(self, *paths: str) -> dict[str, bytes]:
        """Return the files of some folders and files."""
        return {
            name: content
            for name, content in self.files.items()
            if any(name == path or name.startswith(f"{path}/") for path in paths)
        }


def read_sources(root: Path, dirty_tree: str = ImageConfig().dirty_tree) -> SourceTree:
    """Return the sources of the checkout at ``root``.

    Raises ``ConfigError`` where there is no checkout, or where files differ from the commit and that is refused.
    """
    commit = _commit(root)
    revision = _git(root, "log", "-1", "--format=%H", commit, "--", *CODE, *BUILD).decode().strip() or commit
    changed = _changed(root)
    if not changed:
        return SourceTree(commit, revision, False, _committed(root, commit))
    if dirty_tree == "refuse":
        raise ConfigError(
            f"{_listed(changed)} in {root} differ from commit {commit[:12]}, so no commit says what the "
            "trainer image would hold. Commit or stash them, or set image.dirty_tree to tag: then the image "
            "is built from the files as they are and marked as dirty."
        )
    return SourceTree(commit, revision, True, _uncommitted(root))


def write_tar(file: IO[bytes], contents: Iterable[tuple[str, bytes | Path]]) -> None:
    """Write files given as bytes or by path, in sorted order, owned by root, made in 1970, readable by everyone."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in sorted(contents):
            entry = tarfile.TarInfo(name)
            entry.mode = 0o644
            if isinstance(content, Path):
                entry.size = content.stat().st_size
                with content.open("rb") as source:
                    tar.addfile(entry, source)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return what ``write_tar`` writes, in memory, for small contexts."""
    buffer = io.BytesIO()
    write_tar(buffer, files.items())
    return buffer.getvalue()


def _commit(root: Path) -> str:
    """HEAD of the checkout that starts at ``root`` (a package installed inside somebody's repository is none)."""
    try:
        top = Path(_git(root, "rev-parse", "--show-toplevel").decode().strip())
        commit = _git(root, "rev-parse", "--verify", "HEAD^{commit}").decode().strip()
        tracked = _git(root, "ls-files", "dpo_core/__init__.py")
    except ConfigError as error:
        raise ConfigError(
            f"{root} is no git checkout, so no commit says what the trainer image would hold ({error}). Run "
            "from a checkout of the repository, or name a built image in image.use."
        ) from None
    if top.resolve() != root.resolve() or not tracked:
        raise ConfigError(
            f"Pairline lies in {root}, which is no git checkout of its own (installed as a package?), so no "
            "commit says what the trainer image would hold. Run from a checkout of the repository, or name a "
            "built image in image.use."
        )
    return commit


def _changed(root: Path) -> list[str]:
    status = _git(
        root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *CODE, *BUILD
    )
    return [entry[3:] for entry in status.decode(errors="replace").split("\0") if entry]


def _committed(root: Path, commit: str) -> dict[str, bytes]:
    archive = _git(root, "archive", "--format=tar", commit, "--", *CODE, *BUILD)
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for entry in tar:
            if entry.isfile():
                content = tar.extractfile(entry)
                assert content is not None  # it is a file
                files[entry.name] = content.read()
            elif not entry.isdir():
                raise ConfigError(
                    f"{entry.name} in commit {commit[:12]} is a link; the trainer image takes files only."
                )
    return dict(sorted(files.items()))


def _uncommitted(root: Path) -> dict[str, bytes]:
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CODE, *BUILD)
    names = sorted({name for name in listed.decode().split("\0") if name})
    return {name: (root / name).read_bytes() for name in names if (root / name).is_file()}


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _git(root: Path, *arguments: str) -> bytes:
    """Run git in ``root``. Raises ``ConfigError`` with what it said."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            check=False,
            timeout=GIT_TIMEOUT_SECONDS,
        )
    except FileNotFoundError:
        raise ConfigError(
            "git is needed to build the trainer image from the commit, and it is not installed"
        ) from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"git {arguments[0]} took longer than {GIT_TIMEOUT_SECONDS} s in {root}") from None
    if done.returncode:
        raise ConfigError(done.stderr.decode(errors="replace").strip() or f"git {arguments[0]} failed")
    return done.stdout
