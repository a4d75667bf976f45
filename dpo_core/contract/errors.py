"""What can go wrong, and what an exit means. One tree for the library, the program and the orchestrator.

    PairlineError                  kind          exit  retried  meaning
    ├── UserError (ValueError)                                  something the user must change; never retried
    │   ├── ConfigError            config        10    no       the recipe contradicts itself or the machine
    │   ├── DataError              data          11    no       the preference data cannot be used
    │   ├── CheckpointError        checkpoint    12    no       a model, tokenizer or chat template cannot be used
    │   └── StoreError             store         13    no       the store cannot be written, or what is in it is damaged
    ├── StoreBusy                  busy          14    no       another live run is working on the same step
    ├── DiskFull                   disk_full     15    no       no space left where the step writes
    ├── OutOfMemory                oom           16    no       the batch does not fit; the message says what to lower
    ├── NonFinite                  non_finite    17    no       loss or gradient is NaN or infinite
    ├── ReferenceMismatch          mismatch      18    no       the step-0 guard: policy and reference cache disagree
    ├── PolicyDegraded             degraded      28    no       training shows a sign that evaluation.warnings.stop names
    ├── HandoffRefused             refused       19    no       the receiving side does not accept a checkpoint
    ├── TimedOut                   timeout       23    no       a step ran longer than compute.step_timeout_seconds
    ├── Cancelled              cancelled     27    no       a person ended the step, not the run that it belongs to
    ├── NotReleased                                             trained and measured, but neither uploaded nor handed off
    │   ├── GateFailed             gate          24    no       a rule of the gate does not hold
    │   ├── ApprovalRejected       rejected      25    no       a person said no
    │   └── ApprovalTimedOut       unanswered    26    no       nobody answered within gate.timeout_seconds
    ├── Preempted                  preempted     20    yes      asked to stop (SIGTERM); a checkpoint was written
    ├── RemoteError                remote        21    yes      a hub, registry or network did not answer
    └── StepCrashed                crashed       22    yes      the step died without a word (killed, segfault, power)

A message says what, where, what was got, what was expected, and what to do.
"""

import errno
import os
from typing import ClassVar

from dpo_core.contract.visible import visible


class PairlineError(Exception):
    """Root of the tree. ``kind`` names the error in ``error.json``; ``exit_code`` is the process's exit status.

    ``problem`` says what, where, what was got and what was expected, ``advice`` what to do, where that is a sentence of its
    own: who catches an error and knows better what to do takes its problem alone. Messages carry what others wrote (names,
    paths, lines of a log) and are shown in many places: as text they are visible.
    """

    kind: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, problem: str = "", advice: str = "") -> None:
        super().__init__(*filter(None, (problem, advice)))

    @property
    def problem(self) -> str:
        """What is wrong, as visible text."""
        return visible(self.args[0]) if self.args else ""

    @property
    def advice(self) -> str:
        """What to do, as visible text; empty where the problem's sentences say it."""
        return visible(self.args[1]) if len(self.args) > 1 else ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.problem, self.advice)))


class UserError(PairlineError, ValueError):
    """Something the user must change: retrying the same input cannot help."""


class ConfigError(UserError):
    kind, exit_code = "config", 10


class DataError(UserError):
    kind, exit_code = "data", 11


class CheckpointError(UserError):
    kind, exit_code = "checkpoint", 12


class StoreError(UserError):
    kind, exit_code = "store", 13


class StoreBusy(PairlineError):
    kind, exit_code = "busy", 14


class DiskFull(PairlineError):
    kind, exit_code = "disk_full", 15


class OutOfMemory(PairlineError):
    kind, exit_code = "oom", 16


class NonFinite(PairlineError):
    kind, exit_code = "non_finite", 17


class ReferenceMismatch(PairlineError):
    kind, exit_code = "mismatch", 18


class PolicyDegraded(PairlineError):
    kind, exit_code = "degraded", 28


class HandoffRefused(PairlineError):
    kind, exit_code = "refused", 19


class TimedOut(PairlineError):
    kind, exit_code = "timeout", 23


