"""``pairline compare``: a page's tables on a terminal, the whole page as HTML or Markdown."""

from pathlib import Path

from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text as Plain

from dpo_core.errors import ConfigError
from dpo_core.store import write_bytes
from tasks.report.blocks import Block, Page, Table, Text
from tasks.report.compare import compare_page
from tasks.report.find_run import find_run
from tasks.report.html import render_html
from tasks.report.markdown import render_markdown
from tasks.report.run_files import read_run_files

JUSTIFY = {"number": "right"}


def compare_runs(names: list[str], store: Path, html: Path | None, markdown: Path | None, console: Console) -> None:
    """``pairline compare``. Raises ``ConfigError`` for an unknown run or fewer than two."""
    if len(names) < 2:
        raise ConfigError("`pairline compare` needs two runs or more, e.g. `pairline compare last~1 last`.")
    page = compare_page([read_run_files(find_run(name, store)) for name in names])
    show_page(page, console)
    for path, render in ((html, render_html), (markdown, render_markdown)):
        if path is not None:
            write_bytes(path, render(page).encode())
            console.print(f"written: {path}", soft_wrap=True, highlight=False, markup=False)


def show_page(page: Page, console: Console) -> None:
    """Print the summary and every section's text and tables."""
    for block in page.summary:
        _show(block, "", console)
    for section in page.sections:
        for place, block in enumerate(section.blocks):
            _show(block, section.title if place == 0 else "", console)
    console.print(page.footer, highlight=False, markup=False)


def _show(block: Block, title: str, console: Console) -> None:
    if isinstance(block, Table):
        table = TerminalTable(title=title or None, title_justify="left")
        for column in block.columns:
            table.add_column(column.title, justify=JUSTIFY.get(column.kind, "left"), overflow="fold")
        for row in block.rows:
            table.add_row(*(Plain(cell) for cell in row))  # not markup: a path may hold brackets
        console.print(table)
    elif isinstance(block, Text):
        console.print(f"{title}: {block.text}" if title else block.text, highlight=False, markup=False)
