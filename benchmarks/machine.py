"""What a figure was measured on."""

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "trl")


def machine() -> dict[str, str]:
    """Processor, cores, memory, load and versions."""
    described = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in described.split("\n\n")[0].splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    units = [
        unit
        for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        if unit in named.get("flags", "").split()
    ]
    total_kb = int(Path("/proc/meminfo").read_text().splitlines()[0].split()[1])
    return {
        "processor": f"{named.get('model name', platform.processor())}, {len(os.sched_getaffinity(0))} cores, "
        f"{' '.join(units)}",
        "memory": f"{total_kb / 2**20:.0f} GiB",
        "load when started": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES if find_spec(name)},
    }
