"""What reaches a person's terminal: every line and table of the command line is printed here, and nowhere else.

Names, paths, errors and answers of models may hold escape sequences, and Rich acts on brackets and ``:names:`` besides: here
they are text.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from dpo_core.contract.visible import visible


def say(text: str, file: TextIO | None = None) -> None:
    """Print ``text`` to standard output, or to ``file``."""
    print(visible(text), file=file or sys.stdout, flush=True)


def tell(console: Console, text: str, is_cut: bool = False) -> None:
    """Print ``text`` beside what Rich draws. ``is_cut``: into lines of the console's width."""
    console.print(Text(visible(text)), soft_wrap=not is_cut)


def show_table(
    console: Console,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str = "",
    numbers: Sequence[int] = (),
    is_of_page: bool = False,
) -> None:
    """Print a table. ``numbers``: places of the columns that are aligned to the right. ``is_of_page``: in the midst of
    a page, with its title on the left, and what is too long for a cell goes on below in place of being cut."""
    table = Table(
        title=Text(visible(title), style="table.title") if title else None,
        title_justify="left" if is_of_page else "center",
    )
    for place, name in enumerate(header):
        table.add_column(
            Text(visible(name)),
            justify="right" if place in numbers else "left",
            overflow="fold" if is_of_page else "ellipsis",
        )
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)


def show_styled(console: Console, parts: Iterable[tuple[str, str]]) -> None:
    """Print texts one behind the other, each in its Rich style."""
    console.print(styled(parts), soft_wrap=True)


def draw(console: Console, what: RenderableType) -> None:
    """Print what the functions below made."""
    console.print(what)


def styled(parts: Iterable[tuple[str, str]], is_cut: bool = False) -> Text:
    """Return texts one behind the other, each in its Rich style, to be drawn. ``is_cut``: on lines that are cut off at
    the width that they get; others go on below."""
    text = Text(no_wrap=is_cut, overflow="ellipsis" if is_cut else "fold")
    for part, style in parts:
        text.append(visible(part), style=style)
    return text


def beside(blocks: Sequence[RenderableType], num_columns: int) -> Table:
    """Return what is drawn in columns of one width, row by row; two characters between them."""
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for _ in range(num_columns):
        grid.add_column(ratio=1)
    for first in range(0, len(blocks), num_columns):
        grid.add_row(*blocks[first : first + num_columns])
    return grid


def show_markdown(console: Console, markdown: str) -> None:
    """Print Markdown whose parts of others are escaped already (``tasks/text/escape.py``)."""
    console.print(Markdown(visible(markdown)))
