"""``ImageConfig``: the section ``image`` of a recipe. It lies here and not in ``dpo_core``, which knows no images."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.section import Section
from tasks.image.image_ref import Variant
from tasks.launch.compute import Machine

MINIMAL, WITH_COMPILER = (
    "pairline-base:bookworm",
    "pairline-base:bookworm-compiler",
)  # by images/base/build.sh


class ImageConfig(Section):
    """The trainer image, used where the launcher runs steps in one."""

    variant: Variant = Field(
        "cpu",
        description="cpu, or cuda for NVIDIA GPUs: which lock file's packages are inside; cpu-olmo, cuda-olmo: OLMo-core, "
        "too (train.implementation olmo_core); cpu-benchmarks, cuda-benchmarks: lm-evaluation-harness (benchmarks.tasks); "
        "cpu-olmo-benchmarks, cuda-olmo-benchmarks: both.",
    )
    compiler: bool = Field(
        False,
        description="The image holds the base's C compiler, which train.compile_regions and train.attention flex_attention "
        "call; otherwise a base with a compiler is refused.",
    )
    base_image: str | None = Field(
        None,
        min_length=1,
        description="Image to start from, with Python 3.11 as python3. Empty: pairline-base:bookworm, which `make "
        "base-image` makes without a registry; with image.compiler pairline-base:bookworm-compiler (`make base-image "
        "COMPILER=1`).",
    )
    dirty_tree: Literal["refuse", "tag"] = Field(
        "refuse",
        description="Where files that go into the image differ from the commit: refuse, or build from the files "
        "and mark the image as dirty.",
    )
    use: str | None = Field(
        None,
        pattern=r"^([^@\s]+@)?sha256:[0-9a-f]{64}$",
        description="Run this image and build none: repository@sha256:..."
        " (fetched if it is not there) or the id sha256:... of one that is. A tag may be moved, so it is not taken.",
    )
    repository: str = Field(
        "pairline-trainer",
        pattern=r"^[a-z0-9][a-z0-9._:/-]*$",
        description="Name of the image, "
        "without a tag; with a registry's address (host:5000/team/trainer) it may be pushed.",
    )
    push: bool = Field(
        False, description="Push the image to its repository's registry; steps then run by digest."
    )
    registry_block: str | None = Field(
        None,
        description='Name of the Prefect Secret block with the registry\'s credentials: {"username": ..., '
        '"password": ...}, or the text username:password. Empty: what `docker login` stored, if anything.',
    )
    wheelhouse: Path | None = Field(
        None,
        description="Folder of wheels to install from as it is (private or air-gapped "
        "hosts). Empty: filled by this host's pip, kept in the store.",
    )

    @property
    def base(self) -> str:
        """The image to start from."""
        return self.base_image or (WITH_COMPILER if self.compiler else MINIMAL)

    @model_validator(mode="after")
    def _a_registry_to_push_to(self) -> "ImageConfig":
        host = self.repository.partition("/")[0]
        if self.push and not ("/" in self.repository and ("." in host or ":" in host or host == "localhost")):
            raise ValueError(
                f"image.push needs a registry, but image.repository {self.repository} names none; set it to "
                "host/name or host:port/name, or image.push to false"
            )
        return self


def check_variant(image: ImageConfig, machine: Machine) -> None:
    """Raise ``ConfigError`` where the image that would be built would train on the CPU of a machine that shows GPUs."""
    if _builds_without_cuda(image) and machine.num_gpus:
        raise ConfigError(
            f"This machine shows {machine.num_gpus} GPUs, but image.variant {image.variant} builds an image without "
            f"CUDA, which would train on the CPU. Set image.variant to "
            f"{_with_cuda(image)}, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU."
        )


def check_cluster_variant(image: ImageConfig, asks_for_cards: bool) -> None:
    """Raise ``ConfigError`` where the image is for nodes with cards and would have no CUDA."""
    if _builds_without_cuda(image) and asks_for_cards:
        raise ConfigError(
            f"The recipe asks for cards (slurm.gpus_per_node), but image.variant {image.variant} builds an image without "
            "CUDA, in which no step could use them.",
            f"Set image.variant to {_with_cuda(image)}.",
        )


def _builds_without_cuda(image: ImageConfig) -> bool:
    return image.use is None and image.variant.startswith("cpu")


def _with_cuda(image: ImageConfig) -> str:
    """The variant that holds the same software, for cards."""
    return image.variant.replace("cpu", "cuda", 1)
