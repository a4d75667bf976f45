"""The few secrets of a job: a file each that this user alone may read, named in the script, which holds no value."""

import contextlib
import os
from pathlib import Path

from tasks.launch.context import Context
from tasks.launch.launcher import CommandSpec

SECRET = "secret-"  # how the names of their files begin


def secret_files(
    command: CommandSpec, record: Path, context: Context, user: tuple[int, int] | None = None
) -> dict[str, Path]:
    """Write what the step may see. -> name of a secret -> its file. Slurm stores scripts, comments and environments, and
    shows them to administrators. ``user``: who is to read them where root submits."""
    files = {}
    for name in command.secrets:
        if value := context.secret(name):
            files[name] = record / f"{SECRET}{name}"
            with contextlib.suppress(FileNotFoundError):
                files[name].unlink()
            with os.fdopen(os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(value)
                if user is not None and os.geteuid() == 0:
                    os.fchown(file.fileno(), *user)
    return files


def remove_secrets(record: Path) -> None:
    """Remove them once no start needs them."""
    for file in record.glob(f"{SECRET}*"):
        with contextlib.suppress(OSError):
            file.unlink()
