"""A step's secrets as files, for the moment in which its container starts and mounts them: in memory where that is possible.

Each user has a folder for them. Who holds its lock is the only one with files in it, so what a killed run left there is
known for what it is, and removed by the next.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from dpo_core.contract.errors import StoreError
from dpo_core.contract.store import exclusive
from tasks.launch.context import Context
from tasks.launch.docker.container import ContainerSpec

MEMORY = Path("/dev/shm")
HUB_TOKEN = "HF_TOKEN"
SECONDS_FOR_ANOTHER_START = 120.0


def places_for_secrets(spec: ContainerSpec) -> list[Path]:
    """Return folders that may hold them, best first. An engine in another world than ours sees the store alone."""
    name = f"pairline-secrets-{os.geteuid()}"
    in_memory, in_store = MEMORY / name, spec.folder.parent / f".{name}"
    return [in_memory, in_store] if _is_ours(in_memory) else [in_store]


def _is_ours(place: Path) -> bool:
    """Make the folder if it is not there. Everybody may write where it lies, so it could be anybody's."""
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
        about = place.lstat()
        return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o077
    return False


@contextlib.contextmanager
def secret_files(spec: ContainerSpec, place: Path, context: Context) -> Iterator[dict[str, Path]]:
    """Make files that only the step's user may read, gone once the container has them mounted. Raises ``StoreBusy``."""
    values = {name: value for name in spec.secrets if (value := _secret(name, context))}
    if not values:
        yield {}
        return
    if not _is_ours(place):
        raise StoreError(
            f"{place} is not this user's alone, so no secret is written there. Remove it, then start again."
        )
    with exclusive(place, wait_seconds=SECONDS_FOR_ANOTHER_START):
        _empty(place)
        try:
            yield {name: _write(place / name, value, spec.user) for name, value in values.items()}
        finally:
            _empty(place)


def _secret(name: str, context: Context) -> str | None:
    if name != HUB_TOKEN:
        return context.secret(name)
    from huggingface_hub import get_token

    return get_token()  # from the environment or a login


def _write(path: Path, value: str, user: tuple[int, int]) -> Path:
    path.touch(mode=0o600)
    path.write_text(value)
    path.chmod(0o400)
    if os.geteuid() == 0:
        os.chown(path, *user)
    return path


def _empty(place: Path) -> None:
    for file in place.iterdir():
        if file.name != ".lock":
            file.unlink(missing_ok=True)
