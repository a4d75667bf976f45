"""Values of secrets for the steps that name them (``CommandSpec.secrets``), in this context alone: runs in other threads
of the process have their own, and nothing else that the process starts inherits them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_values: ContextVar[dict[str, str]] = ContextVar("values of secrets", default={})  # noqa: B039 (replaced, never changed)


@contextmanager
def secret_value(name: str, value: str) -> Iterator[None]:
    """Hand ``value`` to steps inside the ``with`` block that name the secret."""
    token = _values.set({**_values.get(), name: value})
    try:
        yield
    finally:
        _values.reset(token)


def value_of_secret(name: str) -> str | None:
    """The value given in this context, else the environment's."""
    return _values.get().get(name) or os.environ.get(name)
