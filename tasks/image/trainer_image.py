"""The trainer image of a checkout: found by its key, or built; pushed if asked for; recorded in the store."""

import io
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import ContainerError, ImageNotFound

from dpo_core.contract.errors import ConfigError, from_os_error
from dpo_core.contract.store import exclusive, write_json
from tasks.image.build import build, remove_build_stages
from tasks.image.config import ImageConfig
from tasks.image.context import SourceTree, read_sources, write_tar
from tasks.image.engine import connected, engine_errors
from tasks.image.image_ref import SBOM_FILE, ImageRef
from tasks.image.keys import BuildPlan, plan_build
from tasks.image.named_image import named_image, pull
from tasks.image.push import Login, push
from tasks.image.requirements import trainer_pins
from tasks.image.sbom import cyclonedx, take_inventory
from tasks.image.wheelhouse import Wheelhouse, own_wheelhouse, read_wheelhouse
from tasks.launch.launcher import OnLine
from tasks.run.store_root import prepare_store

CHECKOUT = Path(__file__).resolve().parents[2]
RECORD_FILE = "image.json"
MADE_HERE = "pairline-base:"  # by images/base/build.sh, out of signed Debian packages
DEPENDENCIES_LABEL, CODE_LABEL = "io.pairline.dependency-key", "io.pairline.code-key"
SECONDS_FOR_ANOTHER_BUILD = 3600.0


def trainer_image(
    config: ImageConfig, store_root: Path, login: Login | None, say: OnLine, root: Path = CHECKOUT
) -> tuple[ImageRef, Path]:
    """Return the image and the folder of its record (``image.json``, ``sbom.cdx.json``).

    Raises ``ConfigError`` for a checkout, base, wheelhouse, build or registry that will not do, ``RemoteError`` where the
    engine, a package index or a registry does not answer, ``DiskFull``, ``StoreError``, ``StoreBusy``.
    """
    images = prepare_store(store_root) / "images"
    with connected() as client:
        if config.use:
            image = named_image(client, config, login, say)
            key = image.image_id.removeprefix("sha256:")
        else:
            sources = read_sources(root, config.dirty_tree)
            with exclusive(images, wait_seconds=SECONDS_FOR_ANOTHER_BUILD):  # two flows, one build
                image, key = _Build(client, config, sources, images, say).image_and_key()
        if config.push:
            tag = f"{key[:12]}-dirty" if image.dirty else key[:12]
            digest = push(client, image.image_id, config.repository, tag, login, say)
            image = image.model_copy(update={"digest": digest})
        folder = images / key[:16]
        if not (folder / SBOM_FILE).is_file():
            write_json(folder / SBOM_FILE, cyclonedx(take_inventory(client, image.image_id), image))
    write_json(folder / RECORD_FILE, image)
    return image, folder


def fill_wheelhouse(config: ImageConfig, store_root: Path, say: OnLine, root: Path = CHECKOUT) -> Path:
    """Fill our own wheelhouse for the checkout's lock files, to be carried to hosts without an index. Needs no engine."""
    pins = trainer_pins(read_sources(root, config.dirty_tree).files, config.variant)
    return own_wheelhouse(prepare_store(store_root) / "images", pins, config.variant, say).folder