class Cancelled(PairlineError):
    kind, exit_code = "cancelled", 27


class NotReleased(PairlineError):
    """A checkpoint stays where it was made. A run that ends so ends in a state named like the class."""


class GateFailed(NotReleased):
    kind, exit_code = "gate", 24


class ApprovalRejected(NotReleased):
    kind, exit_code = "rejected", 25


class ApprovalTimedOut(NotReleased):
    kind, exit_code = "unanswered", 26


class Preempted(PairlineError):
    kind, exit_code, retryable = "preempted", 20, True


class RemoteError(PairlineError):
    kind, exit_code, retryable = "remote", 21, True


class StepCrashed(PairlineError):
    kind, exit_code, retryable = "crashed", 22, True


def _leaves(cls: type[PairlineError]) -> list[type[PairlineError]]:
    return [cls] + [leaf for sub in cls.__subclasses__() for leaf in _leaves(sub)]


def error_of_kind(kind: str) -> type[PairlineError]:
    """Return the class that ``error.json`` names; an unknown kind (a newer trainer) is a plain ``PairlineError``."""
    return next((cls for cls in _leaves(PairlineError) if vars(cls).get("kind") == kind), PairlineError)


# As a CPU's allocator, CUDA and NCCL ("Cuda failure 2 'out of memory'"), cuBLAS, and cuDNN 8 and 9 say it.
MEMORY_REFUSED = (
    "can't allocate memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "allocation_failed",
    "failed to cuda calloc",
    "failed to cuda malloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was refused: by torch's allocator (a type of its own on a card, words on a CPU) or by a
    library that allocates beside it (CUDA itself, cuBLAS, cuDNN, NCCL: words alone)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in MEMORY_REFUSED)


# As gloo, NCCL, torch's own exchange of objects and its store say it.
PEER_GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "socket closed",
    "broken pipe",
    "ncclremoteerror",
    "remote process exited",
    "connection was likely closed",
    "failed to recv, got 0 bytes",
)


def is_peer_lost(error: BaseException) -> bool:
    """Return whether an exchange between a step's processes failed because another of them is gone."""
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in PEER_GONE)


# As torch's store and gloo say it of the port at which a step's processes are to meet.
PORT_TAKEN = ("eaddrinuse", "address already in use")


def is_port_taken(error: BaseException) -> bool:
    """Return whether a port that was chosen for the step's processes is somebody else's; the next start takes another."""
    return isinstance(error, RuntimeError | OSError) and any(
        words in str(error).lower() for words in PORT_TAKEN
    )


def is_card_failure(error: BaseException) -> bool:
    """Return whether the card's driver reports an error after which every further call fails, so that nothing can be
    tried.
    """
    failed = type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
    return failed and not is_out_of_memory(error)


def is_failed_compile(error: BaseException) -> bool:
    """Return whether torch's compiler, or one that it calls, could not compile something: no other layout was asked for."""
    return any(cls.__name__ == "TorchDynamoException" for cls in type(error).__mro__)


def from_os_error(error: OSError, doing: str) -> PairlineError:
    """Translate an ``OSError`` met while ``doing`` (a phrase such as "writing shard 3") into the tree."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"No space left on the disk while {doing}{where}. Free some space or move `store.root`."
        )
    if error.errno in (errno.EACCES, errno.EPERM) and (doing.startswith("reading") or _is_unreadable(error)):
        return StoreError(
            f"Not allowed to read while {doing}{where}: {error.strerror}.",
            "Let the user that runs this read it, and enter the folders that it lies in.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"Not allowed to write while {doing}{where}: {error.strerror}. Make it writable or choose "
            "another `store.root`."
        )
    return StoreError(f"The file system failed while {doing}{where}: {error.strerror or error}.")


def _is_unreadable(error: OSError) -> bool:
    """Whether what an error is about cannot be read either: the operating system does not tell what was tried."""
    if not error.filename or isinstance(error.filename, int):
        return False
    try:
        os.stat(error.filename)
    except OSError as refused:
        return isinstance(refused, PermissionError)  # a folder on the way that may not be entered
    return not os.access(error.filename, os.R_OK)
