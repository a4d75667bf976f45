"""What the machine offers, and how a global batch is cut for it. No torch: the orchestrator has none."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import BatchPlan, Sharding
from tasks.launch.compute_config import ComputeConfig

LARGEST_DEFAULT_PER_DEVICE = 4  # 8 are no faster (docs/engine.md) and take a quarter more memory


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores that a step may use, NVIDIA cards that it can see, and memory, of one node (0: unknown)."""

    num_cores: int
    num_gpus: int
    memory_bytes: int = 0


@cache
def this_machine() -> Machine:
    """Look at affinity, the cgroup's CPU quota, ``nvidia-smi`` and the memory."""
    return Machine(
        num_cores=_num_cores(),
        num_gpus=_num_gpus(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )


def _num_cores() -> int:
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period))) if quota != "max" else cores
    except (OSError, ValueError):
        pass  # no quota is set, or cgroup v1
    return max(1, cores)


def _num_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return 0
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    cards = sum(line.startswith("GPU ") for line in listing.splitlines())
    return min(cards, len(visible.split(","))) if visible else cards


def card_memory_bytes() -> int:
    """Return the memory of the smallest NVIDIA card, 0 where there is none or it does not say."""
    return min((int(line) << 20 for line in _of_cards("memory.total") if line.isdigit()), default=0)


def newest_card() -> tuple[tuple[int, int], str] | None:
    """Return the highest CUDA compute capability of an NVIDIA card here, and that card's name; None where there is none or
    it does not say. Which of several cards a step is shown is not looked into."""
    cards = []
    for line in _of_cards("compute_cap,name"):
        capability, _, name = line.partition(",")
        major, _, minor = capability.strip().partition(".")
        if major.isdigit() and minor.isdigit():
            cards.append(((int(major), int(minor)), name.strip()))
    return max(cards, default=None)


def _of_cards(fields: str) -> list[str]:
    """What nvidia-smi says of each card."""
    try:
        return subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        ).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []


def accelerator_name(machine: Machine) -> str:
    """Return what training occupies here; names the limit on how many runs may do so at once."""
    return "gpu" if machine.num_gpus else "cpu"


def check_devices(compute: ComputeConfig, machine: Machine) -> None:
    """Raise ``ConfigError`` if more processes are asked for of a machine than it has cards; every node is taken to be like
    this one. Without any card the CPU is used."""
    each = compute.num_processes // compute.machines
    if 0 < machine.num_gpus < each:
        on = f" on {compute.machines} machines, {each} on each," if compute.machines > 1 else ""
        raise ConfigError(
            f"compute.num_processes is {compute.num_processes}{on} but a machine shows {machine.num_gpus} "
            f"GPUs. Set compute.num_processes to {machine.num_gpus * compute.machines} or less"
            f"{_spread(compute.num_processes, machine.num_gpus)}."
        )


def _spread(num_processes: int, num_gpus: int) -> str:
    """Say over how many machines like this one so many processes would be spread, if equally."""
    if num_processes % num_gpus:
        return ""
    return f", or spread them: compute.machines {num_processes // num_gpus} with compute.launcher slurm (docs/cluster.md)"


def sharding_of(compute: ComputeConfig) -> Sharding:
    """Return how a step's processes share the model out."""
    return Sharding(
        kind=compute.sharding,
        offload=compute.offload,
        degree=compute.shard_degree,
        tensor_degree=compute.tensor_degree,
    )


def threads_per_process(compute: ComputeConfig, machine: Machine, num_processes: int) -> int:
    """Return CPU threads of each of a step's processes. torchrun would give one, accelerate likewise."""
    return compute.threads_per_process or max(1, machine.num_cores // num_processes)


def solve_batch(
    global_pairs: int, per_device_pairs: int | None, num_processes: int, tensor_degree: int = 1
) -> BatchPlan:
    """Cut the global batch: global = processes x per device x accumulation, where ``tensor_degree`` processes that compute
    together are one.

    Without ``per_device_pairs`` the largest divisor up to 4 is taken. Raises ``ConfigError`` that lists what would do.
    """
    num_processes //= tensor_degree
    if global_pairs % num_processes:
        lower = global_pairs - global_pairs % num_processes
        choices = [str(n) for n in (lower, lower + num_processes) if n]
        fitting = [n * tensor_degree for n in divisors(global_pairs) if n <= num_processes]
        together = f" groups of {tensor_degree}" if tensor_degree > 1 else ""
        raise ConfigError(
            f"train.global_batch_pairs is {global_pairs}, which {num_processes}{together or ' processes'} cannot share "
            f"equally. Set it to {' or '.join(choices)}, or compute.num_processes to one of "
            f"{', '.join(map(str, fitting))}."
        )
    share = global_pairs // num_processes
    fitting = divisors(share)
    if per_device_pairs is None:
        per_device_pairs = max(n for n in fitting if n <= LARGEST_DEFAULT_PER_DEVICE)
    elif per_device_pairs not in fitting:
        raise ConfigError(
            f"train.per_device_batch_pairs is {per_device_pairs}, but each of {num_processes} processes "
            f"has {share} pairs of the global batch of {global_pairs}. Set it to one of "
            f"{', '.join(map(str, fitting))}, or leave it empty."
        )
    return BatchPlan(
        global_pairs=global_pairs,
        per_device_pairs=per_device_pairs,
        accumulation=share // per_device_pairs,
        num_processes=num_processes,
    )


def divisors(number: int) -> list[int]:
    """Return all positive divisors, ascending."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})
