"""Errors of cards and their libraries, told by their words: what refuses memory, and what leaves nothing to try."""

import pytest

from dpo_core.contract.errors import is_card_failure, is_out_of_memory

REFUSED = (
    "CUDA error: out of memory",
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "NCCL error: unhandled cuda error. Last error: Failed to CUDA calloc async 608 bytes",
    "NCCL WARN Cuda failure 2 'out of memory'",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8",
)
FAILED = ("CUDA error: an illegal memory access was encountered", "CUDA error: device-side assert triggered")
OTHER = ("The size of tensor a (3) must match the size of tensor b (4)", "shapes cannot be multiplied")


@pytest.mark.parametrize("message", REFUSED)
def test_memory_is_refused_by_any_library(message):
    assert is_out_of_memory(RuntimeError(message))
    assert not is_card_failure(RuntimeError(message))


@pytest.mark.parametrize("message", FAILED)
def test_after_an_error_of_the_card_nothing_is_tried(message):
    assert is_card_failure(RuntimeError(message))
    assert not is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize("message", OTHER)
def test_other_errors_are_neither(message):
    assert not is_out_of_memory(RuntimeError(message))
    assert not is_card_failure(RuntimeError(message))
    assert not is_out_of_memory(ValueError("out of memory"))
