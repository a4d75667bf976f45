"""What a run was started with and on, as ``environment.json`` in its folder: enough to start it again elsewhere."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dpo_core.contract.environment import installed, processor_name
from dpo_core.contract.section import Section
from tasks.launch.compute import this_machine
from tasks.launch.process import PACKAGES_FOLDER

PACKAGES = ("pairline", "prefect", "pydantic", "huggingface_hub", "docker")
GIT_SECONDS = 10


class RunEnvironment(Section):
    """The orchestrator's side; each step has its own (``dpo_core.contract.results.StepEnvironment``)."""

    directory: str  # relative paths of a recipe start here
    commit: str | None  # of the source tree; None where the packages are installed from elsewhere
    has_local_changes: bool = False
    python: str
    platform: str
    packages: dict[str, str]
    processor: str
    num_cores: int
    num_gpus: int
    memory_gib: float
    changed_settings: tuple[
        tuple[str, str, str], ...
    ] = ()  # (setting, value, default) of what is not its default


def run_environment(config: BaseModel) -> RunEnvironment:
    """Describe the environment of this process and its machine, for a run of ``config``."""
    machine = this_machine()
    commit, changed = source_commit(PACKAGES_FOLDER)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return RunEnvironment(
        directory=str(Path.cwd()),
        commit=commit,
        has_local_changes=changed,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=installed(PACKAGES),
        processor=processor_name(),
        num_cores=machine.num_cores,
        num_gpus=machine.num_gpus,
        memory_gib=round(memory, 1),
        changed_settings=tuple(changed_settings(config)),
    )


def source_commit(folder: Path) -> tuple[str | None, bool]:
    """Return (commit, whether tracked files were changed since) of the checkout at ``folder``; (None, False) if it is
    none.
    """
    if not (folder / ".git").exists():
        return None, False
    commit, status = (
        _git(folder, "rev-parse", "HEAD"),
        _git(folder, "status", "--porcelain", "--untracked-files=no"),
    )
    return (commit.strip() or None) if commit else None, bool(status and status.strip())


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it is missing or refuses (a checkout of another user)."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def changed_settings(config: BaseModel, prefix: str = "") -> list[tuple[str, str, str]]:
    """Return (setting, value, default) of what a config sets differently from its defaults, section by section."""
    rows = []
    for name, field in type(config).model_fields.items():
        value, default = (
            getattr(config, name),
            field.get_default(call_default_factory=True, validated_data=dict(config)),
        )  # a default may follow from the fields before it
        if isinstance(value, BaseModel):
            rows += changed_settings(value, f"{prefix}{name}.")
        elif field.is_required() or value != default:
            rows.append(
                (prefix + name, _written(value), "(none)" if field.is_required() else _written(default))
            )
    return rows


def _written(value: Any) -> str:
    """A value on one line; of a model what is not its default."""
    if isinstance(value, BaseModel):
        return _written(value.model_dump(exclude_defaults=True))
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_written(item)}" for name, item in value.items()) + "}"
    return "" if value is None else str(value)
