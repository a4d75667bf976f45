"""The documentation keeps to the code: links and paths lead somewhere, and what is declared has its line."""

import re
from pathlib import Path
from typing import get_args

import pytest
import typer
import yaml

from dpo_core.contract.back_ends import BACK_ENDS
from dpo_core.contract.drops import MEANING
from dpo_core.contract.job import Result
from dpo_core.contract.job_registry import JOBS
from dpo_core.contract.objectives import OBJECTIVES
from dpo_core.contract.tracking_config import Tracker
from dpo_core.data.formats import FormatName
from dpo_core.data.named_templates import NAMED_TEMPLATES
from flows.settings.overrides import validated
from flows.terminal.cli import app
from tasks.gate.config import GateConfig
from tasks.launch.compute_config import ComputeConfig

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
ROOMS = "flows|tasks|dpo_core|tests|docs|recipes|images|examples|benchmarks|requirements"
PATH = re.compile(rf"`((?:{ROOMS})/[\w./-]*)(?:::(\w+))?")
OPTIONS = ROOT / "tests/dpo_options.txt"
GATE_RULES = [name for name in GateConfig.model_fields if name not in ("approval", "wait", "timeout_seconds")]


def anchors_of(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files_and_headings(page: Path):
    broken = []
    for link in LINK.findall(re.sub(r"(?s)```.*?```|`[^`\n]*`", "", page.read_text())):
        if ":" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text())):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_a_page_names_are_there(page: Path):
    """With the tests that CONTRIBUTING says will fail."""
    named = [
        (path.rstrip("."), test)
        for path, test in PATH.findall(page.read_text())
        if page.name != "CHANGELOG.md"
    ]
    missing = [path for path, _ in named if not (ROOT / path).exists()]
    missing += [
        f"{path}::{test}"
        for path, test in named
        if test and (ROOT / path).is_file() and f"def {test}(" not in (ROOT / path).read_text()
    ]
    assert missing == []


def test_every_page_stands_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    assert [
        page.name
        for page in PAGES
        if page.parent.name == "docs" and page.name != "README.md" and f"]({page.name})" not in index
    ] == []


def test_every_command_stands_on_the_page_of_commands():
    page = (ROOT / "docs/commands.md").read_text()
    commands = typer.main.get_command(app).commands
    assert len(commands) > 10
    assert [name for name in commands if f"pairline {name}" not in page] == []


def test_the_recipe_on_the_first_page_is_one():
    (recipe,) = re.findall(r"(?s)```yaml\n(.*?)```", (ROOT / "README.md").read_text())
    validated(yaml.safe_load(recipe), "README.md")


def test_the_first_page_counts_the_objectives():
    page = (ROOT / "README.md").read_text()
    assert f"one of {len(OBJECTIVES)} objectives" in page
    assert f"| objectives | {len(OBJECTIVES)} and weighted sums" in page


def test_every_step_has_a_module_and_a_result():
    assert set(JOBS) == {path.stem for path in (ROOT / "dpo_core/steps").glob("*.py")} - {"__init__"}
    assert all(issubclass(job.result_class(), Result) for job in JOBS.values())


@pytest.mark.parametrize(
    ("names", "page"),
    [
        pytest.param([name for name in get_args(FormatName) if name != "unrecognised"], "data", id="formats"),
        pytest.param(list(NAMED_TEMPLATES), "data", id="templates"),
        pytest.param(list(MEANING), "data", id="drop reasons"),
        pytest.param(list(BACK_ENDS), "back-ends", id="back ends"),
        pytest.param(GATE_RULES, "gates", id="gate rules"),
        pytest.param(list(get_args(Tracker)), "report", id="trackers"),
        pytest.param(list(JOBS), "contract", id="steps"),
        pytest.param(
            list(get_args(ComputeConfig.model_fields["launcher"].annotation)), "containers", id="launchers"
        ),
    ],
)
def test_what_is_declared_has_a_line_in_the_docs(names: list[str], page: str):
    text = (ROOT / f"docs/{page}.md").read_text()
    assert names
    assert [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)] == []


def test_the_seed_workflows_trainer_is_compared_option_by_option():
    """Each of its options stands in the left column of one row, and nothing there that is no option of it."""
    options = {line for line in OPTIONS.read_text().splitlines() if not line.startswith("#")}
    assert len(options) > 100
    section = (ROOT / "docs/olmo-core.md").read_text().partition("| there | here |")[2]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(options)
