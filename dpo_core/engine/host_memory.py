"""Memory of the machine that a rank may still take, as the kernel and its own control group say."""

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
GROUP_LIMITS = (  # version 2, as a container sees its own; version 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        "total_inactive_file",
    ),
)


def free_bytes() -> int:
    """Return the bytes that this rank may take without the machine's running out, if every rank on it takes as many."""
    ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min([_available(), *_left_in_group()]) // ranks


def _available() -> int:
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return 0


def _left_in_group() -> list[int]:
    """What the control group's limit leaves; file pages that nobody needs any more do not count as taken."""
    left = []
    for limit, taken, reclaimable in GROUP_LIMITS:
        try:
            bound = limit.read_text().strip()
            stat = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
            if bound != "max":
                left.append(max(0, int(bound) - int(taken.read_text()) + int(stat.get(reclaimable, 0))))
        except OSError:
            continue
    return left
