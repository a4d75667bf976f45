"""The folder of wheels that the dependency image is installed from: filled by the host's pip, or given ready-made.

The host's pip with the host's settings, so private indexes work and no address or credential of theirs comes near an
image. Nothing is taken, by pip or from a given folder, but the files that the lock files name by their hash; where that is a
package's source, DeepSpeed's for one, the wheel that is built of it stands in the folder's ``SHA256SUMS``. The image's pip
installs nothing that hashes differently.
"""

import json
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from packaging.requirements import Requirement

from dpo_core.contract.errors import ConfigError, RemoteError, StoreError
from dpo_core.contract.store import exclusive, fingerprint, new_directory, sha256_file
from tasks.image.image_ref import Variant
from tasks.image.program import run_program
from tasks.image.requirements import INSTALLER, Pin, Pins, choose_wheels, hashed_requirements, package_of
from tasks.launch.launcher import OnLine

SUMS_FILE = "SHA256SUMS"
SECONDS_FOR_ANOTHER_FILL = 1800.0
NUM_LAST_LINES = 15
PIP_WHEEL = ("wheel", "--progress-bar", "off", "--disable-pip-version-check", "--no-deps", "--require-hashes")
TORCH, DEEPSPEED = "torch", "deepspeed"
# Published as source alone: wheels are built of it here, by pinned tools as everything else is pinned.
SOURCE_ONLY = (DEEPSPEED, "langdetect", "rouge-score", "sqlitedict", "word2number")
# What these builds import, DeepSpeed's but for setuptools; torch brings its own needs along.
BUILD_NEEDS = (
    "torch",
    "setuptools",
    "numpy",
    "ninja",
    "packaging",
    "psutil",
    "py-cpuinfo",
    "hjson",
    "pydantic",
    "msgpack",
    "einops",
    "tqdm",
)
# On CPU the shared-memory operation is compiled into the wheel: DeepSpeed compiles it at first use otherwise, and the
# image has no compiler. On CUDA nothing is: the trainer uses none of DeepSpeed's kernels.
ON_CPU = {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "DS_BUILD_SHM_COMM": "1"}
ON_CUDA = {"DS_ACCELERATOR": "cuda", "DS_BUILD_OPS": "0"}
DEEPSPEED_SETTINGS: dict[Variant, dict[str, str]] = {
    variant: ON_CPU if variant.startswith("cpu") else ON_CUDA for variant in get_args(Variant)
}


@dataclass(frozen=True, slots=True)
class Wheelhouse:
    """The wheels of an image. ``hashes`` is pip's list, ``installer`` the line that checks pip itself (sha256sum)."""

    folder: Path
    file_names: tuple[str, ...]
    hashes: str
    installer: str


def own_wheelhouse(store_root: Path, pins: Pins, variant: Variant, say: OnLine) -> Wheelhouse:
    """Return the wheelhouse in the store for these pins, filled now if it is not there.

    Raises ``ConfigError`` or ``RemoteError`` with pip's last lines, ``StoreError``, ``DiskFull``.
    """
    shelf = store_root / "wheelhouse"
    built_for = [sorted(map(str, pins.values())), variant, sys.version_info[:2], os.uname().machine]
    folder = shelf / fingerprint(built_for)[:16]
    if not (folder / SUMS_FILE).is_file():
        with exclusive(shelf, wait_seconds=SECONDS_FOR_ANOTHER_FILL):
            if not (folder / SUMS_FILE).is_file():
                with new_directory(folder) as aside:
                    _fill(aside, pins, variant, say)
    return read_wheelhouse(folder, pins)


