"""A page as one HTML file: no script, no address that a browser would fetch, everything that came from outside escaped. That
of a run that goes on loads itself again."""

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
    Tile,
    Tiles,
)
from tasks.report.html_samples import FILTER_STYLE, render_samples
from tasks.report.style import page_style
from tasks.text.escape import html_text

# The page forbids itself what it does not use, so that even a mistake in escaping could load or run nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render_html(page: Page) -> str:
    """Return the whole file."""
    word, tone = page.badge
    # A reload, which keeps the place that was scrolled to; the one thing here that a browser does by itself.
    refresh = f'<meta http-equiv="refresh" content="{page.refresh_seconds}">' if page.refresh_seconds else ""
    links = " ".join(
        f'<a href="#{html_text(section.anchor)}">{html_text(section.title)}</a>' for section in page.sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html_text(page.title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">{refresh}'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{page_style()}{FILTER_STYLE}</style></head>\n'
        f"<body><main>"
        f'<header><h1>{html_text(page.title)}<span class="badge {tone}">{html_text(word)}</span></h1>'
        f'<p class="subtitle">{html_text(page.subtitle)}</p></header>\n'
        f'<div class="summary">{_blocks(page.summary)}</div>\n<nav aria-label="Sections">{links}</nav>\n'
        f"{''.join(map(_section, page.sections))}"
        f"<footer><p>{html_text(page.footer)}</p></footer></main></body></html>\n"
    )


def _section(section: PageSection) -> str:
    return (
        f'<section id="{html_text(section.anchor)}"><h2>{html_text(section.title)}</h2>'
        f"{_blocks(section.blocks)}</section>\n"
    )


def _blocks(blocks: tuple[Block, ...]) -> str:
    return "".join(map(_block, blocks))


def _block(block: Block) -> str:
    match block:
        case Text(text, tone):
            return f'<p class="{tone}">{html_text(text)}</p>'
        case Heading(text):
            return f"<h3>{html_text(text)}</h3>"
        case Table():
            return _table(block)
        case Charts(charts):
            figures = "".join(
                f'<figure class="{"wide" if chart.is_wide else ""}">{chart.svg}</figure>' for chart in charts
            )
            return f'<div class="charts">{figures}</div>'
        case Code(text):
            return f"<pre>{html_text(text)}</pre>"
        case Tiles(tiles):
            return f'<div class="tiles">{"".join(map(_tile, tiles))}</div>'
        case Samples():
            return render_samples(block)
        case Marked(title, parts):
            marked = "".join(f'<span class="{kind}">{html_text(text)}</span>' for kind, text in parts)
            return f'<div class="marked"><span class="who">{html_text(title)}</span>{marked}</div>'
        case Notice(title, text, tone):
            return (
                f'<div class="notice {tone}"><strong>{html_text(title)}</strong><p>{_lines(text)}</p></div>'
            )
        case Details(title, blocks):
            return f"<details><summary>{html_text(title)}</summary>{_blocks(blocks)}</details>"


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col" class="{column.kind}">{html_text(column.title)}</th>' for column in table.columns
    )
    tones = table.tones or ("",) * len(table.rows)
    body = "".join(_row(table, row, tone) for row, tone in zip(table.rows, tones, strict=True))
    caption = f"<caption>{html_text(table.caption)}</caption>" if table.caption else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(table: Table, row: tuple[str, ...], tone: str) -> str:
    toned = table.toned_column % len(row)
    cells = (
        f'<td class="{column.kind} {tone if place == toned else ""}">{_lines(cell)}</td>'
        for place, (column, cell) in enumerate(zip(table.columns, row, strict=True))
    )
    return f"<tr>{''.join(cells)}</tr>"


def _tile(tile: Tile) -> str:
    was = f'<span class="was">{html_text(tile.before)} → </span>' if tile.before else ""
    change = f'<div class="change {tile.tone}">{html_text(tile.change)}</div>' if tile.change else ""
    return (
        f'<div class="tile"><div class="label">{html_text(tile.label)}</div>'
        f'<div class="value">{was}{html_text(tile.after)}</div>{change}</div>'
    )


def _lines(text: str) -> str:
    return html_text(text).replace("\n", "<br>")
