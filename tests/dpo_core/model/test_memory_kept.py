"""Freed tensors' memory is used again instead of being mapped anew; where weights are shared out it is given back."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration  # real processes

PAGES = 2**26 // 4096
PROGRAM = """
import resource, sys, torch
from dpo_core.engine.distributed import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def fill():
    for _ in range(10):
        torch.ones(2**24)  # 64 MB
fill()
before = faults()
fill()
print(faults() - before)
"""


def faults(how: str) -> int:
    return int(
        subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        ).stdout
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries are left as they are")
def test_large_tensors_are_not_faulted_in_again():
    assert faults("kept") < PAGES < 5 * PAGES < faults("default")


HOLES = """
import sys, torch
from dpo_core.contract.jobs import Sharding
from dpo_core.engine.distributed import start_accelerator
start_accelerator(Sharding(kind=sys.argv[1]))
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024
before = resident()
gathered, stays = [], []
for _ in range(40):  # layers that are gathered beside parts of gradients that stay
    gathered.append(torch.ones(2**21))  # 8 MB
    stays.append(torch.ones(2**15))  # 128 kB
del gathered
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries are left as they are")
def test_a_rank_with_a_share_of_the_weights_leaves_no_holes():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", HOLES, kind], capture_output=True, check=True).stdout)
        for kind in ("none", "fsdp2")
    )
    assert given_back < 40 < 300 < kept  # MB; 40 layers are 320
