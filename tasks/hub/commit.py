"""The commit that the Hub names for a revision: what a source or an upload is pinned by."""

from huggingface_hub import DatasetInfo, ModelInfo

from dpo_core.contract.errors import RemoteError


def commit_of(info: ModelInfo | DatasetInfo, doing: str) -> str:
    """Return the commit of an upload. Raises ``RemoteError`` for an answer, met while ``doing``, that names none, as a
    mirror's may.
    """
    if not info.sha:
        raise RemoteError(
            f"The server names no commit of {info.id}, met while {doing}, so nothing can be pinned by its "
            "answer. Check the endpoint (HF_ENDPOINT), or ask the Hub itself."
        )
    return info.sha
