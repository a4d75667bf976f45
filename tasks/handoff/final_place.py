"""Opening a published checkpoint where it finally is: a directory in place, a Hub revision downloaded afresh."""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi

from dpo_core.contract.errors import CheckpointError, HandoffRefused, from_os_error
from dpo_core.contract.jobs import AnswerJob, AnswerResult
from dpo_core.contract.results import RESULT_FILE
from tasks.checkpoint.own_files import hash_named
from tasks.hub.download_size import check_download, listed_sizes
from tasks.hub.errors import from_hub_error
from tasks.hub.token import hidden_in_logs, load_token
from tasks.launch.workplace import Workplace
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint

DOWNLOAD, PROBE = "checkpoint", "probe"


def _download(
    uploaded: UploadedCheckpoint, token_block: str | None, target: Path, max_gib: float | None
) -> None:
    """The files of the revision to ``target``, past all caches. Raises an error of the tree without the token."""
    assert uploaded.repo_id is not None
    token = load_token(token_block)
    try:
        with hidden_in_logs(token):
            api = HfApi(endpoint=uploaded.endpoint, token=token)
            listed = listed_sizes(
                api.model_info(uploaded.repo_id, revision=uploaded.revision, files_metadata=True)
            )
            check_download(
                uploaded.uri,
                {name: size for name, size in listed.items() if name in uploaded.files},
                target,
                max_gib,
                "max_download_gib (pairline intake --max-download-gib)",
            )
            api.snapshot_download(
                uploaded.repo_id,
                revision=uploaded.revision,
                local_dir=target,
                force_download=True,
                allow_patterns=sorted(uploaded.files),
            )
        shutil.rmtree(
            target / ".cache", ignore_errors=True
        )  # the client's own notes, which not every step may read
        return
    except OSError as error:
        failure = (
            from_os_error(error, f"downloading {uploaded.uri}")
            if type(error) is OSError and error.errno
            else from_hub_error(error, f"downloading {uploaded.uri}", token)
        )
    except Exception as error:
        failure = from_hub_error(error, f"downloading {uploaded.uri}", token)
    raise failure


def verify_place(folder: Path, uploaded: UploadedCheckpoint) -> None:
    """Raise ``HandoffRefused`` naming the first file that is missing, damaged, a link to elsewhere, or not part of the
    checkpoint."""
    if not folder.is_dir():
        raise HandoffRefused(
            f"The checkpoint is not at {folder}. Restore it, or have the stage run again to publish it."
        )
    if extra := sorted(itertools.islice(_others(folder, set(uploaded.files)), 5)):
        raise HandoffRefused(
            f"{folder} holds files that were not handed off: {', '.join(extra)}. A loader may pick "
            "them up; remove them."
        )
    what = ""
    for name, sha256 in uploaded.files.items():
        try:
            if not (folder / name).is_file():
                what = f"{folder / name} is missing."
            elif (got := hash_named(folder, [name])[name]) != sha256:
                what = f"{folder / name} is damaged: sha256 {got[:12]}, expected {sha256[:12]}."
        except CheckpointError as error:
            what = error.problem
        if what:
            raise HandoffRefused(
                f"The checkpoint at {uploaded.uri} is not the one that was handed off: {what} Delete "
                f"{folder} and have the stage publish it again."
            )


def _others(folder: Path, names: set[str]) -> Iterator[str]:
    """Files and links to folders below ``folder`` that are not among ``names``, as they are met; dot files do not count."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found = (
            Path(place, name).relative_to(folder).as_posix()
            for name in (*links, *files)
            if not name.startswith(".")
        )
        yield from (name for name in found if name not in names)


@contextlib.contextmanager
def opened(
    uploaded: UploadedCheckpoint, token_block: str | None, work_dir: Path, max_gib: float | None = None
) -> Iterator[Path]:
    """Open the checkpoint as a verified local folder; a download lives under ``work_dir`` until the block ends.

    Raises ``HandoffRefused``, also for more than ``max_gib`` to download; ``DiskFull`` where the disk has no room for it.
    """
    if uploaded.kind == "directory":
        assert uploaded.directory is not None
        verify_place(uploaded.directory, uploaded)
        yield uploaded.directory
        return
    work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=work_dir, prefix=f"{DOWNLOAD}-", ignore_cleanup_errors=True
    ) as folder:
        Path(folder).chmod(
            work_dir.stat().st_mode & 0o777
        )  # not private: a step in a container may run as another user
        try:
            _download(uploaded, token_block, Path(folder), max_gib)
        except CheckpointError as error:
            raise HandoffRefused(f"Nothing was fetched: {error}") from error
        verify_place(Path(folder), uploaded)
        yield Path(folder)


def probe(
    folder: Path,
    uploaded: UploadedCheckpoint,
    prompt: str,
    allow_remote_code: bool,
    work_dir: Path,
    place: Workplace,
) -> AnswerResult:
    """Have the checkpoint in ``folder`` answer ``prompt``, in a fresh run of the step ``answer``: an earlier answer, maybe
    from another place, proves nothing."""
    (work_dir / PROBE / RESULT_FILE).unlink(missing_ok=True)
    return place.run(
        AnswerJob(
            checkpoint_path=folder,
            files=uploaded.files,
            prompts=(prompt,),
            allow_remote_code=allow_remote_code,
        ),
        folder=work_dir / PROBE,
    )
