"""Where an SFT checkpoint comes from, and how it becomes a pinned local snapshot. Torch-free.

    source                      located as                        pinned by
    ``org/name`` (+ revision)   files of one commit, downloaded   the commit, resolved and recorded
    a directory                 itself                            its contents
    ``package:NAME``            the folder of an installed one    its contents

A snapshot is ``<store>/checkpoints/<id>/``; the id is a fingerprint of every file in it, so it never changes.
"""

import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache

from dpo_core.contract.checkpoint_files import (
    CONFIG,
    EXTRA_TEMPLATES,
    is_tokenizer_file,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError, RemoteError, StoreError, from_os_error
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.store import (
    HASH_CHUNK_BYTES,
    exclusive,
    fingerprint,
    new_directory,
    verify_files,
    write_json,
)
from tasks.checkpoint.allowed_code import code_names, other_code
from tasks.checkpoint.files import (
    PICKLE_SUFFIXES,
    WeightSource,
    checked_files,
    in_its_format,
    is_small,
    named_by_index,
    weight_source,
    weights_in,
)
from tasks.checkpoint.known_packages import PACKAGE_PREFIX, check_known_package, package_folder
from tasks.checkpoint.own_files import hash_named, opened_inside, read_json_file
from tasks.hub.commit import commit_of
from tasks.hub.download_size import Sizes, check_download, listed_sizes
from tasks.hub.errors import from_hub_error

log = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", *PICKLE_SUFFIXES)
SECONDS_FOR_ANOTHER_RUN = 600.0  # another run that copies the same snapshot is waited for


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint's files in a local folder. ``linkable``: the files never change in place, so links are safe."""

    folder: Path
    weights: WeightSource
    revision: str | None = None
    linkable: bool = False
    small: Path | None = None  # where the small files are that go with another tokenizer
    tokenizer_revision: str | None = None

    def folder_of(self, name: str) -> Path:
        """Return the folder that holds a file of the snapshot."""
        return self.small if self.small and is_small(name) else self.folder

    def hashes(self, config: CheckpointConfig) -> dict[str, str]:
        """Return relative path -> sha256 of all that makes the snapshot, after every check. Raises ``CheckpointError``."""
        names = checked_files(self.folder, self.weights.names, config, self.small)
        hashed = {
            name: sha
            for folder in {self.folder, self.small or self.folder}
            for name, sha in hash_named(
                folder, [one for one in names if self.folder_of(one) == folder]
            ).items()
        }
        return {name: hashed[name] for name in names}


def locate(config: CheckpointConfig, store_root: Path, with_weights: bool = True) -> Located:
    """Find or download the checkpoint. Raises ``CheckpointError``, ``ConfigError``, ``RemoteError``.

    Without ``with_weights`` the safetensors of a Hub checkpoint, gigabytes as a rule, stay where they are.
    """
    check_source(config.source)
    if config.source.startswith(PACKAGE_PREFIX):
        name = config.source.removeprefix(PACKAGE_PREFIX)
        folder = package_folder(name)
        check_known_package(name, folder)
        return _local(folder, config)
    folder = Path(config.source).expanduser()
    if folder.is_dir():
        return _local(folder, config)
    return _download(config, store_root, with_weights)


def check_source(source: str, setting: str = "checkpoint.source") -> None:
    """Raise ``CheckpointError`` for a source that cannot be meant: cheap, so that it comes before anything else."""
    if source.startswith(PACKAGE_PREFIX):
        package_folder(source.removeprefix(PACKAGE_PREFIX))
        return
    folder = Path(source).expanduser()
    if folder.is_dir():
        return
    if folder.is_file():
        raise CheckpointError(
            f"{setting} {source} is a file, expected a directory. Give its directory "
            f"({folder.parent}); a GGUF among several is chosen with checkpoint.gguf_file."
        )
    if not HUB_ID.fullmatch(source) or source.startswith("."):
        raise CheckpointError(
            f"{setting} {source} does not exist as a directory and is no Hub id (org/name). Check the path."
        )


def _local(folder: Path, config: CheckpointConfig) -> Located:
    if config.revision:
        raise CheckpointError(
            f"checkpoint.revision {config.revision} is for a Hub id, but {config.source} is a local "
            "directory, which is pinned by its contents. Remove checkpoint.revision."
        )
    return Located(folder.resolve(), weights_in(folder, config))


def _download(config: CheckpointConfig, store_root: Path, with_weights: bool) -> Located:
    """Small files first, so that a missing template is known before gigabytes of weights are fetched."""
    api, doing = HfApi(), f"fetching {config.source}" + (f" at {config.revision}" if config.revision else "")
    commit, sizes = _resolve(api, config, store_root, doing)
    names = [name for name in sizes if "/" not in name or name.startswith(f"{EXTRA_TEMPLATES}/")]
    weights = weight_source(names, config)
    code = code_names(config.allow_remote_code)
    small = [name for name in names if not name.endswith((*WEIGHT_SUFFIXES, ".py")) or name in code]
    missing = {
        name: sizes[name]
        for name in {*small, *weights.names}  # a mirror of the operator's may tell no sizes
        if sizes[name] and try_to_load_from_cache(config.source, name, revision=commit) is None
    }
    check_download(
        f"{config.source}@{commit}",
        missing,
        Path(constants.HF_HUB_CACHE),
        config.max_download_gib,
        "checkpoint.max_download_gib",
    )
    try:
        folder = Path(api.snapshot_download(config.source, revision=commit, allow_patterns=small))
        if weights.kind == "safetensors":
            weights = named_by_index(folder, weights)
            checked_files(folder, (), config)
            if not with_weights:
                return Located(folder, weights, commit, linkable=True)
        wanted = [*small, *weights.names]
        folder = Path(api.snapshot_download(config.source, revision=commit, allow_patterns=wanted))
        return Located(folder, in_its_format(folder, weights), commit, linkable=True)
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):
            raise from_os_error(error, doing) from error
        raise from_hub_error(error, doing) from None
    except Exception as error:
        raise from_hub_error(error, doing) from None


