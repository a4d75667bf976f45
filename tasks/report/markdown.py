"""A page as Markdown for Prefect's UI, with its pictures inside: that UI cannot reach the store's files."""

from tasks.report.blocks import (
    Block,
    Charts,
    Code,
    Details,
    Heading,
    Notice,
    Page,
    Samples,
    Section,
    Table,
    Text,
    Tiles,
)
from tasks.report.svg import sheet, standalone

LONGEST_CELL = 700
# What Markdown or HTML would act on: a prompt must not become a link, a picture, or a script. Prefect's first UI shows
# numeric entities as they are written; backslashes and these three names both of its UIs understand.
ESCAPES = {**{ord(letter): f"\\{letter}" for letter in "\\|`*_[]!#~$"},
           ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}
SIGNS = {True: "✓ ", False: "✗ ", None: ""}


def render_markdown(page: Page) -> str:
    """The whole page."""
    parts = [f"# {plain(page.title)} · {plain(page.badge[0])}", plain(page.subtitle), *map(_block, page.summary)]
    parts += [part for section in page.sections for part in _section(section)]
    return "\n\n".join([*parts, plain(page.footer)]) + "\n"


def render_section(section: Section) -> str:
    """One section without its title."""
    return "\n\n".join(_section(section)[1:]) + "\n"


def _section(section: Section) -> list[str]:
    return [f"## {plain(section.title)}", *map(_block, section.blocks)]


def render_table(table: Table) -> str:
    """A GitHub table; cells are cut, and cannot break out of it."""
    return _table([column.title for column in table.columns], table.rows)


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return plain(text)
        case Heading(text):
            return f"### {plain(text)}"
        case Table():
            return render_table(block) + (f"\n\n{plain(block.caption)}" if block.caption else "")
        case Charts(charts):
            narrow = tuple(chart for chart in charts if not chart.is_wide)
            pictures = [*([sheet(narrow)] if narrow else []), *(chart for chart in charts if chart.is_wide)]
            return "\n\n".join(f"![{plain(chart.alt)}]({standalone(chart)})" for chart in pictures)
        case Code(text):
            return fenced(text)
        case Tiles(tiles):
            return _table(["", "before", "after", "change"],
                          tuple((tile.label, tile.before, tile.after, tile.change) for tile in tiles))
        case Samples(samples):
            return _table(["prompt", "before", "after"], tuple(
                (sample.prompt, SIGNS[sample.before_passes] + sample.before, SIGNS[sample.after_passes] + sample.after)
                for sample in samples))
        case Notice(title, text):
            return f"**{plain(title)}**\n\n{plain(text)}"
        case Details(title, blocks):
            return "\n\n".join([f"### {plain(title)}", *map(_block, blocks)])


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return text.translate(ESCAPES).replace("\n", "<br>")


def fenced(text: str) -> str:
    """A code block; a fence longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def _table(header: list[str], rows: tuple[tuple[str, ...], ...]) -> str:
    lines = [[plain(title) for title in header], ["---"] * len(header), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return plain(text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + " ...")
