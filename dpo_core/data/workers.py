"""Forked processes for what templates and tokenizers of others compute, so that a row that cannot be ended costs the row.

``render_limits`` ends what the interpreter computes. What a library computes in C or Rust looks at no timer, and for want of
memory it ends the process; so that happens to a process that can be spared. Forked, as it shares the loaded tokenizer and is
there in 20 ms.
"""

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Generic, TypeVar

from dpo_core.contract.errors import StepCrashed

AHEAD = 4  # items per worker; bounds what waits in memory
# Beyond what a worker starts with. The longest text that a template may write took a byte-level BPE about 3.3 GB.
MAX_MEMORY_BYTES = 4 << 30
EXIT_OVER = 75
# Timer; Rust without memory; a stack that overflows in C
SIGNALS_OF_LIMITS = (signal.SIGVTALRM, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
Item = TypeVar("Item")
Result = TypeVar("Result")

_function: Callable[[Any], Any] | None = None  # of a worker process


def can_fork() -> bool:
    """Return whether this system has worker processes."""
    return "fork" in multiprocessing.get_all_start_methods()


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for its next item for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _limit_memory() -> None:
    """What the process may allocate. Not its address space: files that are mapped to be read count nothing."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        ceiling = pages * resource.getpagesize() + MAX_MEMORY_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or ceiling < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))


def _start_worker(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    _function = function
    gc.freeze()  # what was there is shared with the parent as long as no collection writes into it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an end by a limit is no reason to write gigabytes
    _limit_memory()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


@contextlib.contextmanager
def ended_if_stuck(seconds: float) -> Iterator[None]:
    """End this process if the block computes longer, even inside a library that looks at no timer: a tokenizer's regular
    expressions can take for ever, too. Another signal than that of ``render_limits``, and not to be caught."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        if in_main_thread:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _work(item: Any, seconds: float) -> Any:
    assert _function is not None
    with ended_if_stuck(seconds):
        try:
            return _function(item)
        except MemoryError:
            os._exit(EXIT_OVER)
        except BaseException as error:
            if (
                type(error).__name__ == "PanicException"
            ):  # Rust gave up, a length beyond all memory for instance
                os._exit(EXIT_OVER)
            raise


class Workers(Generic[Item, Result]):
    """Processes that compute ``function(item)``. It is not pickled, so it may be anything; results are."""

    def __init__(self, function: Callable[[Item], Result], num_workers: int) -> None:
        self.num_workers = num_workers
        self._processes: list[multiprocessing.Process] = []
        self._executor = ProcessPoolExecutor(
            num_workers,
            mp_context=multiprocessing.get_context("fork"),
            initializer=_start_worker,
            initargs=(function, os.getpid()),
        )

    def results(self, items: Iterator[Item], left: deque[Item], seconds: float) -> Iterator[Result]:
        """Yield the results, in order; ``seconds`` of processor time for each. ``left``: items that were taken and are
        not done.

        Raises ``BrokenProcessPool``.
        """
        with self._executor as executor:
            waiting: deque[Future[Result]] = deque()

            def done() -> Result:
                result = waiting.popleft().result()
                left.popleft()
                return result

            try:
                for item in items:
                    left.append(item)
                    waiting.append(executor.submit(_work, item, seconds))
                    if len(waiting) >= self.num_workers * AHEAD:
                        yield done()
                while waiting:
                    yield done()
            finally:
                self._processes = list((executor._processes or {}).values())

    def begin(self, items: Iterable[Item], seconds: float) -> list[Future[Result]]:
        """Begin with all ``items`` at once and return their results to come, for whoever calls ``end``, too."""
        futures = [self._executor.submit(_work, item, seconds) for item in items]
        self._processes = list((self._executor._processes or {}).values())
        return futures

    def end(self) -> None:
        """End the processes, whatever they are at."""
        for process in self._processes:
            process.kill()
        self._executor.shutdown(cancel_futures=True)

    def went_over(self) -> bool:
        """Return whether one of them, once all are over, was ended by a limit."""
        ends = {EXIT_OVER, *(-number for number in SIGNALS_OF_LIMITS)}
        return any(process.exitcode in ends for process in self._processes)

    def crashed(self) -> StepCrashed:
        """Return the error for the end of a worker that no limit explains."""
        ends = sorted(
            {
                code
                for process in self._processes
                if (code := process.exitcode) not in (None, 0, -signal.SIGTERM)
            }
        )
        return StepCrashed(
            f"One of {self.num_workers} tokenising processes died (exit codes {ends}; -9 is most often "
            "want of memory). Lower `num_workers` and start again."
        )


def in_workers(
    function: Callable[[Item], Result],
    items: Iterator[Item],
    num_workers: int,
    seconds: float,
    over: Exception,
) -> Iterator[Result]:
    """Yield ``function`` of each item, in order. Raises ``over`` if an item goes over a limit, ``StepCrashed``."""
    if not can_fork():
        yield from map(function, items)
        return
    workers: Workers[Item, Result] = Workers(function, num_workers)
    try:
        yield from workers.results(items, deque(), seconds)
    except BrokenProcessPool as error:
        raise (over if workers.went_over() else workers.crashed()) from error
