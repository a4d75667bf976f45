"""Lock files -> what the trainer image installs: each package pinned, then each to the hash of its wheel."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from dpo_core.contract.errors import ConfigError
from tasks.image.image_ref import BENCHMARKS, OLMO_CORE, Variant, holds

# pip, which installs the rest out of its own wheel while the image is built, and is not installed itself.
INSTALLER, INSTALLER_LOCK = "pip", "images/trainer/installer.txt"
# The convert step reads GGUF files. From the quickstart's lock file, which also names the demo's model (that is mounted).
GGUF_LOCK = "requirements/quickstart.txt"
GGUF_PACKAGES = (
    "gguf",
    "requests",
    "urllib3",
    "charset-normalizer",
    "certifi",
    "idna",
    "numpy",
    "pyyaml",
    "tqdm",
)
# What a variant has beside the trainer's packages, which it overrules.
MORE_LOCKS = {OLMO_CORE: "requirements/olmo.txt", BENCHMARKS: "requirements/benchmarks.txt"}
HASH = re.compile(r"\s--hash=sha256:([0-9a-f]{64})(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Pin:
    """A line of a lock file: the package's version and the files that it may come as."""

    requirement: Requirement
    hashes: frozenset[str]  # SHA-256 of each published file

    @property
    def specifier(self) -> SpecifierSet:
        """Its version."""
        return self.requirement.specifier

    def __str__(self) -> str:
        return str(self.requirement)

    @property
    def line(self) -> str:
        """As pip reads it."""
        return " ".join([str(self), *(f"--hash=sha256:{sha256}" for sha256 in sorted(self.hashes))])


Pins = Mapping[str, Pin]


def trainer_pins(sources: Mapping[str, bytes], variant: Variant) -> dict[str, Pin]:
    """Return canonical name -> pinned requirement of everything in the image, and of its installer.

    ``sources`` holds the lock files by path. Raises ``ConfigError`` for one that is missing or says something else.
    """
    pins = _read_pins(sources, f"requirements/train-{variant.partition('-')[0]}.txt")
    gguf = _read_pins(sources, GGUF_LOCK)
    for name in GGUF_PACKAGES:
        if name not in gguf:
            raise ConfigError(
                f"{GGUF_LOCK} does not pin {name}, which reading GGUF files needs; `make lock` writes it."
            )
        if name in pins and pins[name].specifier != gguf[name].specifier:
            raise ConfigError(
                f"{name} is pinned to {pins[name].specifier} for the trainer and to {gguf[name].specifier} in "
                f"{GGUF_LOCK}; `make lock` gives all lock files one version."
            )
        pins[name] = gguf[name]
    for extra, lock in MORE_LOCKS.items():
        if holds(variant, extra):
            pins |= _read_pins(sources, lock)
    return dict(sorted(pins.items())) | _read_pins(sources, INSTALLER_LOCK)


def _read_pins(sources: Mapping[str, bytes], name: str) -> dict[str, Pin]:
    if name not in sources:
        raise ConfigError(f"{name} is missing from the checkout; it says what the trainer image installs.")
    pins: dict[str, Pin] = {}
    for line in sources[name].decode().splitlines():
        if text := line.partition("#")[0].strip():
            try:
                requirement = Requirement(HASH.sub("", text))
            except InvalidRequirement as error:
                raise ConfigError(f"{name} has a line that is no requirement: {text!r} ({error}).") from None
            hashes = frozenset(HASH.findall(text))
            if not hashes:
                raise ConfigError(
                    f"{name} pins {text} without the hashes of its files; `make lock` writes them."
                )
            if not (requirement.marker and not requirement.marker.evaluate()):
                pins[canonicalize_name(requirement.name)] = Pin(requirement, hashes)
    return pins


def package_of(file_name: str, pins: Pins) -> tuple[str, Version] | None:
    """Return the pinned package, and the version of it, that a file is a wheel of by its name."""
    try:
        name, version, _, _ = parse_wheel_filename(file_name)
    except InvalidWheelFilename:
        return None
    return (
        (name, version) if name in pins and pins[name].specifier.contains(version, prereleases=True) else None
    )


def choose_wheels(file_names: Iterable[str], pins: Pins) -> tuple[dict[str, list[str]], list[str]]:
    """Return per pinned package its wheels (of the newest version that fits; one file a platform), and the pins without
    any.
    """
    found: dict[str, dict[Version, list[str]]] = {name: {} for name in pins}
    for file_name in sorted(file_names):
        if package := package_of(file_name, pins):
            found[package[0]].setdefault(package[1], []).append(file_name)
    chosen = {name: versions[max(versions)] for name, versions in found.items() if versions}
    return chosen, [f"{name}{pins[name].specifier}" for name in pins if name not in chosen]


def hashed_requirements(chosen: Mapping[str, list[str]], sha256_of: Mapping[str, str]) -> str:
    """Return the list for ``pip install --require-hashes``, without the installer. ``sha256_of``: by file name."""
    lines = []
    for name, file_names in sorted(chosen.items()):
        if name != INSTALLER:
            version = parse_wheel_filename(file_names[0])[
                1
            ]  # torch==2.13.0 may be served by 2.13.0+cpu: say which
            hashes = sorted({sha256_of[file_name] for file_name in file_names})
            lines.append(
                " ".join([f"{name}=={version}", *(f"--hash=sha256:{sha256}" for sha256 in hashes)]) + "\n"
            )
    return "".join(lines)
