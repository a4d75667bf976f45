"""Memory that a process holds because processes share something out, in bytes: gathered weights, gradients that are not
exchanged yet, buckets. Torch-free."""

from dpo_core.contract.back_ends import BACK_ENDS, ShardingKind
from dpo_core.contract.config import Precision
from dpo_core.contract.model_shape import ModelShape

LIVE_VALUES_ZERO3 = 10**9  # DeepSpeed's stage3_max_live_parameters
BUCKET_VALUES = (
    50_000_000  # exchanged at once by DeepSpeed, 0.2 GB; its own 5e8 would take 2 GB on every rank
)
FP32_BYTES, BF16_BYTES = 4, 2


def exchange_parts(
    kind: ShardingKind,
    shape: ModelShape | None,
    num_parameters: int,
    num_trained: int,
    several: bool,
    precision: Precision,
) -> dict[str, int]:
    """Return part -> bytes. ``several``: whether there is more than one process."""
    parts = {}
    if kind == "zero3":  # what is gathered as bf16 is turned into fp32 again
        parts["gathered weights, at most"] = FP32_BYTES * min(LIVE_VALUES_ZERO3, num_parameters)
    if kind == "fsdp2" and shape:
        each = BF16_BYTES if precision == "bf16" else FP32_BYTES
        layer = shape.layer_parameters
        ends = min(2 * shape.head_parameters, num_parameters)
        parts["gathered weights, at most"] = each * (ends + 2 * layer)
        if num_trained == num_parameters:  # one layer's are being sent, in fp32
            parts["gradients before their exchange"] = (
                each * (shape.head_parameters + 2 * layer) + FP32_BYTES * layer
            )
    if BACK_ENDS[kind].is_deepspeed:
        parts["DeepSpeed's buckets"] = 2 * FP32_BYTES * BUCKET_VALUES
    if not BACK_ENDS[kind].shares and several:
        parts["DDP's buckets of gradients"] = FP32_BYTES * num_trained
    return parts


def held_gradients(kind: ShardingKind, num_trained: int, num_processes: int) -> int:
    """Return bytes of the gradients that a process keeps until the optimizer's update."""
    shares = num_processes if "gradients" in BACK_ENDS[kind].shares else 1
    return FP32_BYTES * num_trained // shares
