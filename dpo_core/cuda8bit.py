"""Settings that need bitsandbytes and a CUDA GPU, refused where they cannot run. Torch-free: the orchestrator asks, too."""

from importlib.util import find_spec

from dpo_core.config import AdapterConfig, OptimConfig
from dpo_core.errors import ConfigError


def check_cuda8bit(adapter: AdapterConfig, optim: OptimConfig, num_gpus: int, package_is_here: bool = True) -> None:
    """Raise ``ConfigError`` that says what is missing and what to choose instead.

    ``package_is_here``: the step runs in this environment, so its packages can be looked at.
    """
    asked = [(f"adapter.kind {adapter.kind}", "adapter.kind lora", adapter.kind == "qlora"),
             (f"optim.optimizer {optim.optimizer}", "optim.optimizer adamw", optim.optimizer == "adamw_8bit")]
    for setting, instead, wanted in asked:
        if wanted and not num_gpus:
            raise ConfigError(f"{setting} needs a CUDA GPU, and this machine shows none. Use {instead}, or run it on a "
                              "machine with one.")
        if wanted and package_is_here and find_spec("bitsandbytes") is None:
            raise ConfigError(f"{setting} needs the package bitsandbytes, which is not installed. Install it with pip "
                              f"install 'pairline[cuda8bit]', or use {instead}.")
