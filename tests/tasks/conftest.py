"""Fixtures of the tasks' tests: a tiny checkpoint and a hub on loopback."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub_server import Hub, serve
from tests.prefect_harness import prefect_server
from tests.tiny_models import make_model

__all__ = ["prefect_server"]  # a fixture of several folders


@pytest.fixture(scope="session")
def made_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint; read-only."""
    return make_model(tmp_path_factory.mktemp("sft") / "model")


@pytest.fixture
def checkpoint(made_checkpoint: Path, tmp_path: Path) -> Path:
    """A tiny checkpoint of the test's own."""
    return Path(shutil.copytree(made_checkpoint, tmp_path / "sft"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on loopback, the default one for this test; no token of the machine's owner is in sight."""
    with serve() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            running.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # read from the environment at import only
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running
