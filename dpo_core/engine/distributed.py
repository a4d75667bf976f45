"""Processes of one step: who am I, and do accelerate and torch agree about it."""

import ctypes
import logging
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, KwargsHandler

from dpo_core.contract.back_ends import BACK_ENDS
from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import Sharding
from dpo_core.engine.meeting import WAIT, meet
from dpo_core.engine.usable_cards import check_cards_are_usable

log = logging.getLogger(__name__)
T = TypeVar("T")

NO_SHARDING = Sharding()
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, NEVER = -1, -3, 2**31 - 1  # glibc malloc.h
MAPPED_BYTES = 1 << 20
# After which an exchange on cards has failed. What a rank does alone is waited for elsewhere (`meeting`); a rank that is
# lost is noticed by `heartbeat`. Ranks of a CPU may take longer for a forward.
EXCHANGE_TIMEOUT = timedelta(minutes=15)
TENSOR = "tensor"  # the mesh's dimension of processes that compute each forward together
GROUP_OF_ONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}


def start_accelerator(
    sharding: Sharding = NO_SHARDING, longest_exchange: timedelta = EXCHANGE_TIMEOUT, **more: Any
) -> Accelerator:
    """Return the accelerator of this process; ``more`` goes to its constructor. ``longest_exchange``: of cards.

    Raises ``ConfigError`` if accelerate and torch disagree on rank or world size, or torch cannot use cards that are here.

    Without an accelerator card the processes talk over gloo. A disagreement would mean that every rank trains on
    everything and all write as main, silently; that was seen on CPU, hence the check.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        check_cards_are_usable()
    # fp32 means fp32. With TF32, which NVIDIA's images turn on by TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, the exact comparison of
    # layouts fails (7e-4 nats on an H200), and every run would take the plain way.
    torch.set_float32_matmul_precision("highest")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if on_cpu and sharding.kind == "none":
        keep_freed_memory()
    elif on_cpu:
        give_freed_memory_back()
    else:
        # cuDNN's attention makes a plan for every new shape, tens of milliseconds each, and every batch has new shapes: on
        # an H200 steps of 16 pairs of a 135M model took 3.9 s, 100 ms of them products.
        torch.backends.cuda.enable_cudnn_sdp(False)
    backend, longest = ("gloo", WAIT) if on_cpu else ("nccl", longest_exchange)
    group = InitProcessGroupKwargs(backend=backend, timeout=longest)
    handlers: list[KwargsHandler] = [group] if several or (on_cpu and sharding.kind != "none") else []
    # Buffers are constants of the model: to send them before forwards would only be something to wait for.
    handlers += [DistributedDataParallelKwargs(broadcast_buffers=False)] if sharding.kind == "none" else []
    accelerator = _start(sharding, {"kwargs_handlers": handlers, **more}, on_cpu)
    if dist.is_available() and dist.is_initialized():
        rank, world = dist.get_rank(), dist.get_world_size()
    else:
        rank, world = 0, 1
    if (accelerator.process_index, accelerator.num_processes) != (rank, world):
        raise ConfigError(
            f"accelerate believes to be process {accelerator.process_index} of "
            f"{accelerator.num_processes}, torch.distributed says {rank} of {world}. Start the step with "
            "`accelerate launch` and without a user config file."
        )
    return accelerator


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones; other C libraries are left as they are.

    By default every tensor beyond 32 MB is mapped anew and faulted in page by page: on one core a step of 8 pairs of a
    135M model took 14.2 s that way and 10.5 s with its memory kept, at the same peak.
    """
    _set_malloc({M_TRIM_THRESHOLD: NEVER, M_MMAP_THRESHOLD: NEVER})


def give_freed_memory_back() -> None:
    """Have glibc map every tensor beyond ``MAPPED_BYTES`` for itself and give it back when it is freed.

    For weights that are shared out because memory is short. Layers are gathered and freed in turn, beside gradients that
    stay, and a heap keeps the holes between them: with FSDP2, two ranks and 200 million parameters a rank of 1.6 GB that
    kept freed memory stood at 5.1 GB after two microbatches, one with glibc's own thresholds at 3.0, this way at 2.2.
    """
    _set_malloc({M_MMAP_THRESHOLD: MAPPED_BYTES})


def _set_malloc(settings: dict[int, int]) -> None:
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for setting, value in settings.items():
            libc.mallopt(setting, value)


