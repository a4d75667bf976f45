"""``image.use``: an image that was built elsewhere, by digest or id, and what its labels tell."""

import docker
from docker.errors import ImageNotFound

from dpo_core.contract.errors import ConfigError, RemoteError
from tasks.image.config import ImageConfig
from tasks.image.engine import engine_errors
from tasks.image.image_ref import ImageRef
from tasks.image.push import REFUSALS, Login
from tasks.launch.launcher import OnLine


def named_image(
    client: docker.DockerClient, config: ImageConfig, login: Login | None, say: OnLine
) -> ImageRef:
    """Return the image that ``config.use`` names, fetched if it is given by digest and not there. Raises
    ``ConfigError``.
    """
    assert config.use is not None
    by_digest = "@" in config.use
    with engine_errors(f"looking for {config.use}"):
        try:
            image = client.images.get(config.use)
        except ImageNotFound:
            if not by_digest:
                raise ConfigError(
                    f"image.use names {config.use}, which this engine does not have. An id means something on "
                    "the engine that built it; elsewhere name repository@sha256:..., or `docker load` "
                    "it."
                ) from None
            pull(client, config.use, login, say)
            image = client.images.get(config.use)
    labels = image.labels
    return ImageRef(
        variant=labels.get("io.pairline.variant", config.variant),
        image_id=image.id,
        size_bytes=image.attrs["Size"],
        digest=config.use if by_digest else None,
        commit=labels.get("org.opencontainers.image.revision"),
        dirty=labels.get("io.pairline.dirty") == "true",
        context_sha256=labels.get("io.pairline.context-sha256"),
        dependency_key=labels.get("io.pairline.dependency-key"),
        base_id=labels.get("io.pairline.base-id"),
    )


def pull(client: docker.DockerClient, reference: str, login: Login | None, say: OnLine) -> None:
    """Fetch repository@sha256:... Raises ``ConfigError`` where the registry refuses or has none, else ``RemoteError``."""
    say(f"Fetching {reference}")
    credentials = {"username": login.username, "password": login.password} if login else None
    with engine_errors(f"fetching {reference}"):
        try:
            for event in client.api.pull(reference, stream=True, decode=True, auth_config=credentials):
                if "error" in event:
                    failure = (
                        ConfigError
                        if any(word in event["error"].lower() for word in REFUSALS)
                        else RemoteError
                    )
                    raise failure(f"{reference} was not fetched: {event['error']}")
        except ImageNotFound as error:
            raise ConfigError(f"{reference} is not in its registry ({error.explanation}).") from None
