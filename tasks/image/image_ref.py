"""``ImageRef``: the trainer image that steps run in, by its content."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Variant = Literal[
    "cpu",
    "cuda",
    "cpu-olmo",
    "cuda-olmo",
    "cpu-benchmarks",
    "cuda-benchmarks",
    "cpu-olmo-benchmarks",
    "cuda-olmo-benchmarks",
]
OLMO_CORE, BENCHMARKS = (
    "olmo",
    "benchmarks",
)  # in a variant's name: OLMo-core, lm-evaluation-harness beside the trainer's packages
PYTHON = "/opt/pairline/bin/python"  # the interpreter inside the image, which has dpo_core and its needs
SBOM_FILE = "sbom.cdx.json"  # beside the image's record in the store
USER_ID = 10001  # user and group that the image is made for


def holds(variant: str, extra: str) -> bool:
    """Return whether images of a variant hold ``OLMO_CORE`` or ``BENCHMARKS`` beside the trainer's packages."""
    return extra in variant.split("-")[1:]


class ImageRef(BaseModel):
    """A built, found or named image. What an image that was made elsewhere does not tell is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Variant
    image_id: str  # sha256:... of the image's configuration, as this engine knows it
    size_bytes: int
    digest: str | None = None  # repository@sha256:..., where a registry holds it
    commit: str | None = None  # of the checkout it was built or found for
    dirty: bool = False  # built from files that differ from the commit's
    context_sha256: str | None = None  # of the tar with what a commit puts in
    dependency_key: str | None = None  # of lock files, Dockerfile and base
    base_id: str | None = None  # sha256:... of the image it starts from

    @property
    def reference(self) -> str:
        """What steps run by: the digest, else the id. Never a tag, which may be moved."""
        return self.digest or self.image_id
