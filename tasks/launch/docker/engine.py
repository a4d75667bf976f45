"""The container engine: the only place that speaks to it about containers. What is asked of it is decided elsewhere.

Every call either answers, or raises ``EngineLost`` when the engine does not (it may be restarting), or an error of the tree
that says what to do.
"""

import contextlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from dpo_core.contract.errors import ConfigError, StoreError
from tasks.launch.docker.config import OWN_NETWORK
from tasks.launch.docker.container import (
    LABEL,
    LOG_FILE_BYTES,
    LOG_FILES,
    NETWORK,
    SCRATCH,
    SECRETS_FOLDER,
    ContainerSpec,
)
from tasks.launch.docker.engine_address import engine_address, silence
from tasks.launch.docker.engine_answers import (
    EngineLost,
    NameTaken,
    PathUnseen,
    Seen,
    answers,
    log_lines,
    unix_seconds,
)

CONFLICT = 409
CALL_SECONDS = 60  # for one answer of the engine
UNSEEN = "bind source path does not exist"
COMPOSE = "com.docker.compose.project"
NO_GPU_RUNTIME = "could not select device driver"


class ContainerEngine:
    """A connection to the engine that DOCKER_HOST names, or to the local one."""

    def __init__(self, address: str = "") -> None:
        self.address = address or engine_address()

    @cached_property
    def _api(self) -> docker.APIClient:
        """Made at the first call, as it asks the engine for its version."""
        return docker.from_env(
            timeout=CALL_SECONDS, environment=os.environ | {"DOCKER_HOST": self.address}
        ).api

    def check(self) -> None:
        """Raise ``ConfigError`` if there is no engine, ``RemoteError`` if there is one that may be restarting."""
        try:
            with answers("starting"):
                self._api.ping()
        except (EngineLost, StoreError) as error:
            raise silence(self.address)(
                f"compute.launcher is docker, but no engine answers at {self.address} ({error}). Start it (Debian: apt-get "
                "install docker.io), join the group docker, or set compute.launcher to process."
            ) from error

    def find(self, name_or_id: str) -> Seen | None:
        """Return the container, or None if there is none (any more: one that is being removed tells nothing of its
        end).
        """
        with answers("looking for a container"):
            try:
                found = self._api.inspect_container(name_or_id)
            except NotFound:
                return None
        state, config = found["State"], found["Config"]
        if state["Status"] == "removing":
            return None
        return Seen(
            id=found["Id"],
            name=found["Name"].lstrip("/"),
            image=found["Image"],
            labels=config["Labels"] or {},
            running=state["Running"],
            exit_code=state["ExitCode"],
            out_of_memory=state["OOMKilled"],
            error=state["Error"],
            mounts=frozenset(mount["Destination"] for mount in found["Mounts"]),
        )

    def ours(self) -> list[Seen]:
        """Return every container with our label, running or not."""
        with answers("listing containers"):
            listed = self._api.containers(all=True, filters={"label": f"{LABEL}=1"})
        return [seen for one in listed if (seen := self.find(one["Id"])) and seen.labels.get(LABEL) == "1"]

    def create(self, spec: ContainerSpec, secret_files: dict[str, Path]) -> str:
        """Create a container; returns its id. Raises ``NameTaken``, ``PathUnseen``; ``ConfigError`` if the image is not
        there."""
        with answers("creating a container"):
            host = self._host_config(spec, secret_files)
            networking = (
                None
                if spec.hostname is None
                else self._api.create_networking_config(
                    {spec.network: self._api.create_endpoint_config(aliases=[spec.hostname])}
                )
            )
            try:
                return self._api.create_container(
                    spec.image,
                    entrypoint=list(spec.argv[:1]),
                    command=list(spec.argv[1:]),
                    name=spec.name,
                    labels=spec.labels,
                    environment=spec.env,
                    user=":".join(map(str, spec.user)),
                    hostname=spec.hostname,
                    working_dir=str(spec.folder),
                    host_config=host,
                    networking_config=networking,
                    stop_signal="SIGTERM",
                    stop_timeout=spec.stop_grace_seconds,
                )["Id"]
            except ImageNotFound as error:
                raise ConfigError(
                    f"The trainer image {spec.image} is not on the engine at {self.address}. Have it built "
                    "there, or give its digest in a registry."
                ) from error
            except APIError as error:
                if error.status_code == CONFLICT:
                    raise NameTaken(spec.name) from error
                if UNSEEN in str(error.explanation):
                    raise PathUnseen(str(error.explanation).rpartition(UNSEEN)[2].strip(" :")) from error
                raise StoreError(f"The engine refused to create {spec.name}: {error.explanation}") from error

    def _host_config(self, spec: ContainerSpec, secret_files: dict[str, Path]) -> dict[str, Any]:
        """What the container may take and see."""
        mounts = [Mount(str(m.path), str(m.path), type="bind", read_only=not m.writable) for m in spec.mounts]
        mounts += [
            Mount(str(SECRETS_FOLDER / name), str(path), type="bind", read_only=True)
            for name, path in secret_files.items()
        ]
        return self._api.create_host_config(
            mounts=mounts,
            tmpfs={SCRATCH: spec.scratch_options},
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            network_mode=spec.network,
            init=True,
            pids_limit=spec.max_processes,
            mem_limit=spec.memory_bytes,
            memswap_limit=spec.memory_bytes,
            shm_size=spec.shared_memory_bytes,
            device_requests=_device_requests(spec.gpus),
            ulimits=[Ulimit(name="core", soft=0, hard=0)],  # a core would hold the step's tokens and data
            log_config=LogConfig(
                type="json-file", config={"max-size": f"{LOG_FILE_BYTES}", "max-file": f"{LOG_FILES}"}
            ),
        )

    def start(self, container_id: str) -> None:
        """Start a created container. Raises ``ConfigError`` if it cannot be; the container object stays."""
        with answers("starting a container"):
            try:
                self._api.start(container_id)
            except APIError as error:
                if NO_GPU_RUNTIME in str(error.explanation):
                    raise ConfigError(
                        "This machine shows GPUs, but its container engine cannot give them to containers "
                        f"({error.explanation}). Install nvidia-container-toolkit and run `nvidia-ctk runtime "
                        "configure`, or set compute.launcher to process."
                    ) from error
                raise StoreError(
                    f"The engine could not start the step's container: {error.explanation}"
                ) from error

    def log(self, container_id: str, since: str, follow: bool) -> Iterator[tuple[str, str]]:
        """Yield (time, line) of what the container printed after ``since``, a time as given here; "" for all.

        With ``follow`` it ends when the container does. Raises ``EngineLost``; a container that is gone printed nothing.
        """
        with answers("reading a log"):
            try:
                stream = self._api.logs(
                    container_id, stream=True, follow=follow, timestamps=True, since=unix_seconds(since)
                )
                yield from log_lines(stream, since)
            except NotFound:
                return
            except APIError as error:
                if error.status_code != CONFLICT:  # is being removed
                    raise

    def signal(self, container_id: str, name: str) -> None:
        """Signal the container's first process; one that has ended is left alone."""
        with answers("signalling a container"):
            try:
                self._api.kill(container_id, signal=name)
            except APIError as error:
                if error.status_code not in (CONFLICT, 404):  # not running; gone
                    raise StoreError(
                        f"The engine could not signal a container: {error.explanation}"
                    ) from error

    def remove(self, container_id: str) -> None:
        """Remove a container, running or not; one that is gone already is fine."""
        with answers("removing a container"):
            try:
                self._api.remove_container(container_id, force=True, v=True)
            except APIError as error:
                if error.status_code not in (CONFLICT, 404):  # being removed; gone
                    raise StoreError(
                        f"The engine could not remove a container: {error.explanation}"
                    ) from error

    def make_network(self, name: str, labels: dict[str, str]) -> None:
        """Make a private network without a way out, unless it is there."""
        with answers("making a network"):
            if not self._api.networks(names=[f"^{name}$"]):
                self._api.create_network(name, driver="bridge", internal=True, labels=labels)

    def find_network(self, name: str) -> None:
        """See that steps may be put into a network: `pairline` is made if it is not there, any other one must carry our
        label. It stays, for the next step; `docker network rm pairline` removes it. Raises ``ConfigError``."""
        with answers("looking for a network"):
            found = [network for network in self._api.networks(names=[name]) if network["Name"] == name]
            if not found and name == OWN_NETWORK:
                with contextlib.suppress(
                    APIError
                ):  # another orchestrator was faster; what else is wrong shows at the start
                    self._api.create_network(
                        name,
                        driver="bridge",
                        labels={NETWORK: "1"},
                        check_duplicate=True,
                        options={"com.docker.network.bridge.enable_icc": "false"},
                    )
                return
        advice = f"Leave docker.network out, or make one: docker network create --label {NETWORK} NAME"
        if not found:
            raise ConfigError(
                f"There is no network {name} (docker.network) on the engine at {self.address}. {advice}"
            )
        labels = found[0]["Labels"] or {}
        if NETWORK not in labels:
            whose = f"compose project {labels[COMPOSE]}'s" if COMPOSE in labels else "somebody else's"
            raise ConfigError(
                f"The network {name} (docker.network) is {whose}, as it lacks the label {NETWORK}: a step "
                f"in it could reach what runs there. {advice}"
            )

    def remove_network(self, name: str) -> None:
        """Remove a network; one that is gone or in use stays as it is."""
        with answers("removing a network"), contextlib.suppress(APIError):
            self._api.remove_network(name)

    def remove_unused_networks(self) -> None:
        """Remove the networks with our label that no container is in."""
        with answers("listing networks"):
            names = [network["Name"] for network in self._api.networks(filters={"label": f"{LABEL}=1"})]
        for name in names:
            self.remove_network(name)


def _device_requests(gpus: tuple[str, ...] | int) -> list[DeviceRequest]:
    if not gpus:
        return []
    which: dict[str, Any] = {"count": gpus} if isinstance(gpus, int) else {"device_ids": list(gpus)}
    return [DeviceRequest(capabilities=[["gpu"]], **which)]
