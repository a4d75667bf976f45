"""The trainer image as a file for a cluster's container program: squashfs for Pyxis (by Enroot), SIF for Apptainer.

Both read it from the docker daemon by its id, so what is in the file is what `pairline image` has built or found.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dpo_core.contract.errors import ConfigError, DiskFull, from_os_error
from tasks.image.program import run_program
from tasks.launch.launcher import OnLine


@dataclass(frozen=True, slots=True)
class FileKind:
    """One kind of file, and the program that makes it. ``argv``: of an image's id and the file to write."""

    ending: str
    argv: Callable[[str, Path], tuple[str, ...]]
    install: str


SQUASHFS = FileKind(
    ".sqsh",
    lambda image_id, file: ("enroot", "import", "--output", str(file), f"dockerd://{image_id}"),
    "Install Enroot (github.com/NVIDIA/enroot, with squashfs-tools) where the docker engine is",
)
SIF = FileKind(
    ".sif",
    lambda image_id, file: ("apptainer", "build", str(file), f"docker-daemon:{image_id}"),
    "Install Apptainer 1.2 or later (apptainer.org) where the docker engine is",
)


def write_cluster_image(kind: FileKind, image_id: str, file: Path, say: OnLine) -> Path:
    """Write the image to ``file``, whole or not at all; an earlier file of the name is replaced. -> its whole path

    Raises ``ConfigError`` where the program is not there or fails, ``DiskFull``.
    """
    file = file.expanduser().absolute()
    if file.suffix != kind.ending:
        raise ConfigError(f"{file} does not end in {kind.ending}.", f"Name it {file.stem}{kind.ending}.")
    aside = file.with_name(f".{file.stem}.aside{kind.ending}")
    argv = kind.argv(image_id, aside)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)  # both programs refuse to write over a file
        _run(kind, argv, say)
        aside.replace(file)
    except OSError as error:
        raise from_os_error(error, f"writing {file}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    return file


def _run(kind: FileKind, argv: tuple[str, ...], say: OnLine) -> None:
    try:
        code, last_lines = run_program(argv, say)
    except FileNotFoundError:
        raise ConfigError(
            f"There is no {argv[0]} on this machine, which makes a {kind.ending} file of the trainer image.",
            f"{kind.install}, or run the same command on a machine that has both.",
        ) from None
    if code:
        tail = "\n".join(f"  | {line}" for line in last_lines) or "  | (it printed nothing)"
        failed = DiskFull if "no space left on device" in tail.lower() else ConfigError
        raise failed(f"{argv[0]} ended with exit code {code}. Its last lines:\n{tail}")
