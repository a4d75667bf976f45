"""Failures of the Hugging Face Hub (or a server like it) -> one clear error of the tree, without the token in it."""

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the root of whichever httpx the library is built on
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dpo_core.contract.errors import ConfigError, PairlineError, RemoteError
from tasks.hub.redaction import redacted

RETRIED_STATUS = frozenset({408, 409, 412, 425, 429})  # 409 and 412: someone else committed in between


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def from_hub_error(error: Exception, doing: str, token: str | None = None) -> PairlineError:
    """Return the error of the tree for a failure met while ``doing`` (a phrase such as "uploading to org/name").

    Use as ``raise from_hub_error(...) from None``: a chained exception would carry the unredacted text.
    """
    if isinstance(error, PairlineError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return from_hub_error(
            error.__cause__, doing, token
        )  # how the library reports a file that failed among several
    text = redacted(" ".join(str(error).split()), token)[:500]
    status = _status(error)
    if "/xet-" in text and "404" in text:
        return ConfigError(
            f"The server does not know the Hub's xet storage, met while {doing}. Set HF_HUB_DISABLE_XET=1 in "
            f"the environment, then start again: files then go the LFS way. ({text})"
        )
    if isinstance(error, GatedRepoError):
        return ConfigError(
            f"Access to a gated repository was refused while {doing}. Accept its terms on its page with "
            f"the account of the token, then start again. ({text})"
        )
    if isinstance(error, RevisionNotFoundError):
        return ConfigError(
            f"The revision does not exist (404) while {doing}. Check the branch, tag or commit. ({text})"
        )
    if status == 401:
        return ConfigError(
            f"The token is missing, wrong or expired (401), or the repository does not exist, while "
            f"{doing}. Check the name, and the token in upload.token_block or HF_TOKEN. ({text})"
        )
    if status == 403:
        return ConfigError(
            f"The token may not do this (403) while {doing}. Use one whose account is let in and whose own rights reach as "
            f"far: read access to fetch, write access to upload. ({text})"
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return ConfigError(
            f"Not found (404) while {doing}. Check the name, and that the token can see it. ({text})"
        )
    if isinstance(error, HFValidationError):
        return ConfigError(f"Not a valid repository id while {doing}; expected org/name. ({text})")
    if status is None and isinstance(
        error, HTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError | TimeoutError
    ):
        return RemoteError(
            f"The server did not answer while {doing}: {type(error).__name__}. Check the network and the "
            f"endpoint; what was done is kept. ({text})"
        )
    if status is not None and (status >= 500 or status in RETRIED_STATUS):
        return RemoteError(f"The server failed with {status} while {doing}; trying again may help. ({text})")
    if isinstance(error, HfHubHTTPError):
        return ConfigError(f"The server refused the request ({status}) while {doing}. ({text})")
    failure = RemoteError if isinstance(error, OSError) else PairlineError
    return failure(f"Failed while {doing}: {type(error).__name__}: {text}")
