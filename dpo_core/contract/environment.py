"""What a step runs on: versions, processor or accelerator, threads. For the report; nothing computes with it."""

import functools
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dpo_core.contract.results import StepEnvironment

PACKAGES = (
    "pairline",
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "bitsandbytes",
    "flash_attn",
    "ai2-olmo-core",
    "torchao",
    "lm-eval",
    "tensorboard",
    "wandb",
    "mlflow-skinny",
    "trackio",
)


def step_environment() -> StepEnvironment:
    """Describe the environment of this process; call it when the step's libraries are imported, so that the
    accelerator has a name.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return StepEnvironment(
        python=platform.python_version(),
        platform=platform.platform(),
        packages=installed(PACKAGES),
        device=_device(),
        num_processes=int(os.environ.get("WORLD_SIZE", "1")),
        threads_per_process=int(threads) if threads.isdigit() else None,
    )


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Return name -> version of those that are installed. Imports none of them."""
    return {name: found for name in names if (found := _version_of(name)) is not None}


@functools.cache  # half a millisecond each, and what this process has imported stays what it is
def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device() -> str:
    torch = sys.modules.get("torch")  # not imported for its own sake: `mix` needs none
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return processor_name()


def processor_name() -> str:
    """Return the processor's name as the kernel tells it, e.g. "AMD EPYC 7B13"; the architecture where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
