"""Errors of cards and their libraries, told by their words: what refuses memory, and what leaves nothing to try."""

import errno
import fcntl
import os
import socket
import tempfile
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from dpo_core.__main__ import as_pairline_error
from dpo_core.contract.errors import (
    StepCrashed,
    StoreError,
    from_os_error,
    is_card_failure,
    is_failed_compile,
    is_out_of_memory,
)
from dpo_core.contract.store import exclusive

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
NOBODY = 65534
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


def test_what_cannot_be_compiled_is_told_with_what_it_needs():
    """A real failure of torch's compiler, whose back end finds no compiler."""

    def without_compiler(graph, inputs):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    with pytest.raises(RuntimeError) as failure:
        torch.compile(lambda x: x + 1, backend=without_compiler)(torch.ones(2))
    assert is_failed_compile(failure.value)
    assert not is_card_failure(failure.value)
    told = as_pairline_error(failure.value, "train")
    assert told.kind == "config"
    assert "Failed to find C compiler" in told.problem
    assert "train.compile_regions off" in told.advice
    assert not is_failed_compile(RuntimeError(OTHER[0]))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_what_would_help(tmp_path, monkeypatch, number):
    """As Lustre answers that was mounted without them."""

    def refused(*_: object) -> None:
        raise OSError(number, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    with (
        pytest.raises(StoreError, match=r"keeps no locks \(Function not.*Lustre: -o flock"),
        exclusive(tmp_path),
    ):
        pass


def words_to_nobody(*opens: tuple[Path, int]) -> list[str]:
    """Return what is said to a user who is not root of each file that it may not open so."""
    said, words = os.pipe()
    if not (child := os.fork()):
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setuid(NOBODY)
            for path, flags in opens:
                try:
                    os.open(path, flags)
                except OSError as error:
                    told = as_pairline_error(error, "train")
                    os.write(words, f"{type(told).__name__}: {told}\n".encode())
        finally:
            os._exit(0)
    os.close(words)
    os.waitpid(child, 0)
    with os.fdopen(said) as file:
        return file.read().splitlines()


def test_who_may_not_read_is_not_told_to_make_it_writable():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        secret, public, locked = (Path(folder) / name for name in ("secret", "public", "locked"))
        secret.touch(mode=0)
        public.touch(mode=0o444)
        locked.mkdir(mode=0)
        reads = [(path, os.O_RDONLY) for path in (secret, locked / "file")]
        writes = [(path, os.O_WRONLY | os.O_CREAT) for path in (public, Path(folder) / "new")]
        said = words_to_nobody(*reads, *writes)
        locked.chmod(0o700)
    assert len(said) == len(reads) + len(writes)
    for words in said[: len(reads)]:
        assert words.startswith("StoreError: Not allowed to read while running step train (")
        assert "writ" not in words
    for words in said[len(reads) :]:
        assert words.startswith("StoreError: Not allowed to write while running step train (")
    told = from_os_error(PermissionError(errno.EACCES, "Permission denied"), "reading /x")
    assert str(told).startswith("Not allowed to read while reading /x: Permission denied. Let the user")


def test_a_port_that_is_taken_is_a_crash_that_is_tried_again():
    """Asked of torch itself, as a step's first rank does."""
    with socket.socket() as somebody:
        somebody.bind(("", 0))
        somebody.listen()
        port = somebody.getsockname()[1]
        with pytest.raises(RuntimeError) as failure:
            TCPStore("localhost", port, 2, is_master=True, wait_for_workers=False)
    told = as_pairline_error(failure.value, "train")
    assert isinstance(told, StepCrashed)
    assert "their port is taken" in str(told)
