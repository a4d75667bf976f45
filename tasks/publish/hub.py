"""Publishing to the Hugging Face Hub or a server that speaks its protocol: one atomic commit, verified file by file.

The Hub tells a file's hash: sha256 of a large (LFS) file, git's blob sha1 of a small one. Both are compared with the
local file after the upload; what the server gives no hash for is downloaded and hashed.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from dpo_core.contract.destination_config import UploadConfig
from dpo_core.contract.errors import ConfigError, RemoteError
from dpo_core.contract.store import HASH_CHUNK_BYTES, sha256_file
from tasks.hub.commit import commit_of
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint

# Files of an earlier model that a loader would pick up; anything else in the repository is its owner's and stays.
LOADED_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".py")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One file to publish: a path, or a text that was never written to disk."""

    content: Path | bytes
    sha256: str

    def git_sha1(self) -> str:
        """Return the name that git gives this content: sha1 of ``blob <size>\\0<content>``."""
        if isinstance(self.content, bytes):
            return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()
        digest = hashlib.sha1(b"blob %d\0" % self.content.stat().st_size)
        with self.content.open("rb") as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()


def _agrees(api: HfApi, repo_id: str, revision: str, remote: RepoFile, local: LocalFile) -> bool:
    if remote.lfs is not None:
        return remote.lfs.sha256 == local.sha256
    if remote.blob_id:
        return remote.blob_id == local.git_sha1()
    with tempfile.TemporaryDirectory() as folder:
        return (
            sha256_file(
                Path(
                    api.hf_hub_download(
                        repo_id, remote.path, revision=revision, local_dir=folder, force_download=True
                    )
                )
            )
            == local.sha256
        )


def differing(
    api: HfApi, repo_id: str, revision: str, files: dict[str, LocalFile]
) -> tuple[list[str], list[str]]:
    """Return (names whose content at ``revision`` is missing or other, names at ``revision`` that are not ours),
    sorted.
    """
    remote = {
        entry.path: entry
        for entry in api.list_repo_tree(repo_id, revision=revision, recursive=True)
        if isinstance(entry, RepoFile)
    }
    wrong = [
        name
        for name, local in files.items()
        if name not in remote or not _agrees(api, repo_id, revision, remote[name], local)
    ]
    return sorted(wrong), sorted(set(remote) - set(files))


def _head(api: HfApi, repo_id: str, private: bool) -> str:
    """The newest commit of the repository, which is created if it does not exist. Raises ``ConfigError``."""
    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(repo_id)
    if private and info.private is False:
        raise ConfigError(
            f"{repo_id} is public, but upload.private is true, so nothing was uploaded. Make the repository "
            "private, choose another one, or set upload.private to false to publish."
        )
    return commit_of(info, f"uploading to {repo_id}")


def _tagged_commit(api: HfApi, repo_id: str, tag: str | None) -> str | None:
    refs = api.list_repo_refs(repo_id).tags if tag else []
    return next((ref.target_commit for ref in refs if ref.name == tag), None)


def _commit(
    api: HfApi, repo_id: str, parent: str, changed: dict[str, LocalFile], stale: list[str], message: str
) -> str:
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, content if isinstance(content := file.content, bytes) else str(content))
        for name, file in changed.items()
    ]
    operations += [CommitOperationDelete(name) for name in stale]
    return api.create_commit(repo_id, operations, commit_message=message, parent_commit=parent).oid


def publish_hub(
    api: HfApi, upload: UploadConfig, files: dict[str, LocalFile], message: str
) -> UploadedCheckpoint:
    """Upload ``files`` (name in the repository -> local file) to ``upload.repo_id`` unless its newest commit holds them
    all.

    Raises ``ConfigError`` (public repository, tag taken), ``RemoteError`` if the server holds another content than was
    sent, and what ``huggingface_hub`` raises.
    """
    repo_id, tag = upload.repo_id, upload.tag
    assert repo_id is not None  # who publishes to a directory does not come here
    head = _head(api, repo_id, upload.private)
    wrong, foreign = differing(api, repo_id, head, files)
    stale = [name for name in foreign if name.endswith(LOADED_SUFFIXES)]
    tagged = _tagged_commit(api, repo_id, tag)
    if tagged is not None and (tagged != head or wrong or stale):
        raise ConfigError(
            f"upload.tag {tag} of {repo_id} already names commit {tagged[:12]} with another content. A tag "
            "is a promise; choose another one."
        )
    changed = {name: files[name] for name in wrong}
    commit = _commit(api, repo_id, head, changed, stale, message) if wrong or stale else head
    if wrong and (broken := differing(api, repo_id, commit, files)[0]):
        raise RemoteError(
            f"After the upload {repo_id} at {commit[:12]} holds another content for {', '.join(broken)}. "
            "Start again to upload them anew."
        )
    if tag and tagged is None:
        api.create_tag(repo_id, tag=tag, revision=commit)
    return UploadedCheckpoint(
        kind="hub",
        uri=f"hf://{repo_id}@{commit}",
        revision=commit,
        repo_id=repo_id,
        endpoint=upload.endpoint,
        tag=tag,
        reused=not (wrong or stale),
        files={name: local.sha256 for name, local in files.items()},
    )
