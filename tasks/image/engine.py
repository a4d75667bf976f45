"""The Docker engine, and what goes wrong with it in the words of the error tree."""

import contextlib
from collections.abc import Iterator

import docker
from docker.errors import APIError, DockerException
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from dpo_core.contract.errors import ConfigError, DiskFull, PairlineError, RemoteError
from tasks.launch.docker.engine_address import engine_address, silence

NO_SPACE = "no space left on device"


@contextlib.contextmanager
def connected() -> Iterator[docker.DockerClient]:
    """Yield a client of the engine that DOCKER_HOST names, or of this machine's.

    Raises ``ConfigError`` if there is none, ``RemoteError`` if there is one that may be restarting.
    """
    try:
        client = docker.from_env()
        client.ping()
    except (DockerException, RequestException) as error:
        raise silence(engine_address())(
            f"No Docker engine answers ({_one_line(error)}). Start it (`systemctl start docker`; as root `dockerd &`), "
            "check DOCKER_HOST and that you may use it, or set compute.launcher to process."
        ) from None
    with contextlib.closing(client):
        yield client


@contextlib.contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Translate what docker-py raises while ``doing`` (a phrase such as "building the image")."""
    try:
        yield
    except (DockerException, RequestException, HTTPError) as error:
        raise from_engine_error(error, doing) from None


def from_engine_error(error: Exception, doing: str) -> PairlineError:
    """Return the error of the tree: a full disk, an engine that went away (worth a retry), or a refusal."""
    text = _one_line(error)
    if NO_SPACE in text.lower():
        return DiskFull(
            f"The engine has no space left, met while {doing}. Free some (`docker system df`, `docker image "
            f"prune`). ({text})"
        )
    if isinstance(error, APIError) and not error.is_server_error():
        return ConfigError(f"The engine refused the request while {doing}: {text}")
    return RemoteError(
        f"The engine did not answer as it should while {doing}; start again to go on. ({text})"
    )


def _one_line(error: Exception) -> str:
    text = error.explanation if isinstance(error, APIError) and error.explanation else str(error)
    return " ".join(str(text).split())[:500]
