"""Freed tensors' memory is used again instead of being mapped anew."""

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
