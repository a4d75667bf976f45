"""`pairline emit-sft` without a recipe verifies the checkpoint as the deployment's recipe says."""

import json
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from dpo_core.contract.errors import CheckpointError, ConfigError
from dpo_core.contract.store import sha256_file
from flows.terminal.server_commands import emit_sft
from tests.tiny_models import make_model

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


@flow(name="dpo-stage")
def stage() -> None:
    """Never run: it stands for the stage on this server."""


@pytest.fixture
def own_code(tmp_path: Path) -> Path:
    """A checkpoint with a Python file that its config names."""
    folder = make_model(tmp_path / "sft")
    (folder / "modeling_x.py").write_text("class X: ...\n")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}})
    )
    return folder


def deploy(recipe: Path) -> UUID:
    with get_client(sync_client=True) as client:
        return client.create_deployment(
            client.create_flow(stage), "after-sft", parameters={"recipe": str(recipe)}
        )


def test_the_checkpoint_section_of_the_deployments_recipe_counts(own_code, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PREFECT_API_URL", "is configured")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("checkpoint: {source: another, allow_remote_code: [modeling_x.py]}")
    with pytest.raises(CheckpointError, match=r"modeling_x\.py"):
        emit_sft(str(own_code), store=tmp_path)
    made = deploy(recipe)
    try:
        with pytest.raises(ConfigError, match="Say which bytes you have read"):
            emit_sft(str(own_code), store=tmp_path)
        pinned = f"modeling_x.py@sha256:{sha256_file(own_code / 'modeling_x.py')}"
        recipe.write_text(f"checkpoint: {{source: another, allow_remote_code: ['{pinned}']}}")
        emit_sft(str(own_code), store=tmp_path)
    finally:
        with get_client(sync_client=True) as client:
            client.delete_deployment(made)
    assert capsys.readouterr().out.startswith("announced: sft.checkpoint.ready")
