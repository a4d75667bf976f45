"""Whether what few runs need is installed where their steps run, asked before anything is fetched or booked."""

import json
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
# Prints a JSON object: of what is wanted and not there, the version that is there instead.
LOOK_FOR = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

missing = {}
for wanted in sys.argv[1:]:
    name, pinned, pin = wanted.partition("==")
    found = "none"
    if pinned:
        try:
            found = version(name)
        except PackageNotFoundError:
            pass
    if found != pin if pinned else find_spec(name) is None:
        missing[wanted] = found
print(json.dumps(missing))
"""


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
        "torchao": config.train.float8 != "none",
        "lm-evaluation-harness": bool(config.benchmarks.tasks),
    }
    names = ", ".join(name for name, is_wanted in wanted.items() if is_wanted)
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


def missing_in(python: str, wanted: Sequence[str]) -> dict[str, str]:
    """Return what an interpreter lacks, in the order of ``wanted``: top-level modules, or packages in one version
    (``name==version``); each with the version that is there instead, "none" where there is none. Raises ``ConfigError``
    where it cannot be asked."""
    cure = "Set compute.python, with Slurm slurm.python, to a Python interpreter."
    try:
        ran = subprocess.run(
            [python, "-c", LOOK_FOR, *wanted], capture_output=True, text=True, timeout=LOOKED_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{python}, which steps run in, cannot be started: {error}.", cure) from error
    try:  # what a site's own start-up prints stands before it
        found = json.loads(ran.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found = None
    if ran.returncode or not isinstance(found, dict):
        raise ConfigError(
            f"{python}, which steps run in, is no Python that could be asked what is installed in it.", cure
        )
    return found
