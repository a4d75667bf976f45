"""``pairline compare``: a page's tables on a terminal, the whole page as HTML or Markdown."""

from pathlib import Path

from rich.console import Console

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.store import write_bytes
from tasks.report.blocks import Block, Page, Table, Text
from tasks.report.compare import compare_page
from tasks.report.html import render_html
from tasks.report.markdown import render_markdown
from tasks.run.files import read_run_files
from tasks.run.find import find_run
from tasks.text.terminal import show_table, tell


def compare_runs(
    names: list[str], store: Path, html: Path | None, markdown: Path | None, console: Console
) -> None:
    """Run ``pairline compare``. Raises ``ConfigError`` for an unknown run or fewer than two."""
    if len(names) < 2:
        raise ConfigError("`pairline compare` needs two runs or more, e.g. `pairline compare last~1 last`.")
    page = compare_page([read_run_files(find_run(name, store)) for name in names])
    show_page(page, console)
    for path, render in ((html, render_html), (markdown, render_markdown)):
        if path is not None:
            write_bytes(path, render(page).encode())
            tell(console, f"written: {path}")


def show_page(page: Page, console: Console) -> None:
    """Print the summary and every section's text and tables."""
    for block in page.summary:
        _show(block, "", console)
    for section in page.sections:
        for place, block in enumerate(section.blocks):
            _show(block, section.title if place == 0 else "", console)
    tell(console, page.footer, is_cut=True)


def _show(block: Block, title: str, console: Console) -> None:
    if isinstance(block, Table):
        numbers = [place for place, column in enumerate(block.columns) if column.kind == "number"]
        show_table(
            console, [column.title for column in block.columns], block.rows, title, numbers, is_of_page=True
        )
    elif isinstance(block, Text):
        tell(console, f"{title}: {block.text}" if title else block.text, is_cut=True)
