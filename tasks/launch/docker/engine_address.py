"""Where the container engine listens, and what its silence means."""

import os
from urllib.parse import urlsplit

from dpo_core.contract.errors import ConfigError, PairlineError, RemoteError

LOCAL = "unix:///var/run/docker.sock"


def engine_address() -> str:
    """Return what DOCKER_HOST names, or this machine's engine."""
    return os.environ.get("DOCKER_HOST") or LOCAL


def silence(address: str) -> type[PairlineError]:
    """Return the error of an engine that does not answer: ``RemoteError`` if it may be restarting, so that a retry may
    find it; ``ConfigError`` if there is none at the address, or none that this user may speak to."""
    place = urlsplit(address)
    if place.scheme == "unix":
        return RemoteError if os.access(place.path, os.R_OK | os.W_OK) else ConfigError
    return RemoteError if place.scheme in ("tcp", "http", "https", "ssh") else ConfigError
