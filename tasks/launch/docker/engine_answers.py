"""What the container engine answers, in our terms: a container as it is now, its log line by line, and errors."""

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from docker.errors import APIError, DockerException
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from dpo_core.contract.errors import StoreError
from tasks.launch.lines import LineSplitter
from tasks.launch.patience import NoAnswer


class EngineLost(NoAnswer):
    """The engine does not answer; what it runs may run on."""

    seconds_between_tries: ClassVar[float] = 0.2  # of a socket of this machine; it costs nothing
    meanwhile: ClassVar[str] = "With live-restore a step runs on meanwhile."


class NameTaken(Exception):
    """Another container has the name. Caught by who asked for it."""


class PathUnseen(Exception):
    """A path to be mounted is not there for the engine, which may live in another world. Caught by who named it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A container as the engine sees it now."""

    id: str
    name: str
    image: str
    labels: dict[str, str]
    running: bool
    exit_code: int = 0
    out_of_memory: bool = False
    error: str = ""
    mounts: frozenset[str] = frozenset()  # paths inside


@contextlib.contextmanager
def answers(doing: str) -> Iterator[None]:
    """Translate what docker-py and what lies below it raise."""
    try:
        yield
    except APIError as error:
        if error.is_server_error():  # it is shutting down, or broken for now
            raise EngineLost(f"The container engine failed while {doing}: {error.explanation}") from error
        raise StoreError(f"The container engine refused {doing}: {error.explanation}") from error
    except (RequestException, HTTPError, DockerException, OSError, struct.error) as error:
        raise EngineLost(f"The container engine did not answer while {doing}: {error}") from error


def unix_seconds(time: str) -> float | None:
    """Return the engine's "2026-01-31T12:00:00.123456789Z" in seconds, cut to what a float holds exactly enough."""
    return datetime.fromisoformat(f"{time[:26]}+00:00").timestamp() if time else None


def log_lines(messages: Iterator[bytes], since: str) -> Iterator[tuple[str, str]]:
    """Log messages -> (time, line) after ``since``. A message is a line, or a part of one longer than 16 KB."""
    stamp, splitter = "", LineSplitter()
    for message in messages:
        time, _, content = message.partition(b" ")
        stamp = time.decode()
        if stamp <= since:  # the engine repeats what came at that very time
            continue
        for line in splitter.feed(content):
            yield stamp, line
    for line in splitter.rest():
        yield stamp, line
