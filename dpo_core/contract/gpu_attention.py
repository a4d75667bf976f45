"""Attention kernels that train on CUDA GPUs only, refused where they cannot run. Torch-free: the orchestrator asks, too."""

from importlib.util import find_spec

from dpo_core.contract.config import AttentionKernel
from dpo_core.contract.errors import ConfigError

REASONS = {
    "flex_attention": "has no backward on the CPU (torch 2.13)",
    "flash_attention_2": "is written for CUDA",
}


def check_gpu_attention(kernel: AttentionKernel, num_gpus: int, package_is_here: bool = True) -> None:
    """Raise ``ConfigError`` that says what is missing and what to choose instead.

    ``package_is_here``: the step runs in this environment, so its packages can be looked at.
    """
    if kernel in REASONS and not num_gpus:
        raise ConfigError(
            f"train.attention {kernel} needs a CUDA GPU, and this machine shows none: it {REASONS[kernel]}. "
            "Use train.attention sdpa, or run it on a machine with one."
        )
    if kernel == "flash_attention_2" and package_is_here and find_spec("flash_attn") is None:
        raise ConfigError(
            "train.attention flash_attention_2 needs the package flash-attn, which is not installed. Install "
            "it with pip install flash-attn, or use train.attention sdpa."
        )
