"""What ``train.compile_regions`` needs, refused where it is not. Torch-free: the orchestrator asks, too."""

import os
import shutil

from dpo_core.contract.back_ends import BACK_ENDS, ShardingKind
from dpo_core.contract.errors import ConfigError

COMPILERS = ("cc", "gcc", "clang")  # of which Triton calls one, unless CC names another


def check_compiled_regions(sharding: ShardingKind, num_gpus: int, is_here: bool = True) -> None:
    """Raise ``ConfigError`` for what cannot work; without cards nothing is compiled, and nothing is needed.

    ``is_here``: the step runs on this machine, so its programs can be looked at.
    """
    if not num_gpus:
        return
    if BACK_ENDS[sharding].is_deepspeed:
        raise ConfigError(
            f"train.compile_regions does not work with compute.sharding {sharding}, whose hooks stand inside the modules "
            "that would be compiled. Use compute.sharding fsdp2 or none, or turn train.compile_regions off."
        )
    if is_here and not os.environ.get("CC") and not any(map(shutil.which, COMPILERS)):
        raise ConfigError(
            "train.compile_regions needs a C compiler on the training machine (cc, gcc or clang, or CC), and there is none. "
            "Install one (in an image: image.compiler), or turn train.compile_regions off."
        )
