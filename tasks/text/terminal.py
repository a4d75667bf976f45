"""What reaches a person's terminal: every line and table of the command line is printed here, and nowhere else.

Names, paths, errors and answers of models may hold escape sequences, and Rich acts on brackets and ``:names:`` besides: here
they are text.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console, JustifyMethod, OverflowMethod
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
    title_justify: JustifyMethod = "center",
    numbers: Sequence[int] = (),
    overflow: OverflowMethod = "ellipsis",
) -> None:
    """Print a table. ``numbers``: places of the columns that are aligned to the right."""
    table = Table(
        title=Text(visible(title), style="table.title") if title else None, title_justify=title_justify
    )
    for place, name in enumerate(header):
        table.add_column(
            Text(visible(name)), justify="right" if place in numbers else "left", overflow=overflow
        )
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)


def show_styled(console: Console, parts: Iterable[tuple[str, str]]) -> None:
    """Print texts one behind the other, each in its Rich style."""
    text = Text()
    for part, style in parts:
        text.append(visible(part), style=style)
    console.print(text, soft_wrap=True)


def show_markdown(console: Console, markdown: str) -> None:
    """Print Markdown whose parts of others are escaped already (``tasks/text/escape.py``)."""
    console.print(Markdown(visible(markdown)))
