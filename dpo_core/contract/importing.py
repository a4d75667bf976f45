"""Imports of large libraries, without collections of cyclic garbage while they last."""

import contextlib
import functools
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Put off collections in this ``with`` block, which imports, early in a process, what it needs anyway.

    CPython looks for cyclic garbage whenever some hundred objects more are there than before. Of the half million that
    torch, transformers or Prefect make when they are imported nearly all stay, and looking through them again and again is a
    third of their import. They are also left out of every later collection, that at the process's end among them
    (``gc.freeze``).

    What is there when the first such block of a process ends is never looked at again; later blocks, which may come upon
    models that are garbage already, only put collections off.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        _freeze_once()
        if collects:
            gc.enable()


@functools.cache
def _freeze_once() -> None:
    gc.freeze()
