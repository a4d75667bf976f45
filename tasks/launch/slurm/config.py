"""``SlurmConfig``: the section ``slurm`` of a recipe, for the launcher of that name. None of it is content."""

import re
from typing import Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from dpo_core.contract.job_registry import JOBS
from dpo_core.contract.quantities import GiB
from dpo_core.contract.section import Section

WORD = r"[\w.@%+-]*"  # names of partitions, accounts, qualities of service
OURS = (
    "job-name",
    "comment",
    "output",
    "error",
    "input",
    "open-mode",
    "dependency",
    "singleton",
    "export",
    "export-file",
    "requeue",
    "no-requeue",
    "signal",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "cpus-per-task",
    "gpus",
    "gpus-per-node",
    "gres",
    "time",
    "mem",
    "partition",
    "account",
    "qos",
    "constraint",
    "array",
    "wait",
    "parsable",
    "test-only",
    "wrap",
    "chdir",
    "hold",
    "get-user-env",
    "kill-on-bad-exit",
    "label",
    "help",
    "version",
    "usage",
    "quiet",
    "container",
    "container-image",
    "container-mounts",
    "container-workdir",
    "container-name",
    "container-save",
    "container-mount-home",
    "no-container-mount-home",
    "container-remap-root",
    "no-container-remap-root",
    "container-entrypoint",
    "no-container-entrypoint",
    "container-entrypoint-log",
    "container-writable",
    "container-readonly",
    "container-env",
    "container-unshare",
    "clusters",
)
ContainerKind = Literal["none", "docker", "pyxis", "apptainer"]
DOCKER_IMAGE = re.compile(r"([^@\s]+@)?sha256:[0-9a-f]{64}")  # a tag may be moved
# Those of one process; a form shows them as a list.
LocalStep = Literal["fetch", "rehearse", "convert", "dequantise", "mix", "export", "judge", "answer"]

OF_NO_CARD = ("mix", "export")  # every run has them; where they go, a step that needs no card may go, too


