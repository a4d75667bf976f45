"""A page as Markdown for Prefect's UI, with its pictures inside: that UI cannot reach the store's files."""

from tasks.report.blocks import (
    Block,
    Charts,
    Code,
    Details,
    Heading,
    Marked,
    Notice,
    Page,
    PageSection,
    Samples,
    Table,
    Text,
    Tiles,
)
from tasks.report.svg import sheet, standalone
from tasks.text.escape import markdown_block, markdown_rows, markdown_text
from tasks.text.marks import marked

LONGEST_CELL = 700
SIGNS = {True: "✓ ", False: "✗ ", None: ""}


def render_markdown(page: Page) -> str:
    """Return the whole page."""
    parts = [
        f"# {markdown_text(page.title)} · {markdown_text(page.badge[0])}",
        markdown_text(page.subtitle),
        *map(_block, page.summary),
    ]
    parts += [part for section in page.sections for part in _section(section)]
    return "\n\n".join([*parts, markdown_text(page.footer)]) + "\n"


def render_section(section: PageSection) -> str:
    """Return one section without its title."""
    return "\n\n".join(_section(section)[1:]) + "\n"


def _section(section: PageSection) -> list[str]:
    return [f"## {markdown_text(section.title)}", *map(_block, section.blocks)]


def render_table(table: Table) -> str:
    """Return a GitHub table; cells are cut, and cannot break out of it."""
    return _table([column.title for column in table.columns], table.rows)


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return markdown_text(text)
        case Heading(text):
            return f"### {markdown_text(text)}"
        case Table():
            return render_table(block) + (f"\n\n{markdown_text(block.caption)}" if block.caption else "")
        case Charts(charts):
            narrow = tuple(chart for chart in charts if not chart.is_wide)
            pictures = [*([sheet(narrow)] if narrow else []), *(chart for chart in charts if chart.is_wide)]
            return "\n\n".join(f"![{markdown_text(chart.alt)}]({standalone(chart)})" for chart in pictures)
        case Code(text):
            return markdown_block(text)
        case Tiles(tiles):
            return _table(
                ["", "before", "after", "change"],
                tuple((tile.label, tile.before, tile.after, tile.change) for tile in tiles),
            )
        case Samples(samples):
            return _table(
                ["prompt", "before", "after"],
                tuple(
                    (
                        sample.prompt,
                        SIGNS[sample.before_passes] + sample.before,
                        SIGNS[sample.after_passes] + sample.after,
                    )
                    for sample in samples
                    if sample.is_telling
                ),
            )
        case Marked(title, parts):
            text = "".join(marked(kind, part) for kind, part in parts)
            return f"**{markdown_text(title)}**\n\n{markdown_block(text)}"
        case Notice(title, text):
            return f"**{markdown_text(title)}**\n\n{markdown_text(text)}"
        case Details(title, blocks):
            return "\n\n".join([f"### {markdown_text(title)}", *map(_block, blocks)])


def _table(header: list[str], rows: tuple[tuple[str, ...], ...]) -> str:
    return markdown_rows(
        [markdown_text(title) for title in header], ([_cell(cell) for cell in row] for row in rows)
    )


def _cell(text: str) -> str:
    return markdown_text(text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + " ...")