def read_wheelhouse(folder: Path, pins: Pins) -> Wheelhouse:
    """Return a filled folder. Only wheels that the lock files name by their hash count, and those of ``SOURCE_ONLY``; with
    a ``SHA256SUMS`` in the folder only those that are listed there, too, and without one they are hashed now.

    Raises ``ConfigError`` that names the packages it lacks.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"image.wheelhouse {folder} is no folder. `make wheelhouse` on a host with a package index fills "
            "one; copy it here."
        )
    there = {path.name for path in folder.glob("*.whl")}
    known = _read_sums(folder / SUMS_FILE)
    unlisted = set() if known is None else there - known.keys()
    packages = {name: found[0] for name in there - unlisted if (found := package_of(name, pins))}
    sums = {name: sha256_file(folder / name) for name in packages} if known is None else known
    strange = {
        name
        for name, package in packages.items()
        if package not in SOURCE_ONLY and sums[name] not in pins[package].hashes
    }
    chosen, missing = choose_wheels(packages.keys() - strange, pins)
    if missing:
        hint = (
            f" {len(unlisted)} wheels are not in its {SUMS_FILE}, so they do not count." if unlisted else ""
        )
        if strange:
            names = ", ".join(sorted(strange)[:4]) + (" ..." if len(strange) > 4 else "")
            hint += (
                f" {names} hash differently from all files that the lock files name, so they do not count; one you "
                "built yourself counts when its hash is added to its package's line."
            )
        raise ConfigError(
            f"The wheelhouse {folder} lacks {len(missing)} of {len(pins)} packages that the lock files pin: "
            f"{', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}.{hint} `make wheelhouse` on a "
            "host with a package index fills one."
        )
    file_names = tuple(sorted(name for names in chosen.values() for name in names))
    installer = "".join(f"{sums[name]}  {name}\n" for name in chosen[INSTALLER])
    return Wheelhouse(folder, file_names, hashed_requirements(chosen, sums), installer)


def _read_sums(path: Path) -> dict[str, str] | None:
    if not path.is_file():
        return None
    lines = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in path.read_text().splitlines()]
    if not all(lines):
        raise ConfigError(
            f"{path} has a line that `sha256sum` did not write. Make it again: sha256sum *.whl > {path.name}"
        )
    return {line[2].removeprefix("./"): line[1] for line in lines if line}


def _fill(folder: Path, pins: Pins, variant: Variant, say: OnLine) -> None:
    """Gather the wheels of all pins in ``folder``, build those that have none, and write their hashes last."""
    if DEEPSPEED in pins and DEEPSPEED_SETTINGS[variant].get("DS_BUILD_SHM_COMM"):
        check_can_compile(Path(sysconfig.get_path("include")))
    say(f"Filling the wheelhouse for {variant}: {len(pins)} packages, by this host's pip")
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch, "requirements.txt")
        listed.write_text(
            "".join(f"{pin.line}\n" for name, pin in pins.items() if name not in (*SOURCE_ONLY, TORCH))
        )
        index = os.environ.get("TORCH_INDEX_URL")
        indexes = ["--extra-index-url", index] if index else []
        if TORCH in pins:
            with listed.open("a") as more:
                more.write(_torch_of_here(pins[TORCH], Path(scratch), indexes, say))
        _pip([*PIP_WHEEL, "--wheel-dir", str(folder), "--requirement", str(listed), *indexes], say)
        if sources := [name for name in SOURCE_ONLY if name in pins]:
            _build(sources, folder, pins, DEEPSPEED_SETTINGS[variant], Path(scratch), say)
    wheels = sorted(folder.glob("*.whl"))
    say(f"{len(wheels)} wheels, {sum(path.stat().st_size for path in wheels) / 1e6:.0f} MB")
    (folder / SUMS_FILE).write_text("".join(f"{sha256_file(path)}  {path.name}\n" for path in wheels))


def _torch_of_here(pin: Pin, scratch: Path, indexes: list[str], say: OnLine) -> str:
    """The line for the build of torch that pip takes (2.13.0+cpu, say): with hashes it would rather take a file whose hash
    an index tells than a newer version, and get CUDA's in place of the one on this machine's disk. The line for CUDA names
    its build itself (``===``).
    """
    if any(one.operator == "===" for one in pin.specifier):
        return f"{pin.line}\n"
    report = scratch / "torch.json"
    _pip(
        [
            "install",
            "--dry-run",
            "--ignore-installed",
            "--no-deps",
            "--quiet",
            "--disable-pip-version-check",
            "--report",
            str(report),
            str(pin),
            *indexes,
        ],
        say,
    )
    version = json.loads(report.read_text())["install"][0]["metadata"]["version"]
    return f"{replace(pin, requirement=Requirement(f'{TORCH}=={version}')).line}\n"


def check_can_compile(headers: Path) -> None:
    """Raise ``ConfigError`` if there is no compiler, or no ``Python.h`` in the interpreter's ``headers``."""
    lacking = {} if shutil.which("g++") else {"g++": "g++"}
    if not (headers / "Python.h").is_file():
        lacking[f"{headers / 'Python.h'}"] = "python3-dev"
    if lacking:
        raise ConfigError(
            f"{' and '.join(lacking)} must be on this host to build DeepSpeed's shared-memory operation for "
            f"the trainer image. On Debian: apt-get install {' '.join(lacking.values())}. Or give a ready "
            "wheelhouse in image.wheelhouse."
        )


def _build(
    names: Sequence[str], folder: Path, pins: Pins, settings: Mapping[str, str], scratch: Path, say: OnLine
) -> None:
    """Build wheels in an environment made of the wheelhouse; DeepSpeed's against the very torch that the image gets."""
    environment = scratch / "environment"
    say(f"Building wheels of {', '.join(names)}{' (two minutes)' if DEEPSPEED in names else ''}")
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)], say)
    python = str(environment / "bin/python")
    needs = [str(pins[name]) for name in BUILD_NEEDS if name in pins]
    if needs:
        install = ("install", "--no-index", "--find-links", str(folder), "--no-compile", "--quiet")
        _pip(["--python", python, *install, "--disable-pip-version-check", *needs], say)
    sources = scratch / "sources.txt"
    sources.write_text("".join(f"{pins[name].line}\n" for name in names))
    _pip(
        [
            "--python",
            python,
            *PIP_WHEEL,
            "--no-build-isolation",
            "--no-binary",
            ",".join(names),
            "--no-cache-dir",
            "--wheel-dir",
            str(folder),
            "--requirement",
            str(sources),
        ],
        say,
        dict(settings) | {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"},
    )


def _pip(arguments: Iterable[str], say: OnLine, env: dict[str, str] | None = None) -> None:
    _run([sys.executable, "-m", "pip", *arguments], say, env)


def _run(argv: list[str], say: OnLine, env: dict[str, str] | None = None) -> None:
    """Run a program, its output to ``say``. Raises ``ConfigError`` (or ``RemoteError``) with its last lines."""
    no_answer = False

    def heard(line: str) -> None:
        nonlocal no_answer
        no_answer = no_answer or "Retrying (" in line  # pip's word for a network that fails
        say(line)

    try:
        code, last_lines = run_program(argv, heard, env)
    except OSError as error:
        raise StoreError(f"{argv[0]} cannot be started: {error.strerror}.") from error
    if code:
        failure = RemoteError if no_answer else ConfigError
        raise failure(
            "The wheelhouse was not filled: `" + " ".join(argv[1:4]) + f" ...` ended with {code}. Its "
            "last lines:\n" + "\n".join(f"  | {line}" for line in last_lines[-NUM_LAST_LINES:])
        )
