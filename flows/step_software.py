"""Whether what few runs need is installed where their steps run, asked before anything is fetched or booked."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from dpo_core.contract.errors import ConfigError
from flows.settings.stage_config import StageConfig
from tasks.image.image_ref import BENCHMARKS, OLMO_CORE, holds
from tasks.launch.launcher import kind_of
from tasks.launch.process import step_python

LOOKED_SECONDS = 60  # an interpreter's start on a slow file system
MISSING = (
    "from importlib.util import find_spec; print(*(name for name in {names!r} if find_spec(name) is None))"
)


class StepPython(NamedTuple):
    """The interpreter of steps that run in no image of Pairline's."""

    path: str
    setting: str  # that names it
    why_not: str = ""  # why it cannot be asked from this machine


def python_of_steps(config: StageConfig) -> StepPython | None:
    """Return it; None where steps run in an image that Pairline knows by its variant."""
    compute, slurm = config.compute, config.slurm
    if kind_of(compute).runs_in_image:
        return None
    if compute.launcher == "process":
        return StepPython(step_python(compute), "compute.python")
    if slurm.container != "none":
        return StepPython(slurm.image, "slurm.image", "it is not looked into")
    python = slurm.python or sys.executable
    is_here = os.path.isabs(python) and os.access(python, os.X_OK)  # a bare name is the nodes' own
    return StepPython(python, "slurm.python", "" if is_here else "it is not on this machine")


def unchecked_software(config: StageConfig) -> str:
    """Return what a plan says of the software of steps that could not be asked after; empty where all was."""
    python = python_of_steps(config)
    wanted = {
        "OLMo-core": config.train.implementation == "olmo_core",
        "lm-evaluation-harness": bool(config.benchmarks.tasks),
    }
    names = " and ".join(name for name, is_wanted in wanted.items() if is_wanted)
    if not names or python is None or not python.why_not:
        return ""
    return (
        f"Not checked: steps need {names} in {python.setting} ({python.path or 'empty'}), and {python.why_not}. The first "
        "step that lacks it ends at once, as config."
    )


def wanted_extras(config: StageConfig) -> str:
    """Return what a run needs beside the trainer's packages, as environments and variants of images are called that hold
    it all: one interpreter runs every step."""
    wanted = {
        OLMO_CORE: config.train.implementation == "olmo_core",
        BENCHMARKS: bool(config.benchmarks.tasks),
    }
    return "-".join(extra for extra, is_wanted in wanted.items() if is_wanted)


def how_to_get_it(config: StageConfig, python: StepPython) -> str:
    """Return what to do where the interpreter of steps lacks what a run needs."""
    extras = wanted_extras(config)
    return (
        f"`make setup EXTRAS={extras}` makes an environment that has it; set {python.setting} to its "
        f".venv-{extras}/bin/python."
    )


def check_image_holds(config: StageConfig, software: str, extra: str, needed_by: str) -> None:
    """Raise ``ConfigError`` where steps run in an image that Pairline builds of a variant without ``software``, which
    ``needed_by`` asks for, and which variants call ``extra``."""
    variant = config.image.variant
    if config.image.use is None and not holds(variant, extra):
        raise ConfigError(
            f"{needed_by}, and the image of image.variant {variant} does not hold {software}.",
            f"Set image.variant to {variant.partition('-')[0]}-{wanted_extras(config)}.",
        )


def missing_in(python: str, modules: Sequence[str]) -> list[str]:
    """Return which of some top-level modules an interpreter lacks, in their order. Raises ``ConfigError`` where it cannot be
    asked."""
    found = answer_of(python, MISSING.format(names=tuple(modules)))
    if found is None:
        raise ConfigError(f"{python}, which steps run in, is no Python that could be asked for its modules.")
    return found.split()


def answer_of(python: str, program: str) -> str | None:
    """Return what an interpreter prints when it runs ``program``; None if that fails. Raises ``ConfigError`` where there is
    no such interpreter."""
    try:
        ran = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=LOOKED_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{python}, which steps run in, cannot be started: {error}.") from error
    return None if ran.returncode else ran.stdout.strip()
