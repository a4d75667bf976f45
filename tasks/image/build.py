"""One build on the engine: its output goes out line by line, its failure comes back as one error."""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

from dpo_core.contract.errors import ConfigError, DiskFull, PairlineError
from tasks.image.engine import NO_SPACE, engine_errors
from tasks.launch.launcher import OnLine

NUM_LAST_LINES = 20
ENGINES_OWN = re.compile(r" ---> (Running in )?[0-9a-f]{12}$|Removing intermediate container ")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # the engine paints what a step writes to stderr
STAGE_LABEL = "io.pairline.packages-of"  # marks what only serves a build, with the dependency key


@dataclass(slots=True)
class BuildLog:
    """Reads the engine's event stream: whole lines to ``say``, the last ones of the step at work kept."""

    say: OnLine
    step: str = ""
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=NUM_LAST_LINES))
    image_id: str | None = None
    _rest: str = ""

    def read(self, event: Mapping[str, Any]) -> None:
        """Take one event. Raises the error of the step that failed."""
        if "error" in event:
            self._line(self._rest)
            raise self._failure(str(event["error"]).strip())
        self.image_id = event.get("aux", {}).get("ID", self.image_id)
        *lines, self._rest = (self._rest + event.get("stream", "")).split("\n")
        for line in lines:
            self._line(line)

    def _line(self, line: str) -> None:
        line = COLOUR.sub("", line).rstrip().rsplit("\r", 1)[-1]  # of a progress bar only what stands at last
        if line and not ENGINES_OWN.match(line):
            if line.startswith("Step ") and " : " in line:
                self.step = line
                self.last_lines.clear()
            else:
                self.last_lines.append(line)
            self.say(line)

    def _failure(self, reason: str) -> PairlineError:
        tail = "\n".join(f"  | {line}" for line in self.last_lines)
        text = f"The trainer image was not built. {self.step or 'Before its first step'} failed: {reason}"
        if NO_SPACE in (reason + tail).lower():
            return DiskFull(f"{text}\nFree some space (`docker system df`, `docker image prune`).")
        return ConfigError(f"{text}\nIts last lines:\n{tail or '  | (it printed nothing)'}")


def build(
    client: docker.DockerClient,
    context: IO[bytes],
    arguments: Mapping[str, str],
    labels: Mapping[str, str],
    tag: str,
    say: OnLine,
) -> str:
    """Build the tar ``context`` (its Dockerfile inside) and return the image's id.

    Steps have no network: everything is in the context. Raises ``ConfigError`` naming the step that failed with its last
    lines, ``DiskFull``, ``RemoteError`` when the engine goes away.
    """
    log = BuildLog(say)
    with engine_errors("building the trainer image"):
        events: Iterator[dict[str, Any]] = client.api.build(
            fileobj=context,
            custom_context=True,
            decode=True,
            rm=True,
            forcerm=True,
            network_mode="none",
            timeout=None,
            buildargs=dict(arguments),
            labels=dict(labels),
            tag=tag,
            use_config_proxy=False,
        )
        for event in events:
            log.read(event)
    if log.image_id is None:
        raise ConfigError(
            "The engine ended the build of the trainer image without an image. Its last lines:\n"
            + "\n".join(f"  | {line}" for line in log.last_lines)
        )
    return log.image_id


def remove_build_stages(client: docker.DockerClient, dependency_key: str, say: OnLine) -> None:
    """Remove what only served this build: the stage that holds the wheels and a second copy of what they install.

    The image stands by then: an engine that takes longer than a client waits, as on a busy disk, is told of, no more.
    """
    try:
        client.images.prune(filters={"dangling": True, "label": f"{STAGE_LABEL}={dependency_key}"})
    except (DockerException, RequestException) as error:
        say(
            "The image is complete, but the engine did not say that it removed what only served the build; "
            f"`docker image prune` does that, too ({error})"
        )