def _resolve(api: HfApi, config: CheckpointConfig, store_root: Path, doing: str) -> tuple[str, Sizes]:
    """The commit behind the revision, and its files with sizes; recorded in the store, where it serves when the Hub is away.

    A branch is asked anew by each run, so a newer SFT checkpoint is never missed; the commit then holds for the run.
    """
    asked = {"endpoint": api.endpoint, "source": config.source, "revision": config.revision}
    record = store_root / "checkpoints" / "resolved" / f"{fingerprint(asked)[:16]}.json"
    if record.is_file() and COMMIT.fullmatch(config.revision or ""):
        known = read_json_file(record)
        if "sizes" in known:
            return known["commit"], known["sizes"]
    try:
        info = api.model_info(config.source, revision=config.revision, files_metadata=True)
    except Exception as error:
        failure = from_hub_error(error, doing)
        if not isinstance(failure, RemoteError) or not record.is_file():
            raise failure from None
        known = read_json_file(record)
        log.warning(
            "The Hub does not answer; going on with %s at %s, as resolved earlier.",
            config.source,
            known["commit"],
        )
        return known["commit"], known.get("sizes") or dict.fromkeys(known["files"])
    sizes, commit = dict(sorted(listed_sizes(info).items())), commit_of(info, doing)
    write_json(record, {**asked, "commit": commit, "sizes": sizes})
    return commit, sizes


def tokenizer_folder(config: CheckpointConfig, store_root: Path) -> tuple[Path, str | None]:
    """Find or download the files of ``checkpoint.tokenizer``. -> their folder, and the commit of a Hub id

    Raises ``CheckpointError``, ``ConfigError``, ``RemoteError``.
    """
    source, revision = str(config.tokenizer), config.tokenizer_revision
    check_source(source, "checkpoint.tokenizer")
    if source.startswith(PACKAGE_PREFIX):
        name = source.removeprefix(PACKAGE_PREFIX)
        folder = package_folder(name)
        check_known_package(name, folder)
    else:
        folder = Path(source).expanduser()
    if folder.is_dir():
        if revision:
            raise CheckpointError(
                f"checkpoint.tokenizer_revision {revision} is for a Hub id, but {source} is a local directory, which is "
                "pinned by its contents. Remove checkpoint.tokenizer_revision."
            )
        return folder.resolve(), None
    asked = CheckpointConfig(source=source, revision=revision)
    api, doing = HfApi(), f"fetching the tokenizer {source}" + (f" at {revision}" if revision else "")
    commit, sizes = _resolve(api, asked, store_root, doing)
    names = [name for name in sizes if is_tokenizer_file(name)]
    try:
        return Path(api.snapshot_download(source, revision=commit, allow_patterns=names)), commit
    except Exception as error:
        raise from_hub_error(error, doing) from None


def snapshot(located: Located, config: CheckpointConfig, store_root: Path) -> CheckpointRef:
    """Check the files and keep them as ``<store>/checkpoints/<id>/``; an undamaged earlier snapshot is reused."""
    files = located.hashes(config)
    if other := other_code(config.allow_remote_code, files):
        raise CheckpointError(
            f"{config.source} has another {', '.join(other)} than the one that "
            "checkpoint.allow_remote_code allows by its sha256. Read it before you allow it."
        )
    path = store_root.resolve() / "checkpoints" / fingerprint(files)[:16]
    with exclusive(path.parent, wait_seconds=SECONDS_FOR_ANOTHER_RUN):
        if not is_intact(path, files):
            with new_directory(path) as aside:
                for name in files:
                    _place(located, name, aside / name)
                if hash_named(aside, list(files)) != files:
                    raise CheckpointError(
                        f"{config.source} changed while it was copied. Let its writer finish, then "
                        "start again."
                    )
    return CheckpointRef(
        path=path,
        fingerprint=weights_fingerprint(read_json_file(path / CONFIG), files),
        tokenizer_fingerprint=tokenizer_fingerprint(files),
        source=config.source,
        revision=located.revision,
        files=files,
        allow_remote_code=any(name.endswith(".py") for name in files),
        tokenizer_source=config.tokenizer,
        tokenizer_revision=located.tokenizer_revision,
    )


def is_intact(path: Path, files: dict[str, str]) -> bool:
    """Tell whether an earlier snapshot in ``path`` is there, undamaged."""
    if not (path / CONFIG).is_file():
        return False
    try:
        os.utime(path)  # a collection of garbage goes by the time of the last use
        verify_files(path, files)
        return True
    except StoreError as error:
        log.warning("The snapshot is made again: %s", error.problem)
        return False


def _place(located: Located, name: str, target: Path) -> None:
    """Link a file that nobody writes in place; copy one that its owner may overwrite, and where links cannot reach."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = located.folder_of(name)
    with opened_inside(folder, name) as source:
        if located.linkable and folder == located.folder:
            try:
                os.link((folder / name).resolve(), target)
                return
            except OSError:
                pass  # another file system
        with target.open("wb") as copy:
            shutil.copyfileobj(source, copy, HASH_CHUNK_BYTES)
