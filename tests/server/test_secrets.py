"""Where a token does not show: it is planted in a Secret block, used by a real upload, and searched for everywhere."""

import base64
import contextlib
import sqlite3
from pathlib import Path

import pytest
from prefect.blocks.system import Secret

from tests.hub_server import serve
from tests.server.conftest import Installation, without_training
from tests.tiny_stage import tiny_values

pytestmark = pytest.mark.integration
TOKEN, BLOCK = "hf_planted_9f8e7d6c5b4a", "planted-hub-token"
SETTINGS = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def files_with(text: bytes, folder: Path) -> list[Path]:
    """Files below ``folder`` that hold ``text``. A server may be at work there: what vanishes meanwhile holds nothing."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink() and text in path.read_bytes():
                found.append(path)
    return found


def tables_with(text: str, database: Path) -> list[str]:
    """Tables of a server's database that hold ``text`` in any cell."""
    with sqlite3.connect(database, timeout=300) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        tables = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        rows = {table: connection.execute(f'SELECT * FROM "{table}"').fetchall() for table in tables}
    assert sum(len(row) for found in rows.values() for row in found) > 1000
    return [table for table in tables if any(text in repr(row) for row in rows[table])]


def test_a_token_shows_nowhere_after_the_run_that_used_it(
    installation: Installation, inputs: Path, prepared: Path, tmp_path: Path
):
    store = without_training(prepared)
    with installation.client() as client:
        deployment = client.read_deployment_by_name("dpo-stage/manual")
        with installation.of_this_server():
            Secret(value=TOKEN).save(BLOCK)
        with serve() as hub:
            hub.write_tokens = {TOKEN}
            upload = {"repo_id": "org/dpo", "endpoint": hub.endpoint, "token_block": BLOCK}
            run = client.create_flow_run_from_deployment(
                deployment.id,
                job_variables={"env": SETTINGS},
                parameters={"config": tiny_values(inputs, store, train={"max_steps": 1}, upload=upload)},
            )
            done = installation.wait_for_end(run.id)
            assert done.state.is_completed(), done.state.message
            assert hub.commits_made == 1
            hub.write_tokens = {"another"}  # refused from now on: errors must not tell it, either
            upload["repo_id"] = "org/refused"
            run = client.create_flow_run_from_deployment(
                deployment.id,
                job_variables={"env": SETTINGS},
                parameters={"config": tiny_values(inputs, store, train={"max_steps": 1}, upload=upload)},
            )
            refused = installation.wait_for_end(run.id)
            assert refused.state.is_failed()
            assert "401" in refused.state.message
    home = installation.settings.home
    assert not tables_with(TOKEN, home / "serve/prefect/prefect.db")
    assert not files_with(TOKEN.encode(), home)
    assert not files_with(TOKEN.encode(), store)
    assert files_with(b"org/dpo", store)
    # Nor does the server's own password, which every run holds, but in its file.
    for shown in (installation.password, base64.b64encode(installation.password.encode()).decode()):
        assert not tables_with(shown, home / "serve/prefect/prefect.db")
        assert files_with(shown.encode(), home) == [home / "serve/password"] * (
            shown == installation.password
        )
        assert not files_with(shown.encode(), store)