@dataclass(frozen=True, slots=True)
class _Build:
    """What an image is made of, where, and who hears of it."""

    client: docker.DockerClient
    config: ImageConfig
    sources: SourceTree
    images: Path
    say: OnLine

    def image_and_key(self) -> tuple[ImageRef, str]:
        """Find the image, or make it."""
        base_id = _base_id(self.client, self.config, self.say)
        given = _given_wheelhouse(self.config, self.sources)
        plan = plan_build(self.sources, self.config, base_id, given.hashes if given else None)
        image_id = _find(self.client, {CODE_LABEL: plan.code_key})
        if image_id is None:
            dependencies = _find(
                self.client, {DEPENDENCIES_LABEL: plan.dependency_key}, without=CODE_LABEL
            ) or self._dependencies(plan, base_id, given)
            image_id = self._code(plan, base_id, dependencies)
        else:
            self.say(f"Nothing to build: {image_id[:19]} holds this code and these dependencies")
        with engine_errors("looking at the trainer image"):
            size_bytes = self.client.images.get(image_id).attrs["Size"]
        return ImageRef(
            variant=self.config.variant,
            image_id=image_id,
            size_bytes=size_bytes,
            commit=self.sources.commit,
            dirty=self.sources.dirty,
            context_sha256=plan.context_sha256,
            dependency_key=plan.dependency_key,
            base_id=base_id,
        ), plan.code_key

    def _dependencies(self, plan: BuildPlan, base_id: str, given: Wheelhouse | None) -> str:
        """Base, wheels and the first stages -> the dependency image."""
        if given is None:
            _check_python(self.client, self.config.base, base_id)
        wheels = given or own_wheelhouse(self.images, plan.pins, self.config.variant, self.say)
        self.say(f"Building the dependency image from {self.config.base}: {len(wheels.file_names)} packages")
        contents: list[tuple[str, bytes | Path]] = [
            ("Dockerfile", plan.dependency_stages.encode()),
            ("verify.py", plan.verify),
            ("wheels/hashes.txt", wheels.hashes.encode()),
            ("wheels/installer.sha256", wheels.installer.encode()),
            *((f"wheels/{name}", wheels.folder / name) for name in wheels.file_names),
        ]
        try:
            with tempfile.TemporaryFile(dir=self.images) as context:
                write_tar(context, contents)
                context.seek(0)
                image_id = build(
                    self.client,
                    context,
                    {
                        "BASE_IMAGE": base_id,
                        "VARIANT": self.config.variant,
                        "COMPILER": "needed" if self.config.compiler else "none",
                        "DEPENDENCY_KEY": plan.dependency_key,
                    },
                    {
                        DEPENDENCIES_LABEL: plan.dependency_key,
                        "io.pairline.variant": self.config.variant,
                        "io.pairline.compiler": str(self.config.compiler).lower(),
                        "io.pairline.base-id": base_id,
                        "org.opencontainers.image.base.name": self.config.base,
                    },
                    f"{self.config.repository}:dependencies-{plan.dependency_key[:12]}",
                    self.say,
                )
        except OSError as error:
            raise from_os_error(error, "packing the wheels for the trainer image") from error
        remove_build_stages(self.client, plan.dependency_key, self.say)
        return image_id

    def _code(self, plan: BuildPlan, base_id: str, dependencies: str) -> str:
        """Dependency image and the commit's files -> the code image."""
        sources = self.sources
        self.say(
            f"Building the code image of commit {sources.commit[:12]}{', with changes' if sources.dirty else ''}"
        )
        tag = f"{self.config.repository}:{plan.code_key[:12]}{'-dirty' if sources.dirty else ''}"
        revision = sources.revision + ("-dirty" if sources.dirty else "")
        labels = {
            CODE_LABEL: plan.code_key,
            "io.pairline.context-sha256": plan.context_sha256,
            "io.pairline.dirty": str(sources.dirty).lower(),
            "org.opencontainers.image.base.digest": base_id,
        }
        version = tomllib.loads(sources.files["pyproject.toml"].decode())["project"]["version"]
        return build(
            self.client,
            io.BytesIO(plan.code_context),
            {"DEPENDENCIES": dependencies, "REVISION": revision, "VERSION": version},
            labels,
            tag,
            self.say,
        )


def _base_id(client: docker.DockerClient, config: ImageConfig, say: OnLine) -> str:
    with engine_errors("looking for the base image"):
        try:
            base_id = client.images.get(config.base).id
            if not config.base.startswith(MADE_HERE) and "sha256:" not in config.base:
                say(
                    f"Warning: image.base_image {config.base} is a tag, which may be moved; it is {base_id} now. Name "
                    "that id, or repository@sha256:..., to start from the same bits every time"
                )
            return base_id
        except ImageNotFound:
            if "@sha256:" not in config.base:  # a name could be anybody's
                raise ConfigError(
                    f"There is no image {config.base} (image.base_image) on this engine. `make "
                    f"base-image{' COMPILER=1' if config.compiler else ''}` makes the default one from Debian packages; "
                    "another one you `docker pull`, or name by its digest (repository@sha256:...)."
                ) from None
    pull(client, config.base, None, say)
    return client.images.get(config.base).id


def _given_wheelhouse(config: ImageConfig, sources: SourceTree) -> Wheelhouse | None:
    """The user's wheelhouse, as its hashes are part of the key."""
    if config.wheelhouse is None:
        return None
    return read_wheelhouse(config.wheelhouse.expanduser(), trainer_pins(sources.files, config.variant))


def _find(client: docker.DockerClient, labels: Mapping[str, str], without: str = "") -> str | None:
    """The image with these labels (and without that one). A child inherits its parent's, also one that a user made of it,
    so it is the one of the fewest layers, and of those the oldest: all others with the same key have the same content."""
    with engine_errors("looking for the trainer image"):
        listed = client.api.images(filters={"label": [f"{name}={value}" for name, value in labels.items()]})
        ids = [image["Id"] for image in listed if without not in (image["Labels"] or {})]
        found = []
        for image_id in ids:
            with suppress(ImageNotFound):  # removed meanwhile
                found.append(client.api.inspect_image(image_id))
    found.sort(key=lambda image: (len(image["RootFS"].get("Layers") or ()), image["Created"]))
    return found[0]["Id"] if found else None


def _check_python(client: docker.DockerClient, name: str, base_id: str) -> None:
    """This host's pip gathers wheels for this host's Python, so the base must have the same."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    ask = ["-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
    with engine_errors("asking the base image for its Python"):
        try:
            there = (
                client.containers.run(base_id, ask, entrypoint=["python3"], remove=True, network_mode="none")
                .decode()
                .strip()
            )
        except ContainerError as error:
            raise ConfigError(
                f"The base image {name} has no usable python3: {error.stderr.decode()[-300:]}"
            ) from None
    if there != here:
        raise ConfigError(
            f"The base image {name} has Python {there}, this host {here}, so its pip would gather wheels that "
            f"do not fit. Take a base with Python {here}, run with Python {there}, or give image.wheelhouse."
        )
