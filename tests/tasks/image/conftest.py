"""A checkout of the test's own."""

from pathlib import Path

import pytest

from tests.tasks.image.checkout import make_checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small git checkout, clean."""
    return make_checkout(tmp_path / "checkout")
