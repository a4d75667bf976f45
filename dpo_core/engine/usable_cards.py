"""Cards that are here and that torch cannot use: it would compute on the CPU without a word."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from dpo_core.contract.errors import ConfigError

DEVICES = Path("/dev")
DRIVER_VERSION = Path("/sys/module/nvidia/version")
# The first drivers that run programs of a CUDA version (NVIDIA, CUDA Compatibility, minimum required driver version).
FIRST_DRIVERS = {"11": "450.80", "12": "525.60", "13": "580"}


def check_cards_are_usable(environ: Mapping[str, str] = os.environ) -> None:
    """Raise ``ConfigError``, in a sentence with both versions, where this process was given cards, was not told to use the
    CPU, and torch finds none."""
    cards = sorted(path.name for path in DEVICES.glob("nvidia[0-9]*"))
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    if not cards or hidden or environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return
    on_the_cpu = "Or set CUDA_VISIBLE_DEVICES= to compute on the CPU."
    built_for = torch.version.cuda
    if built_for is None:
        raise ConfigError(
            f"This machine has NVIDIA cards ({', '.join(cards)}), but PyTorch {torch.__version__} was built without CUDA.",
            f"Install the packages of requirements/train-cuda.txt. {on_the_cpu}",
        )
    try:
        driver = DRIVER_VERSION.read_text().strip()
    except OSError:
        driver = "of unknown version"
    first = FIRST_DRIVERS.get(built_for.partition(".")[0], "a newer one")
    raise ConfigError(
        f"This machine has NVIDIA cards ({', '.join(cards)}), but PyTorch {torch.__version__}, built for CUDA {built_for}, "
        f"can use none of them; the driver is {driver}, and CUDA {built_for} needs {first} or later.",
        f"Update the driver, or install a PyTorch built for a CUDA that it knows (nvidia-smi shows which). {on_the_cpu}",
    )
