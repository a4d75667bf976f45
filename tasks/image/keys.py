"""What decides whether an image has to be built: a key for the dependency image, a key for the code image.

    dependency key = Dockerfile's first stages, check, lock files, variant, compiler or none, id of the base (and a given
                     wheelhouse's hashes)
    code key       = bytes of the context (last stage, dpo_core, pyproject.toml), dependency key, clean or dirty

Keys stand in the images' labels, so an image is found by what is in it, whatever it is called.
"""

import hashlib
from dataclasses import dataclass

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.store import fingerprint
from tasks.image.config import ImageConfig
from tasks.image.context import CODE, SourceTree, tar_bytes
from tasks.image.dockerfile import split_dockerfile
from tasks.image.requirements import Pins, trainer_pins

DOCKERFILE, VERIFY = "images/trainer/Dockerfile", "images/trainer/verify.py"


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Both builds, decided before anything is built."""

    pins: Pins
    dependency_stages: str
    verify: bytes
    dependency_key: str
    code_context: bytes
    context_sha256: str
    code_key: str


def plan_build(sources: SourceTree, image: ImageConfig, base_id: str, given_hashes: str | None) -> BuildPlan:
    """Work out the keys of a build. ``given_hashes``: the list of hashes of a wheelhouse that the user named,
    None for our own.

    Raises ``ConfigError`` for sources that lack a file or contradict themselves.
    """
    for name in (DOCKERFILE, VERIFY):
        if name not in sources.files:
            raise ConfigError(f"{name} is missing from the checkout; the trainer image is built from it.")
    dependency_stages, code_stage = split_dockerfile(sources.files[DOCKERFILE].decode())
    pins = trainer_pins(sources.files, image.variant)
    dependency_key = fingerprint(
        [
            dependency_stages,
            sources.files[VERIFY].decode(),
            [pin.line for pin in pins.values()],
            image.variant,
            image.compiler,
            base_id,
            given_hashes,
        ]
    )
    context = tar_bytes(sources.below(*CODE) | {"Dockerfile": code_stage.encode()})
    context_sha256 = hashlib.sha256(context).hexdigest()
    return BuildPlan(
        pins,
        dependency_stages,
        sources.files[VERIFY],
        dependency_key,
        context,
        context_sha256,
        fingerprint([context_sha256, dependency_key, sources.dirty]),
    )
