"""Push an image to a registry: the digest, or an error. The engine reports a refusal as an event, not as a failure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import docker

from dpo_core.contract.errors import ConfigError, PairlineError, RemoteError
from tasks.hub.redaction import redacted
from tasks.image.engine import engine_errors
from tasks.launch.launcher import OnLine

REFUSALS = (
    "unauthorized",
    "authentication required",
    "no basic auth credentials",
    "denied",
    "forbidden",
    "insufficient_scope",
)


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials of a registry."""

    username: str
    password: str = field(repr=False)


def load_login(block_name: str | None) -> Login | None:
    """Return the credentials in a Prefect Secret block, which nobody passes on as a parameter; None where no block is
    named: then what ``docker login`` stored counts. Raises ``ConfigError``."""
    if block_name is None:
        return None
    from tasks.hub.token import (
        block_value,
    )  # with Prefect, which takes seconds; most images are pushed nowhere

    return parse_login(block_value(block_name, "image.registry_block", "use `docker login`"), block_name)


def parse_login(secret: object, block_name: str) -> Login:
    """Return what a Secret block holds: a mapping with username and password (or its JSON), or the text
    username:password.
    """
    if isinstance(secret, str) and secret.lstrip().startswith("{"):
        try:
            secret = json.loads(secret)
        except ValueError:
            secret = None
    if isinstance(secret, Mapping):
        username, password = secret.get("username"), secret.get("password")
    else:
        username, _, password = str(secret or "").strip().partition(":")
    if not (isinstance(username, str) and isinstance(password, str) and username and password):
        raise ConfigError(
            f'The Prefect Secret block `{block_name}` (image.registry_block) must hold {{"username": ..., '
            '"password": ...} or the text username:password.'
        )
    return Login(username, password)


def push(
    client: docker.DockerClient, image_id: str, repository: str, tag: str, login: Login | None, say: OnLine
) -> str:
    """Push the image and return repository@sha256:... as the registry knows it.

    Raises ``ConfigError`` where the registry refuses, ``RemoteError`` where it does not answer; the password is cut out.
    """
    password = login.password if login else None
    credentials = {"username": login.username, "password": login.password} if login else None
    with engine_errors(f"pushing to {repository}"):
        client.api.tag(image_id, repository, tag)
        events = client.api.push(repository, tag=tag, stream=True, decode=True, auth_config=credentials)
        digest = digest_of(events, repository, password, say)
    return f"{repository}@{digest}"


def digest_of(events: Iterable[Mapping[str, Any]], repository: str, password: str | None, say: OnLine) -> str:
    """Read the stream of a push to its digest. Raises the error that stands in it."""
    digest = None
    for event in events:
        if "error" in event:
            raise _refused(redacted(str(event["error"]), password), repository)
        digest = event.get("aux", {}).get("Digest", digest)
        if "progressDetail" not in event and event.get("status"):  # the bars of each layer are left out
            say(redacted(event["status"], password))
    if digest is None:
        raise RemoteError(
            f"The push to {repository} ended without a digest, so the registry may not hold the image. Start "
            "again."
        )
    return digest


def _refused(text: str, repository: str) -> PairlineError:
    if any(word in text.lower() for word in REFUSALS):
        return ConfigError(
            f"The registry refused the push to {repository}: {text}. Check the credentials in "
            "image.registry_block (or `docker login`), and that they may write to it."
        )
    return RemoteError(
        f"The push to {repository} failed: {text}. Check image.repository and that its registry runs."
    )
