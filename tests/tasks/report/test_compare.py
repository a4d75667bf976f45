"""Runs side by side: only what differs, whatever store the runs lie in."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dpo_core.contract.errors import ConfigError, StepCrashed
from flows.terminal.show_page import compare_runs, show_page
from tasks.report.blocks import Page, Table, Text
from tasks.report.compare import SAME, compare_page, flat
from tasks.report.verdict import verdict_of_run
from tasks.run.files import read_run_files
from tasks.run.find import find_run
from tests.tasks.report.made_run import AFTER, make_run
from tests.tasks.report.test_page import Reader


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """Two runs in two stores that differ in beta, batch and outcome."""
    one = make_run(tmp_path / "one", loss={"beta": 5.0})
    other = make_run(
        tmp_path / "other",
        loss={"beta": 2.0},
        train={"global_batch_pairs": 16},
        steps=20,
        after=AFTER | {"rewards/accuracies": 0.7, "checker/pass_rate": 0.9},
    )
    return one, other


def page_of(*folders: Path) -> Page:
    return compare_page([read_run_files(folder) for folder in folders])


def rows_of(page: Page, anchor: str) -> dict[str, tuple[str, ...]]:
    """First cell -> the others, of a section's tables."""
    (section,) = [section for section in page.sections if section.anchor == anchor]
    return {row[0]: row[1:] for block in section.blocks if isinstance(block, Table) for row in block.rows}


def test_settings_that_differ_stand_beside_metrics_that_differ(pair):
    page = page_of(*pair)
    assert rows_of(page, "settings") == {"loss.beta": ("5.0", "2.0"), "train.global_batch_pairs": ("8", "16")}
    evaluation = rows_of(page, "evaluation")
    assert evaluation["reward accuracy"] == ("0.5 → 0.85", "0.5 → 0.7", "A")
    assert evaluation["instructions kept"] == ("0.25 → 0.75", "0.25 → 0.9", "B")
    assert evaluation["loss"][-1] == ""  # not comparable: the betas differ
    assert rows_of(page, "final")["step"] == ("40", "20")
    assert rows_of(page, "speed")["training, pairs/s"] == ("2", SAME)


def test_a_named_set_is_compared_where_it_is_the_same(tmp_path):
    measured = {"held_out/safety/rewards/accuracies": 0.6, "held_out/safety/loss": 0.6}
    one = make_run(tmp_path / "one", after=AFTER | measured)
    other = make_run(tmp_path / "other", after=AFTER | measured | {"held_out/safety/rewards/accuracies": 0.7})
    cells = rows_of(page_of(one, other), "evaluation")["safety: reward accuracy"]
    assert cells == ("- → 0.6", "- → 0.7", "B")
    runs = [read_run_files(folder) for folder in (one, other)]
    other_set = replace(runs[1], sets=runs[1].mixture)  # any other rows
    rows = rows_of(compare_page([runs[0], other_set]), "evaluation")
    assert rows["safety: reward accuracy"][-1] == ""


def test_equal_runs_differ_in_nothing_but_time(tmp_path):
    folders = make_run(tmp_path / "store"), make_run(tmp_path / "store")
    page = page_of(*folders)
    assert rows_of(page, "settings") == rows_of(page, "content") == {}
    assert all(cells[1] == SAME for cells in rows_of(page, "evaluation").values())
    assert "software" not in {section.anchor for section in page.sections}


def test_a_failed_run_can_be_compared(tmp_path, pair):
    page = page_of(pair[0], make_run(tmp_path / "failed", fails=StepCrashed("x")))
    assert rows_of(page, "evaluation")["reward accuracy"] == ("0.5 → 0.85", "-", "")
    assert page.summary[0].rows[1][2] == "failed"


def test_it_opens_with_what_each_run_came_to(tmp_path, pair, capsys):
    """The highest accuracy may be that of a policy that learnt length alone."""
    wrong = make_run(
        tmp_path / "wrong", after=AFTER | {"rewards/accuracies": 1.0, "rewards/length_correlation": 0.8}
    )
    failed = make_run(tmp_path / "failed", fails=StepCrashed("x"))
    page = page_of(pair[0], wrong, failed)
    assert rows_of(page, "evaluation")["reward accuracy"][-1] == "B"
    good, bad = (block for block in page.summary if isinstance(block, Text))
    assert good == Text(f"A: {verdict_of_run(read_run_files(pair[0])).in_words}.", good.tone)
    assert bad.text.startswith("B: ")
    assert "margins that follow length" in bad.text
    show_page(page, Console(width=160))
    assert "margins that follow length" in capsys.readouterr().out


def test_terminal_html_and_markdown_show_the_same(pair, tmp_path, capsys):
    html, markdown = tmp_path / "c.html", tmp_path / "c.md"
    compare_runs([str(folder) for folder in pair], tmp_path / "nowhere", html, markdown, Console(width=160))
    page = Reader(html.read_text())
    for text in (capsys.readouterr().out, page.text, markdown.read_text().replace("\\", "")):
        for fact in ("loss.beta", "0.5 → 0.85", "Time and speed", "best"):
            assert fact in text
    assert "A from" in page.text or any(
        "A from" in value for _, name, value in page.attributes if name == "aria-label"
    )


def test_brackets_in_a_setting_are_no_markup(tmp_path, capsys):
    folders = [
        make_run(tmp_path / name, checkpoint={"source": source})
        for name, source in (("a", "[bold]model[/bold]"), ("b", "other"))
    ]
    show_page(page_of(*folders), Console(width=160))
    assert "[bold]model[/bold]" in capsys.readouterr().out


def test_nested_settings_become_dotted_names():
    assert flat(
        {"data": {"sources": [{"source": "a", "columns": {}}], "seed": 8}, "x": [1, 2], "y": None}
    ) == {
        "data.sources.0.source": "a",
        "data.sources.0.columns": "{}",
        "data.seed": "8",
        "x": "[1, 2]",
        "y": "null",
    }


def test_runs_are_found_by_name_place_and_age(tmp_path):
    old, new = make_run(tmp_path / "store"), make_run(tmp_path / "store")
    store = tmp_path / "store"
    assert find_run("last", store) == new
    assert find_run("last~1", store) == old
    assert find_run(old.name, store) == old
    assert find_run(str(new), tmp_path / "nowhere") == new
    for name in ("last~2", "absent"):
        with pytest.raises(ConfigError, match="There is no run"):
            find_run(name, store)
    shutil.rmtree(store)
    with pytest.raises(ConfigError, match="no store"):
        find_run("last", store)


def test_one_run_is_not_compared(tmp_path):
    with pytest.raises(ConfigError, match="two runs or more"):
        compare_runs(["last"], tmp_path, None, None, Console())
