"""Fixtures of the engine's tests."""

from collections.abc import Iterator

import pytest
import torch

from tests.tiny_stage import TinyStage


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Bits of a sum depend on the number of threads; child processes of the tests have one, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> TinyStage:
    """34 training pairs and 6 held-out ones; read-only: a test writes below its own ``tmp_path``."""
    return TinyStage.make(tmp_path_factory.mktemp("stage"))
