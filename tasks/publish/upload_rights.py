"""Whether the token may upload to the repository that a recipe names, asked before anything is trained.

Nothing is made or changed on the server: an existing repository is asked what an upload asks first (how files are to be
sent, which needs the right to write); for one that is to be made, the account says whose names it may use.
"""

from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from dpo_core.contract.destination_config import UploadConfig
from dpo_core.contract.errors import ConfigError, PairlineError
from tasks.hub.errors import from_hub_error
from tasks.hub.token import hidden_in_logs, load_token

WRITES = "repo.write"
ROLES_THAT_CREATE = ("admin", "write", "contributor")


def check_upload_rights(upload: UploadConfig) -> None:
    """Raise ``ConfigError`` for an upload that would be refused, ``RemoteError`` if the server does not answer. For a local
    directory see ``directory_rights``."""
    if upload.repo_id is None:
        return
    token = upload_token(upload)
    failure: PairlineError
    try:
        with hidden_in_logs(token):
            _check(HfApi(endpoint=upload.endpoint, token=token), upload, upload.repo_id, token)
        return
    except Exception as error:
        failure = from_hub_error(error, f"trying whether uploading to {upload.repo_id} is allowed", token)
    raise failure  # outside the handler: a chained exception would carry what was cut out


def upload_token(upload: UploadConfig) -> str:
    """Return the token to upload with. Raises ``ConfigError`` if there is none."""
    token = load_token(upload.token_block)
    if token is None:
        raise ConfigError(
            f"No Hub token to upload to {upload.repo_id} with. Store one in a Prefect Secret block and name "
            "it in upload.token_block, or set HF_TOKEN."
        )
    return token


def _check(api: HfApi, upload: UploadConfig, repo_id: str, token: str) -> None:
    account = api.whoami()
    _check_token(account, repo_id)
    try:
        is_private = api.model_info(repo_id).private
    except RepositoryNotFoundError:
        _check_owner(account, repo_id)
        return
    if upload.private and is_private is False:
        raise ConfigError(
            f"{repo_id} is public, but upload.private is true, so nothing would be uploaded. Make the repository "
            "private, choose another one, or set upload.private to false to publish."
        )
    _ask_to_write(api, repo_id, token)


def _check_token(account: dict[str, Any], repo_id: str) -> None:
    """Raise ``ConfigError`` for a token whose own rights do not reach; what it does not tell is left to the server."""
    access = (account.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise ConfigError(
            f"The token `{access.get('displayName', '')}` of {account.get('name')} can only read, and the result is to be "
            f"uploaded to {repo_id}. Make one that can write (Settings, Access Tokens), and store it in "
            "upload.token_block or HF_TOKEN."
        )
    scopes = (access.get("fineGrained") or {}).get("scoped")
    if access.get("role") != "fineGrained" or not isinstance(scopes, list):
        return
    names = {repo_id.lower(), repo_id.partition("/")[0].lower()}
    granted = {
        right
        for scope in scopes
        if str((scope.get("entity") or {}).get("name")).lower() in names
        for right in scope.get("permissions") or ()
    }
    if WRITES not in granted:
        raise ConfigError(
            f"The fine-grained token `{access.get('displayName', '')}` of {account.get('name')} has no right to write to "
            f"{repo_id}. Give it write access to the repositories of {repo_id.partition('/')[0]} (Settings, Access Tokens)."
        )


def _check_owner(account: dict[str, Any], repo_id: str) -> None:
    """Raise ``ConfigError`` if the account may not make a repository of this name. Some servers tell nothing of that."""
    owner, name = repo_id.partition("/")[0], account.get("name")
    organisations = account.get("orgs")
    if owner == name or not isinstance(organisations, list):
        return
    roles = {one.get("name"): one.get("roleInOrg") for one in organisations if isinstance(one, dict)}
    if owner not in roles:
        own = ", ".join(f"{one}/..." for one in (name, *roles) if one)
        raise ConfigError(
            f"{repo_id} does not exist, or is another's and hidden, and {name} is no member of {owner}, so it cannot be "
            f"made. Set upload.repo_id to one of {own}, or use a token of a member."
        )
    if roles[owner] is not None and roles[owner] not in ROLES_THAT_CREATE:
        raise ConfigError(
            f"{repo_id} does not exist, and {name} has the role `{roles[owner]}` in {owner}, which may not make it. Ask an "
            f"admin of {owner} for the role `write`, or to make the repository, or name one of your own."
        )


def _ask_to_write(api: HfApi, repo_id: str, token: str) -> None:
    """Ask as the upload does first, which servers refuse to whom they would refuse the upload."""
    asked = {"files": [{"path": "README.md", "sample": "", "size": 0}]}
    answer = get_session().post(
        f"{api.endpoint}/api/models/{repo_id}/preupload/main",
        json=asked,
        headers=build_hf_headers(token=token),
    )
    if answer.status_code == 403:
        raise ConfigError(
            f"{repo_id} exists, and the token may not write to it (403). Use a token of a member with write access, or "
            "set upload.repo_id to a repository of your own."
        )
    hf_raise_for_status(answer)
