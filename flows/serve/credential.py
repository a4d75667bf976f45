"""The password of the server that `pairline up` starts: `user:password` in a file that its user alone can read.

Prefect's server and clients know it by a variable each. An operator who sets one of them has chosen it.
"""

import base64
import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from dpo_core.contract.errors import ConfigError
from flows.serve.run_processes import (
    API_VARIABLE,
    CLIENT_VARIABLE,
    SERVER_VARIABLE,
    environment_of,
    processes_of_server,
    servers_at,
)

CREDENTIAL_FILE = "password"  # in the folder of a server
API_URL_FILE = "api-url"  # beside it
MADE_HERE = "pairline:"
LOGIN_PATH = "/enter"  # /login is a page of Prefect's own


def new_credential() -> str:
    """Return 288 random bits behind a name: as many as need no padding in a link."""
    return MADE_HERE + secrets.token_urlsafe(36)


def is_made_here(credential: str) -> bool:
    """Return whether nobody chose it."""
    return credential.startswith(MADE_HERE)


def given_credential() -> str | None:
    """Return what the operator chose. Raises ``ConfigError`` if server and clients are told different things."""
    given = {os.environ[name] for name in (SERVER_VARIABLE, CLIENT_VARIABLE) if os.environ.get(name)}
    if len(given) > 1:
        raise ConfigError(
            f"{SERVER_VARIABLE} and {CLIENT_VARIABLE} are set to different values, so nobody would get in. "
            "Set one of them, or neither: then `pairline up` makes a password."
        )
    return given.pop() if given else None


def kept_credential(folder: Path) -> str | None:
    """Return that of the server whose folder it is; None if there is none or it is another user's."""
    with contextlib.suppress(OSError):
        return (folder / CREDENTIAL_FILE).read_text().strip() or None
    return None


def prepare_credential(folder: Path) -> str:
    """Return what the operator chose, or what was made before, or a new one; kept in ``folder``, which must be private
    already.
    """
    known, given = kept_credential(folder), given_credential()
    credential = given or known or new_credential()
    if credential != known:
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as aside:  # 0600
            aside.write(f"{credential}\n")
        os.replace(aside.name, folder / CREDENTIAL_FILE)
    return credential


def login_link(ui_url: str, credential: str) -> str:
    """Return the address that logs a browser in. What stands behind # is never sent, so no log of a server or proxy
    holds it.
    """
    return f"{ui_url}{LOGIN_PATH}#{base64.b64encode(credential.encode()).decode()}"


def credential_for(api_url: str, folder: Path) -> str | None:
    """Return that of the server at ``api_url`` if it is the one of ``folder``, or one that this user started in
    another.
    """
    with contextlib.suppress(OSError):
        if (folder / API_URL_FILE).read_text().strip() == api_url:
            return kept_credential(folder)
    for pid in servers_at(api_url):
        with contextlib.suppress(OSError):
            return environment_of(pid).get(SERVER_VARIABLE)
    return None


def use_credential(api_url: str, folder: Path) -> None:
    """Let this process's client into the server at ``api_url`` if that is one of this user's `pairline up`.

    To be called before Prefect is imported. A password that is set stays.
    """
    if CLIENT_VARIABLE in os.environ:
        return
    # The server is at 127.0.0.1 alone, and "localhost" may be another user's program at ::1: it must not hear the password.
    api_url = api_url.rstrip("/").replace("http://localhost:", "http://127.0.0.1:", 1)
    if credential := credential_for(api_url, folder):
        os.environ |= {API_VARIABLE: api_url, CLIENT_VARIABLE: credential}


def without_credential(credential: str, api_url: str, *pids: int | None) -> list[int]:
    """Return which of these processes, and of the runs of the server at ``api_url``, do not hold the password: they
    were started before there was one, or it was another."""
    missing = []
    for pid in filter(None, (*pids, *processes_of_server(api_url))):
        with contextlib.suppress(OSError):  # it has just ended
            environment = environment_of(pid)
            if credential not in (environment.get(SERVER_VARIABLE), environment.get(CLIENT_VARIABLE)):
                missing.append(pid)
    return missing
