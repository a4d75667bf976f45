"""`make demo-chain`: SFT, DPO and GRPO, which know of each other by events alone."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from examples.chain.run import LAST_FLOW
from tests.server.conftest import ROOT, Installation

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


@pytest.fixture
def demo(installation: Installation) -> Iterator[Installation]:
    """The neighbours' deployments go with the test."""
    yield installation
    with installation.client() as client:
        for flow in ("trl-sft", "dpo-stage", LAST_FLOW):
            client.delete_deployment(client.read_deployment_by_name(f"{flow}/chain-demo").id)
        for name in ("dpo-stage of the demo after its SFT checkpoint", "trl-grpo after a DPO checkpoint"):
            if automation := client.find_automation(name):
                client.delete_automation(automation.id)


def test_the_chain_runs_from_sft_to_grpo_under_one_tag(demo: Installation):
    done = subprocess.run(
        [sys.executable, "-m", "examples.chain.run"],
        cwd=ROOT,
        text=True,
        check=False,
        env=demo.environment,
        capture_output=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (sft,), (grpo,) = (demo.runs_of(f"{flow}/chain-demo") for flow in ("trl-sft", LAST_FLOW))
    (tag,) = (tag for tag in sft.tags if tag.startswith("chain:"))
    with demo.client() as client:
        runs = [run for run in client.read_flow_runs(limit=200) if tag in run.tags]
        flows = {client.read_flow(run.flow_id).name: run for run in runs}
        (rewards,) = client.request(
            "POST",
            "/artifacts/filter",
            json={"artifacts": {"key": {"any_": ["grpo-rewards"]}, "flow_run_id": {"any_": [str(grpo.id)]}}},
        ).json()
    assert set(flows) == {"trl-sft", "dpo-stage", LAST_FLOW}
    assert len(runs) == 3
    assert all(run.state.is_completed() for run in runs)
    assert [row["step"] for row in json.loads(rewards["data"])] == [1, 2, 3, 4, 5, 6]
