"""Settings that need bitsandbytes and a CUDA GPU, refused where they cannot run. Torch-free: the orchestrator asks, too."""

from importlib.util import find_spec

from dpo_core.contract.back_ends import ShardingKind
from dpo_core.contract.config import AdapterConfig, OptimConfig, Precision
from dpo_core.contract.errors import ConfigError


def check_cuda8bit(
    adapter: AdapterConfig, optim: OptimConfig, num_gpus: int, package_is_here: bool = True
) -> None:
    """Raise ``ConfigError`` that says what is missing and what to choose instead.

    ``package_is_here``: the step runs in this environment, so its packages can be looked at.
    """
    asked = [
        (f"adapter.kind {adapter.kind}", "adapter.kind lora", adapter.kind == "qlora"),
        (f"optim.optimizer {optim.optimizer}", "optim.optimizer adamw", optim.optimizer == "adamw_8bit"),
    ]
    for setting, instead, wanted in asked:
        if wanted and not num_gpus:
            raise ConfigError(
                f"{setting} needs a CUDA GPU, and this machine shows none. Use {instead}, or run it on a "
                "machine with one."
            )
        if wanted and package_is_here and find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"{setting} needs the package bitsandbytes, which is not installed. Install it with pip "
                f"install 'pairline[cuda8bit]', or use {instead}."
            )


def check_8bit_fits(
    adapter: AdapterConfig, optim: OptimConfig, precision: Precision, sharding: ShardingKind
) -> None:
    """Raise ``ConfigError`` for settings that 4-bit weights and 8-bit moments do not go with."""
    if adapter.kind == "qlora" and precision != "bf16":
        raise ConfigError(
            f"adapter.kind qlora computes in bf16, but train.precision is {precision}. Set train.precision to "
            "bf16, or use adapter.kind lora."
        )
    if sharding != "none" and (adapter.kind == "qlora" or optim.optimizer == "adamw_8bit"):
        setting = "adapter.kind qlora" if adapter.kind == "qlora" else "optim.optimizer adamw_8bit"
        raise ConfigError(
            f"{setting} does not go with compute.sharding {sharding}: its packed values cannot be shared out "
            "among processes. Set compute.sharding to none, or use adapter.kind lora with optim.optimizer "
            "adamw."
        )
