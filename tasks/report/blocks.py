"""What a page is made of, apart from how it is written: the same blocks become HTML, Markdown, or a terminal's tables.

All strings are plain text of any origin (prompts, paths, log lines); the writers escape them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.report.svg import Chart

Tone = Literal["", "good", "bad", "warn", "muted"]
ColumnKind = Literal[
    "text", "words", "number", "code"
]  # words: long text; code: hashes, paths, names of settings


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    kind: ColumnKind = "text"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, one cell a column. ``tones``: per row, for its cell in ``toned_column`` (a verdict, a change)."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    tones: tuple[Tone, ...] = ()
    toned_column: int = -1


@dataclass(frozen=True, slots=True)
class Charts:
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Something to copy, or a log."""

    text: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline number, before and after."""

    label: str
    before: str
    after: str
    change: str = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and two answers; ``*_passes`` is the checker's verdict, None where the prompt has no constraints.
    ``is_telling``: one of those that are shown first, and alone where nothing can be chosen."""

    prompt: str
    before: str
    after: str
    before_passes: bool | None = None
    after_passes: bool | None = None
    is_telling: bool = True


@dataclass(frozen=True, slots=True)
class Samples:
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Marked:
    """A text of parts, each told apart by its kind: prompt, trained, untrained."""

    title: str
    parts: tuple[tuple[str, str], ...]  # kind, text


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that must be seen."""

    title: str
    text: str
    tone: Tone = "warn"


@dataclass(frozen=True, slots=True)
class Details:
    """Blocks that are closed at first."""

    title: str
    blocks: "tuple[Block, ...]"


@dataclass(frozen=True, slots=True)
class Heading:
    text: str


Block = Text | Table | Charts | Code | Tiles | Samples | Marked | Notice | Details | Heading


@dataclass(frozen=True, slots=True)
class PageSection:
    title: str
    anchor: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """``badge``: the state in a word. ``summary`` stands in a box on top. ``refresh_seconds``: after which it is looked at
    again, of what goes on; None of what has ended."""

    title: str
    subtitle: str
    badge: tuple[str, Tone]
    summary: tuple[Block, ...]
    sections: tuple[PageSection, ...]
    footer: str = ""
    refresh_seconds: int | None = None


def table_of(
    rows: Sequence[dict[str, Any]], kinds: dict[str, ColumnKind] | None = None, caption: str = ""
) -> Table:
    """Return a table of rows as ``tables.py`` makes them; the first row's keys are the columns."""
    names = list(rows[0]) if rows else []
    return Table(
        tuple(Column(name, (kinds or {}).get(name, "text")) for name in names),
        tuple(tuple(str(row.get(name, "")) for name in names) for row in rows),
        caption,
    )
