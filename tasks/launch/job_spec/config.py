"""Sections ``kubernetes`` and ``beaker`` of a recipe: what a step's description for these engines needs besides the step.

Nothing here starts a step: `pairline job-spec` prints, and you submit. None of it is content.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dpo_core.contract.quantities import GiB
from dpo_core.contract.section import Section

DNS_NAME = r"^(|[a-z0-9]([a-z0-9.-]*[a-z0-9])?)$"  # RFC 1123, of objects of Kubernetes
BEAKER_NAME = r"^(|[\w.-]+(/[\w.-]+)?)$"  # name, or account/name
Cores = Annotated[int, Field(ge=1, le=65_536)]
Nodes = Annotated[int, Field(ge=1, le=100_000)]
Cards = Annotated[int, Field(ge=0, le=1024)]
UserId = Annotated[int, Field(ge=1, le=2_147_483_647)]  # never 0: no step runs as root
Retries = Annotated[int, Field(ge=0, le=1000)]


class NodeSection(Section):
    """What a step's node gives it, whatever the engine."""

    engine: ClassVar[str]  # the section's name

    nodes: Nodes = Field(
        1,
        description="Nodes that compute.num_processes are spread over, in steps that several processes run.",
    )
    cpus_per_node: Cores | None = Field(None, description="Cores that a step asks for on each node.")
    memory_gib: GiB | None = Field(None, description="Memory that a step asks for on each node.")
    gpus_per_node: Cards = Field(
        0,
        description="Cards of a node; a step that computes with the model asks for one a process. 0: it runs on CPU.",
    )
    retries: Retries = Field(
        6, description="How often the engine starts an ended step again; it goes on from what it has kept."
    )


class KubernetesConfig(NodeSection):
    """For `pairline job-spec --for kubernetes`: a JobSet of one step, to be submitted with kubectl."""

    engine: ClassVar[str] = "kubernetes"

    namespace: str = Field("", pattern=DNS_NAME, max_length=63, description="Namespace of the JobSet.")
    volume_claim: str = Field(
        "",
        pattern=DNS_NAME,
        max_length=253,
        description="PersistentVolumeClaim (ReadWriteMany) with store, checkpoints and data.",
    )
    mount_path: Path | None = Field(
        None, description="Where that volume is mounted on this machine; pods see the same paths."
    )
    secret: str = Field(
        "",
        pattern=DNS_NAME,
        max_length=253,
        description="Secret with the keys HF_TOKEN and WANDB_API_KEY, for the few steps that need one.",
    )
    user: UserId | None = Field(
        None, description="User id that owns the store; empty: who asks, and 10001 for root."
    )
    gpu_resource: str = Field(
        "nvidia.com/gpu",
        pattern=r"^[a-z0-9.-]+/[\w.-]+$",
        max_length=317,
        description="What cards are called on the cluster.",
    )
    node_selector: dict[str, str] = Field({}, description="Labels that nodes must have.")
    queue: str = Field(
        "", pattern=DNS_NAME, max_length=63, description="Kueue's local queue, where the cluster has one."
    )
    priority_class: str = Field(
        "", pattern=DNS_NAME, max_length=253, description="PriorityClass; empty: the cluster's default."
    )


class BeakerConfig(NodeSection):
    """For `pairline job-spec --for beaker`: an experiment of one step, to be submitted with `beaker experiment create`."""

    engine: ClassVar[str] = "beaker"

    workspace: str = Field(
        "", pattern=BEAKER_NAME, max_length=256, description="Workspace of experiment and image."
    )
    budget: str = Field("", pattern=BEAKER_NAME, max_length=256, description="Budget that is charged.")
    clusters: tuple[str, ...] = Field(
        (), max_length=64, description="Clusters that it may run on: [ai2/jupiter-cirrascale-2]."
    )
    image: str = Field(
        "",
        pattern=BEAKER_NAME,
        max_length=256,
        description="The trainer image's name in Beaker, `beaker image create` makes it: you/pairline-trainer.",
    )
    weka: str = Field(
        "", pattern=r"^[\w.-]*$", max_length=256, description="Weka bucket with store, checkpoints and data."
    )
    mount_path: Path | None = Field(
        None, description="Where that bucket is mounted on this machine; tasks see the same paths."
    )
    priority: Literal["low", "normal", "high", "urgent"] = Field("normal", description="Of the task.")
    preemptible: bool = Field(
        True, description="May be preempted at any time, and is resumed. No: not before it ends by itself."
    )
    secrets: dict[str, str] = Field(
        {},
        description="Names of the workspace's secrets by variable, where they differ: {WANDB_API_KEY: you_WANDB_API_KEY}.",
    )