class SlurmConfig(Section):
    """What a step's job asks of the cluster, where ``compute.launcher`` is slurm."""

    partition: str = Field(
        "",
        pattern=rf"^{WORD}$",
        max_length=256,
        description="Partition of the steps; empty: the cluster's default.",
    )
    partitions: dict[str, str] = Field(
        {},
        description="Partitions by step, where some go elsewhere: {mix: cpu, export: cpu}. The others go to partition; "
        "a judge that is an endpoint needs no card and goes where mix goes.",
    )
    account: str = Field(
        "", pattern=rf"^{WORD}$", max_length=256, description="Account that is charged; empty: your default."
    )
    qos: str = Field(
        "", pattern=rf"^{WORD}$", max_length=256, description="Quality of service; empty: the default."
    )
    constraint: str = Field(
        "",
        pattern=r"^[\w.&|*()\[\]@-]*$",
        max_length=256,
        description="Features that nodes must have, as sbatch writes them: h100&ib.",
    )
    gpus_per_node: str = Field(
        "",
        coerce_numbers_to_str=True,  # YAML's 8 is a number
        pattern=r"^(|([A-Za-z0-9][\w.-]*:)?[1-9]\d{0,3})$",
        description="Cards that reference pass, training and evaluation ask for on each node: 8, or h100:8. Empty: none, "
        "and the steps run on CPU.",
    )
    cpus_per_node: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Cores that a step asks for on each node; empty: all that its partition's have.",
    )
    memory_gib: GiB | None = Field(
        None, description="Memory that a step asks for on each node; empty: the cluster's default."
    )
    time_limit_minutes: int | None = Field(
        None,
        ge=1,
        le=5_256_000,
        description="Of one job; a training that takes longer is a chain of jobs. Empty: the partition's.",
    )
    reference_array: int | None = Field(
        None,
        ge=2,
        le=512,
        description="Run the reference pass as an array of so many jobs of one card each, which begin wherever a card is "
        "free; each holds the whole model, whatever compute.sharding says. Empty: one job of all processes.",
    )
    on_this_machine: tuple[LocalStep, ...] = Field(
        ("fetch", "rehearse"),
        description="Steps that are no jobs, but processes beside the orchestrator: what needs the Internet, and what "
        "takes seconds.",
    )
    flags: tuple[str, ...] = Field(
        (), max_length=64, description="Further flags of sbatch: [--reservation=align, --exclude=n7]."
    )
    setup: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Lines of shell before a step on its first node: [module load cuda/12.8]. No secrets.",
    )
    python: str = Field(
        "",
        max_length=4096,
        description="Interpreter on the nodes; empty: this one, on a file system that they share. In a container the "
        "image's own.",
    )
    container: ContainerKind = Field(
        "none",
        description="Steps run in slurm.image: by the nodes' docker engines, by srun with Pyxis, by Apptainer. none: in "
        "slurm.python, as you.",
    )
    image: str = Field(
        "",
        max_length=4096,
        description="docker: the trainer image by id or digest; pyxis: a .sqsh file, apptainer: a .sif file, on the nodes' "
        "file system. `pairline image` makes and names each.",
    )
    poll_seconds: float = Field(
        30.0,
        ge=0.1,
        le=3600,
        description="Between two questions to Slurm, one for all jobs of a run together.",
    )

    _without_cards: frozenset[str] = PrivateAttr(frozenset())  # see ``without_cards_for``

    @field_validator("partitions")
    @classmethod
    def _partitions_of_steps(cls, partitions: dict[str, str]) -> dict[str, str]:
        for step, partition in partitions.items():
            if step not in JOBS:
                raise ValueError(
                    f"slurm.partitions names {step}, which is no step; use one of {', '.join(sorted(JOBS))}"
                )
            if not re.fullmatch(WORD, partition) or not partition:
                raise ValueError(f"slurm.partitions.{step} is {partition!r}, which is no name of a partition")
        return partitions

    @field_validator("flags")
    @classmethod
    def _flags_are_not_ours(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        for flag in flags:
            name = flag.partition("=")[0]
            long = name.removeprefix("--")
            if (
                not name.startswith("--")
                or not re.fullmatch(r"[a-z][a-z0-9-]*", long)
                or not flag.isprintable()
            ):
                raise ValueError(
                    f"slurm.flags: {flag!r} is no long flag of sbatch. Write each as one word, --name or --name=value"
                )
            # sbatch takes the beginning of a name for the name, so --job is --job-name, too.
            if mine := [one for one in OURS if one == long or (len(long) > 1 and one.startswith(long))]:
                own = {
                    "mem": "slurm.memory_gib",
                    "time": "slurm.time_limit_minutes",
                    "nodes": "compute.machines",
                }
                own |= {one: f"slurm.{one}" for one in ("partition", "account", "qos", "constraint")}
                own |= dict.fromkeys(("gpus", "gpus-per-node", "gres"), "slurm.gpus_per_node")
                own |= {"cpus-per-task": "slurm.cpus_per_node", "ntasks": "compute.num_processes"}
                own["clusters"] = "the variable SLURM_CLUSTERS, which all of Slurm's programs go by,"
                where = f"; set {own[mine[0]]} instead" if mine[0] in own else "; remove it"
                raise ValueError(f"slurm.flags: {flag} is Pairline's own to set (--{mine[0]}){where}")
        return flags

    @field_validator("setup")
    @classmethod
    def _setup_is_lines(cls, setup: tuple[str, ...]) -> tuple[str, ...]:
        for line in setup:
            if not line.strip() or "\n" in line or "\0" in line or len(line) > 4096:
                raise ValueError(f"slurm.setup: {line[:80]!r} is no line of shell; write one command a line")
        return setup

    @model_validator(mode="after")
    def _image_of_the_container(self) -> "SlurmConfig":
        image, kind = self.image, self.container
        if kind == "none" and image:
            raise ValueError(
                f"slurm.image is {image}, and slurm.container none runs in no image; set slurm.container to docker, pyxis "
                "or apptainer, or leave the image out"
            )
        if kind == "docker" and not DOCKER_IMAGE.fullmatch(image):
            raise ValueError(
                f"slurm.image {image!r} is no id and no digest of an image (sha256:... or repository@sha256:...), which "
                "slurm.container docker needs; `pairline image my.yaml` prints one"
            )
        if kind in ("pyxis", "apptainer") and not (image.startswith("/") and image.isprintable()):
            flag, ending = ("--sqsh", "sqsh") if kind == "pyxis" else ("--sif", "sif")
            raise ValueError(
                f"slurm.image {image!r} is no whole path of a file, which slurm.container {kind} needs; make one: pairline "
                f"image my.yaml {flag} /shared/trainer.{ending}"
            )
        return self

    def without_cards_for(self, steps: frozenset[str]) -> "SlurmConfig":
        """Return the same for a recipe in which these steps compute nothing, though others of their kind do: jobs without a
        card, in the partition that is named for such."""
        if not steps:
            return self
        known = self.model_copy()
        known._without_cards = steps
        return known

    def num_shares(self, step: str) -> int:
        """Return into how many jobs of an array a step's work is dealt; 0 for a step that is one job."""
        return (self.reference_array or 0) if step == "reference" else 0

    def partition_of(self, step: str) -> str:
        """Return where a step's job goes; empty for the cluster's default."""
        named = (step, *OF_NO_CARD) if step in self._without_cards else (step,)
        return next((self.partitions[one] for one in named if one in self.partitions), self.partition)

    def num_gpus(self, step: str) -> int:
        """Return the cards that a step's nodes give it."""
        uses_cards = JOBS[step].uses_cards() and step not in self._without_cards
        return int(self.gpus_per_node.rpartition(":")[2] or 0) if uses_cards else 0
