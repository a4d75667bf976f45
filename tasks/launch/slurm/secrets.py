"""The few secrets of a job: a file each that this user alone may read, named in the script, which holds no value."""

import contextlib
import os
from pathlib import Path

from tasks.launch.context import Context
from tasks.launch.docker.container import USER_OF_ROOTS_STORE
from tasks.launch.launcher import CommandSpec
from tasks.launch.slurm.record import record_folder

SECRET = "secret-"  # how the names of their files begin


def secret_files(command: CommandSpec, context: Context, is_in_docker: bool) -> dict[str, Path]:
    """Write what the step may see. -> name of a secret -> its file. Slurm stores scripts, comments and environments, and
    shows them to administrators. A file is there whole or not at all: a job that waits may begin at any moment."""
    record, files = record_folder(command.folder, make=True), {}
    for name in command.secrets:
        if value := context.secret(name):
            files[name] = record / f"{SECRET}{name}"
            aside = record / f"{SECRET}{name}.aside"
            aside.unlink(missing_ok=True)
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(value)
                if is_in_docker and os.geteuid() == 0:
                    os.fchown(file.fileno(), *USER_OF_ROOTS_STORE)
            aside.replace(files[name])
    return files


def remove_secrets(record: Path) -> None:
    """Remove them once no start needs them."""
    for file in record.glob(f"{SECRET}*"):
        with contextlib.suppress(OSError):
            file.unlink()
