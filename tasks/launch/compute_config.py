"""Where and how heavy steps run: ``ComputeConfig``, the section ``compute`` of a recipe. None of it is content."""

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from dpo_core.contract.back_ends import BACK_ENDS, Offload, ShardingKind
from dpo_core.contract.quantities import Seconds
from dpo_core.contract.section import Section
from tasks.launch.docker.config import MOVED_TO_DOCKER
from tasks.launch.launchers import LAUNCHERS, LauncherName

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET = re.compile(
    r"TOKEN(?!IZERS)|SECRET|PASSW(OR)?D|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY|AUTH(?!OR)", re.IGNORECASE
)


class ComputeConfig(Section):
    """Where and how the heavy steps run."""

    launcher: LauncherName = Field(
        "process",
        description="How a step is started: as a process of this machine, in a container "
        "built from the commit, or as a job of a Slurm cluster.",
    )
    num_processes: int = Field(
        1, ge=1, le=1_000_000, description="Processes (accelerators) of a step, over all machines."
    )
    sharding: ShardingKind = Field(
        "none",
        description="What the processes share out: none (each holds all), zero1 (AdamW's moments), zero2 (and "
        "gradients), zero3 (and weights), by DeepSpeed; fsdp2 (all three), by PyTorch. Same numbers but for rounding.",
    )
    shard_degree: int | None = Field(
        None,
        ge=2,
        le=1_000_000,
        description="Processes that share one copy of the model out (fsdp2; usually those of a node); the others hold "
        "replicas, which exchange gradients alone. Empty: all share one.",
    )
    tensor_degree: int = Field(
        1,
        ge=1,
        le=64,
        description="Neighbouring processes that share each layer's matrices out and compute every forward together, on "
        "the same pairs (tensor parallelism, with fsdp2; of one node: they exchange every layer's output). Pays for large "
        "models on many cards with few pairs a step; see docs/back-ends.md.",
    )
    offload: Offload = Field(
        "none",
        description="What is kept in the machine's memory instead of the accelerator's: the "
        "optimizer (zero1 to zero3), or parameters, too (zero3, fsdp2). Slower.",
    )
    python: str = Field(
        "",
        max_length=4096,
        description="Interpreter of the steps, with the process launcher; empty: the one that runs Pairline. For "
        "train.implementation olmo_core that of `make setup EXTRAS=olmo`: .venv-olmo/bin/python.",
    )
    threads_per_process: int | None = Field(
        None, ge=1, le=65_536, description="CPU threads; empty: cores divided by processes."
    )
    step_timeout_seconds: Seconds = Field(86_400, description="A step that runs longer is stopped.")
    stop_grace_seconds: Seconds | None = Field(
        None,
        description="From being asked to stop to being killed; training finishes its step and writes a checkpoint in it. "
        "Empty: 30, and for training the time of two checkpoints, from their size and the disk's measured speed.",
    )
    folder_gib: float | None = Field(
        None,
        gt=0,
        le=1_000_000_000,
        description="The most that a step's own folder may hold, beyond which the "
        "step is killed; empty: until the disk is nearly full.",
    )
    env: dict[str, str] = Field(
        {},
        description="Variables that steps get beside those of the system and of their libraries:"
        " a proxy, a cluster's own. No secrets.",
    )
    machines: int = Field(
        1,
        ge=1,
        le=100_000,
        description="Nodes that num_processes are spread over. With the docker launcher they are "
        "containers on this machine (for tests).",
    )
    join_timeout_seconds: int = Field(
        300, ge=5, le=31_536_000, description="How long nodes wait for one that is not there yet."
    )

    @model_validator(mode="before")
    @classmethod
    def _moved_settings(cls, values: Any) -> Any:
        if moved := [name for name in MOVED_TO_DOCKER if isinstance(values, dict) and name in values]:
            raise ValueError(f"compute.{moved[0]} is docker.{moved[0]} now; set it there")
        return values

    @field_validator("env")
    @classmethod
    def _env_holds_no_secrets(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a variable: use letters, digits and underscores")
            if SECRET.search(name):
                raise ValueError(
                    f"{name} looks like a secret, and a recipe is written down in many places; steps get their "
                    "tokens from upload.token_block, HF_TOKEN and tracking.wandb_key_block"
                )
        return env

    @model_validator(mode="after")
    def _machines_share_processes(self) -> "ComputeConfig":
        if self.machines > 1 and not LAUNCHERS[self.launcher]().spans_machines:
            spanning = [name for name, load in LAUNCHERS.items() if load().spans_machines]
            raise ValueError(
                f"compute.machines is {self.machines}, but compute.launcher {self.launcher} starts a step on "
                f"this machine alone; set compute.launcher to {' or '.join(spanning)} or compute.machines to 1"
            )
        if self.num_processes % self.machines:
            raise ValueError(
                f"compute.num_processes {self.num_processes} cannot be spread equally over {self.machines} "
                f"machines; set it to a multiple of {self.machines}"
            )
        return self

    @model_validator(mode="after")
    def _python_is_of_processes(self) -> "ComputeConfig":
        if self.python and self.launcher != "process":
            raise ValueError(
                f"compute.python is the interpreter of the process launcher, and compute.launcher is {self.launcher}; leave "
                "it empty (docker: image.variant; slurm: slurm.python)"
            )
        return self

    @property
    def num_shards(self) -> int:
        """Processes that share one copy out."""
        return self.shard_degree or self.num_processes

    @model_validator(mode="after")
    def _replicas_are_whole(self) -> "ComputeConfig":
        if self.shard_degree is None:
            return self
        if self.sharding != "fsdp2":
            raise ValueError(
                f"compute.shard_degree does not go with compute.sharding {self.sharding}; set sharding to fsdp2, or "
                "leave shard_degree empty"
            )
        if self.num_processes % self.shard_degree:
            raise ValueError(
                f"compute.num_processes {self.num_processes} cannot form copies of {self.shard_degree} processes each; "
                f"set compute.shard_degree to a divisor of {self.num_processes}, or leave it empty"
            )
        return self

    @model_validator(mode="after")
    def _tensors_are_shared_within_a_node(self) -> "ComputeConfig":
        degree = self.tensor_degree
        if degree == 1:
            return self
        if self.sharding != "fsdp2" or self.offload != "none":
            raise ValueError(
                f"compute.tensor_degree {degree} goes with compute.sharding fsdp2 and compute.offload none alone, and they "
                f"are {self.sharding} and {self.offload}; set these, or tensor_degree to 1"
            )
        if torn := self.torn_groups(self.machines):
            raise ValueError(torn)
        return self

    def torn_groups(self, num_nodes: int) -> str:
        """Return why processes that compute together would not be of one of so many nodes, or of one copy of the model;
        empty if they are."""
        degree, of_node = self.tensor_degree, self.num_processes // num_nodes
        for what, count in (("a node", of_node), ("a copy of the model (shard_degree)", self.shard_degree)):
            if count and count % degree:
                return (
                    f"compute.tensor_degree {degree} cannot form groups of the {count} processes of {what}; set it to a "
                    f"divisor of {count}"
                )
        return ""

    @model_validator(mode="after")
    def _offload_is_possible(self) -> "ComputeConfig":
        possible = BACK_ENDS[self.sharding].offloads
        if self.offload not in possible:
            fitting = [kind for kind, back_end in BACK_ENDS.items() if self.offload in back_end.offloads]
            raise ValueError(
                f"compute.offload {self.offload} does not go with compute.sharding {self.sharding}, which "
                f"takes {' or '.join(possible)}; set another offload, or sharding to {' or '.join(fitting)}"
            )
        return self