def _start(sharding: Sharding, arguments: dict[str, Any], on_cpu: bool) -> Accelerator:
    if sharding.kind == "none":
        return Accelerator(cpu=on_cpu, **arguments)
    for name, value in GROUP_OF_ONE.items():  # a sharding engine needs a process group, also for one process
        os.environ.setdefault(name, value)
    if sharding.kind == "fsdp2":
        from dpo_core.engine.fsdp import start_fsdp_accelerator

        return start_fsdp_accelerator(sharding, arguments, on_cpu)
    assert BACK_ENDS[sharding.kind].is_deepspeed
    # Engines are imported by runs that use them: it takes seconds.
    from dpo_core.engine.zero import start_zero_accelerator

    return start_zero_accelerator(sharding, arguments, on_cpu)


def tensor_degree(accelerator: Accelerator) -> int:
    """Return how many neighbouring processes compute each forward together."""
    mesh = getattr(accelerator, "torch_device_mesh", None)
    return mesh[TENSOR].size() if mesh is not None and TENSOR in (mesh.mesh_dim_names or ()) else 1


def data_rank(accelerator: Accelerator) -> tuple[int, int]:
    """Return whose share of pairs and prompts this process computes, and how many shares there are: processes that compute
    together have the same."""
    degree = tensor_degree(accelerator)
    return accelerator.process_index // degree, accelerator.num_processes // degree


def is_first_of_share(accelerator: Accelerator) -> bool:
    """Return whether this process speaks for those that compute the same share."""
    return accelerator.process_index % tensor_degree(accelerator) == 0


def check_world_size(accelerator: Accelerator, expected: int) -> None:
    """Raise ``ConfigError`` unless the step runs with as many processes as its job was planned for."""
    if accelerator.num_processes != expected:
        raise ConfigError(
            f"The job is planned for {expected} processes but {accelerator.num_processes} were started. "
            f"Use `accelerate launch --num_processes {expected}`."
        )


def from_main(accelerator: Accelerator | None, make: Callable[[], T]) -> T:
    """Return what rank 0 makes, on every rank: one looks at the disk, all act on what it saw. Without an accelerator there
    is one process."""
    if accelerator is None:
        return make()
    made = [make() if accelerator.is_main_process else None]
    meet(accelerator)
    if accelerator.num_processes > 1:
        dist.broadcast_object_list(made, src=0, device=accelerator.device)
    return cast(T, made[0])  # the broadcast has put it there


def by_every_rank(accelerator: Accelerator | None, make: Callable[[int, int], T]) -> list[T]:
    """Return what each rank makes of its number and the number of ranks, on every rank, in their order."""
    if accelerator is None:
        return [make(0, 1)]
    made: list[Any] = [make(accelerator.process_index, accelerator.num_processes)]
    meet(accelerator)
    if accelerator.num_processes > 1:
        mine, made = made[0], made * accelerator.num_processes
        dist.all_gather_object(made, mine)
    return made


def tokens_of_first(accelerator: Accelerator, is_split: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function of next tokens, int64 [R], that gives all who compute a forward together those of the first of them;
    all of these call it together. ``is_split``: every rank does, as no rank holds its weights whole."""
    mesh = accelerator.torch_device_mesh if tensor_degree(accelerator) > 1 else None
    group = None if is_split or mesh is None else mesh[TENSOR].get_group()

    def agree(next_R: torch.Tensor) -> torch.Tensor:
        dist.broadcast(next_R, group=group, group_src=0)
        return next_R

    several = accelerator.num_processes > 1 if is_split else group is not None
    return agree if several else lambda next_R: next_R


def agreed(accelerator: Accelerator, name: str, value: T) -> T:
    """Return ``value`` if every rank has the same. Raises ``ConfigError`` naming each rank's: they would wait for each
    other for ever, each with another idea of the work."""
    values: list[Any] = [value] * accelerator.num_processes
    meet(accelerator)
    if accelerator.num_processes > 1:
        dist.all_gather_object(values, value)
    if any(other != value for other in values):
        found = ", ".join(f"rank {rank} {other}" for rank, other in enumerate(values))
        raise ConfigError(
            f"The processes of this step differ in {name}: {found}. Set {name} to the plainest of them."
        )
    return value


def sum_over_ranks(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Return the elementwise sum of a tensor over all ranks."""
    return accelerator.reduce(values, reduction="sum") if accelerator.num_processes > 1 else values


def sum_over_shares(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Return the elementwise sum over all shares of the pairs, what processes compute together counted once."""
    mine = values if is_first_of_share(accelerator) else torch.zeros_like(values)
    return sum_over_ranks(accelerator, mine)


def max_over_ranks(accelerator: Accelerator, value: float) -> float:
    """Return the largest of all ranks' values; each waits for the others."""
    if accelerator.num_processes == 1:
        return value
    largest = torch.tensor(value, dtype=torch.float64, device=accelerator.device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.item()
