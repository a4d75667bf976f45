"""The hashes of a package's files, as the indexes publish them that this host's pip is set to use (and `TORCH_INDEX_URL`).

Of all files of a version, not only of those that fit this machine, so a lock file serves other systems and Pythons. Where a
version has wheels its source does not count: building it would run code that was fetched without a hash. An index's pages
are read by pip itself, as its settings, credentials and formats are its own; pip's version is pinned beside this.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version
from pip._internal.commands import create_command
from pip._internal.index.collector import parse_links
from pip._internal.models.link import Link

OLDEST_PYTHON = 11  # 3.11
NO_COMPUTERS = (
    "ios",
    "android",
    "pyodide",
    "emscripten",
    "wasm",
    "win",
)  # Pairline runs on Linux and, for trying, on macOS


class PublishedFiles:
    """``more_sums``: lines of `sha256sum`, of files that an index publishes which may not be reached from here."""

    def __init__(self, more_sums: Path) -> None:
        command = create_command("download")
        index = os.environ.get("TORCH_INDEX_URL")
        options, _ = command.parse_args(["unused", *(["--extra-index-url", index] if index else [])])
        self._finder = command._build_package_finder(options, command._build_session(options))
        self._more = [tuple(line.split(maxsplit=1)) for line in more_sums.read_text().splitlines()]
        self._files: dict[str, list[tuple[str, str]]] = {}

    def locked(self, line: str) -> str:
        """A requirement with its version exact and its hashes added, in pip's own form. ``===``: of no local version."""
        requirement = Requirement(line)
        found: dict[Version, dict[bool, set[str]]] = {}
        for sha256, file_name in self._files_of(canonicalize_name(requirement.name)):
            version = version_of(file_name)
            if (
                version is not None
                and requirement.specifier.contains(version, prereleases=True)
                and fits(file_name)
            ):
                found.setdefault(Version(version.public), {}).setdefault(
                    file_name.endswith(".whl"), set()
                ).add(sha256)
        if not found:
            raise SystemExit(f"No index that pip is set to use has files of {line}.")
        newest = max(found)
        hashes = found[newest].get(True) or found[newest][False]
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        marker = f" ; {requirement.marker}" if requirement.marker else ""
        equal = "===" if any(one.operator == "===" for one in requirement.specifier) else "=="
        options = (f"--hash=sha256:{sha256}" for sha256 in sorted(hashes))
        return " ".join([f"{requirement.name}{extras}{equal}{newest}{marker}", *options])

    def _files_of(self, name: str) -> list[tuple[str, str]]:
        """(sha256, file name) of everything there is of a package."""
        if name not in self._files:
            prefix = name.replace("-", "_") + "-"
            self._files[name] = [
                *self._listed(name),
                *(one for one in self._more if one[1].startswith(prefix)),
            ]
        return self._files[name]

    def _listed(self, name: str) -> Iterator[tuple[str, str]]:
        for index in self._finder.index_urls:
            page = self._finder._link_collector.fetch_response(Link(f"{index.rstrip('/')}/{name}/"))
            for link in parse_links(page) if page is not None else ():
                if link.hash_name == "sha256":
                    yield link.hash, link.filename


def version_of(file_name: str) -> Version | None:
    """The version in the name of a wheel or a source archive; None for anything else."""
    try:
        if file_name.endswith(".whl"):
            return parse_wheel_filename(file_name)[1]
        return parse_sdist_filename(file_name)[1]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None


def fits(file_name: str) -> bool:
    """Whether a computer with CPython 3.11 or newer could install it."""
    if not file_name.endswith(".whl"):
        return True
    return any(
        _python_fits(tag.interpreter, tag.abi) and not tag.platform.startswith(NO_COMPUTERS)
        for tag in parse_wheel_filename(file_name)[3]
    )


def _python_fits(interpreter: str, abi: str) -> bool:
    if interpreter.startswith("py"):
        return interpreter.startswith("py3")
    minor = re.fullmatch(r"cp3(\d+)", interpreter)
    return minor is not None and (abi == "abi3" or (int(minor[1]) >= OLDEST_PYTHON and not abi.endswith("t")))
