"""``DockerConfig``: the section ``docker`` of a recipe, for the launcher of that name. None of it is content."""

import re
from typing import Any

from pydantic import Field, field_validator

from dpo_core.contract.quantities import GiB
from dpo_core.contract.section import Section

NETWORK = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
OWN_NETWORK = "pairline"  # made by the docker launcher: a way out, and no way from one container to the other
SHARED_NETWORKS = {  # the engine's own names
    "host": "is the machine's own network: whatever listens there, on loopback alone too, could be reached from a step",
    "default": "is a network that every container of the engine may be in",
}
MOVED_TO_DOCKER = (
    "memory_gib",
    "shared_memory_gib",
    "max_processes",
    "network",
)  # fields of ``compute`` up to version 0.1


class DockerConfig(Section):
    """What a step's container may take and reach, where ``compute.launcher`` is docker."""

    memory_gib: GiB | None = Field(
        None,
        description="Memory of a step, beyond which it ends as `oom`; empty: nine tenths of the machine's.",
    )
    shared_memory_gib: GiB = Field(2.0, description="/dev/shm, through which processes exchange tensors.")
    max_processes: int = Field(4096, ge=16, le=4_194_304, description="Processes and threads, all together.")
    network: str = Field(
        OWN_NETWORK,
        max_length=128,
        description="Docker network of the steps that may need "
        "one: fetching data sets from a Hub, a training tracked online. The others have none. Another one "
        "than pairline must be there and carry the label pairline.network.",
    )

    @field_validator("network")
    @classmethod
    def _network_is_no_one_elses(cls, network: str) -> str:
        advice = (
            "leave docker.network out, then steps get a network of their own (pairline), or make one with `docker "
            "network create --label pairline.network NAME` and name it"
        )
        if network in SHARED_NETWORKS:
            raise ValueError(f"docker.network {network} {SHARED_NETWORKS[network]}; {advice}")
        if network.startswith("container:"):
            raise ValueError(f"docker.network {network} is the network of another container; {advice}")
        if not NETWORK.fullmatch(network):
            raise ValueError(f"docker.network {network!r} is no name of a network; {advice}")
        return (
            OWN_NETWORK if network == "bridge" else network
        )  # the default of older versions, in recipes written down


def from_compute(values: Any) -> Any:
    """Return a recipe of an earlier version with its container settings in their own section. Raises ``ValueError`` for
    one that is set in both."""
    compute = values.get("compute") if isinstance(values, dict) else None
    if not isinstance(compute, dict) or not any(name in compute for name in MOVED_TO_DOCKER):
        return values
    moved = {name: compute[name] for name in MOVED_TO_DOCKER if name in compute}
    docker = values.get("docker") or {}
    docker = docker if isinstance(docker, dict) else docker.model_dump()
    if clash := [name for name, value in moved.items() if docker.get(name, value) != value]:
        raise ValueError(f"compute.{clash[0]} is docker.{clash[0]} now, and both are set; set it there alone")
    kept = {name: value for name, value in compute.items() if name not in moved}
    return {**values, "compute": kept, "docker": {**moved, **docker}}
