"""A run that waits for a person, as the person sees it: started by its form in a browser, answered on its page."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import pytest

from tasks.gate.approval import Approval
from tasks.handoff.schema import read_handoff
from tests.server.browser import Page, browser
from tests.server.conftest import Installation, log_in, wait_until, without_training
from tests.tiny_stage import tiny_values

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def page(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        log_in(installation, tab)
        yield tab


def submitted(installation: Installation, page: Page, config: dict) -> UUID:
    """The run that the form of dpo-stage/manual starts, filled in as a link does it (the UI's own for "run again")."""
    known = {run.id for run in installation.runs_of("dpo-stage/manual")}
    with installation.client() as client:
        deployment = client.read_deployment_by_name("dpo-stage/manual").id
    page.open(
        f"{installation.settings.ui_url}/deployments/deployment/{deployment}/run"
        f"?parameters={quote(json.dumps({'config': config}))}"
    )
    page.wait_for(config["store"]["root"])

    def made() -> set[UUID]:
        return {run.id for run in installation.runs_of("dpo-stage/manual")} - known

    for _ in range(4):  # a busy server may refuse with "Oops", and a person presses again
        page.click("Submit")
        with contextlib.suppress(AssertionError):
            wait_until(lambda: made() or "oops" in page.text().lower(), "a run of the form", seconds=240)
        with contextlib.suppress(AssertionError):  # the page may have been refused something else
            wait_until(made, "a run of the form all the same", seconds=30)
        if runs := made():
            (run,) = runs
            return run
    raise AssertionError(f"Submit makes no run:\n{page.text()[-2000:]}")


@pytest.mark.parametrize(
    ("wait", "decision", "end"),
    [("pause", "reject", "ApprovalRejected"), ("suspend", "approve", "Completed")],
)
def test_a_person_answers_on_the_runs_page(
    installation: Installation, page: Page, inputs: Path, prepared: Path, wait: str, decision: str, end: str
):
    store = without_training(prepared)
    config = tiny_values(inputs, store, train={"max_steps": 1}, gate={"approval": "person", "wait": wait})
    run = submitted(installation, page, config)
    page.leave()
    waiting = {"pause": "Paused", "suspend": "Suspended"}[wait]
    wait_until(
        lambda: installation.run(run).state.name == waiting, waiting, lambda: installation.describe(run)
    )
    page.open(f"{installation.settings.ui_url}/runs/flow-run/{run}")
    page.click_until("Resume", "Release tiny?", "rewards/accuracies", "Why; it goes into the record.")
    page.fill("[role=dialog] select", decision)
    page.fill("[role=dialog] textarea", "Ada")
    page.fill("[role=dialog] textarea", 'It says "sea".', number=1)
    page.submit("[role=dialog]")
    wait_until(lambda: installation.run(run).state.is_final(), "its end", lambda: installation.describe(run))
    assert installation.run(run).state.name == end, installation.run(run).state.message
    (file,) = store.glob("runs/*/approval.json")
    approval = Approval.model_validate_json(file.read_bytes())
    assert (approval.decision, approval.name, approval.reason, approval.asked_in) == (
        decision,
        "Ada",
        'It says "sea".',
        "prefect",
    )
    kept = [read_handoff(path).release.approval for path in store.glob("handoff/*/handoff.json")]
    assert [one.name for one in kept] == (["Ada"] if decision == "approve" else [])
