"""A sweep as a team starts it: the deployment's form, a server and a worker."""

import json
from pathlib import Path
from uuid import UUID

import pytest

from tasks.sweep.outcomes import SweepOutcome
from tests.flows.conftest import launches
from tests.server.conftest import Installation
from tests.tiny_stage import tiny_values

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def swept(
    installation: Installation, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[UUID, Path]:
    """Two members, side by side as there are two slots. -> the run, its store"""
    store = tmp_path_factory.mktemp("swept") / "store"
    config = tiny_values(inputs, store, train={"max_steps": 2}) | {
        "name": "grid",
        "sweep": {"beta": [1.0, 5.0]},
    }
    run = installation.start("dpo-sweep/manual", {"config": config})
    done = installation.wait_for_end(run)
    assert done.state.is_completed(), done.state.message
    return run, store


def test_what_members_share_is_made_once_and_one_of_them_is_published(swept):
    _, store = swept
    counts = launches(store)
    assert {step: counts[step] for step in ("mix", "reference", "train", "evaluate")} == {
        "mix": 1,
        "reference": 1,
        "train": 2,
        "evaluate": 2,
    }
    (published,) = (store / "published").rglob("model.safetensors")
    (handoff,) = store.glob("handoff/*/handoff.json")
    assert str(published.parent) in handoff.read_text()


def test_table_and_picture_are_on_its_page(installation: Installation, swept):
    run, store = swept
    (file,) = store.glob("runs/*/sweep.json")
    outcome = SweepOutcome.model_validate_json(file.read_bytes())
    with installation.client() as client:
        found = client.request(
            "POST", "/artifacts/filter", json={"artifacts": {"flow_run_id": {"any_": [str(run)]}}}
        ).json()
    artifacts = {artifact["key"]: artifact for artifact in found}
    rows = json.loads(artifacts["grid-sweep"]["data"])
    assert [row["beta"] for row in rows] == [1.0, 5.0]
    assert [row["outcome"] == "winner" for row in rows] == [
        member.number == outcome.winner for member in outcome.members
    ]
    assert "data:image/png;base64," in artifacts["grid-sweep-picture"]["data"]
