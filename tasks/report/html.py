"""A page as one HTML file: no script, no address that a browser would fetch, everything that came from outside escaped."""

from html import escape

from tasks.report.blocks import (
    Block,
    Charts,
    Code,
    Details,
    Heading,
    Notice,
    Page,
    Sample,
    Samples,
    Section,
    Table,
    Text,
    Tile,
    Tiles,
)
from tasks.report.style import page_style

# The page forbids itself what it does not use, so that even a mistake in escaping could load or run nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
EMPTY = '<em class="muted">(empty)</em>'
VERDICTS = {True: ("✓ keeps its instruction", "good"), False: ("✗ breaks its instruction", "bad")}


def render_html(page: Page) -> str:
    """The whole file."""
    word, tone = page.badge
    links = " ".join(f'<a href="#{escape(section.anchor)}">{escape(section.title)}</a>' for section in page.sections)
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(page.title)}</title>'
            f'<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{page_style()}</style></head>\n'
            f'<body><main>'
            f'<header><h1>{escape(page.title)}<span class="badge {tone}">{escape(word)}</span></h1>'
            f'<p class="subtitle">{escape(page.subtitle)}</p></header>\n'
            f'<div class="summary">{_blocks(page.summary)}</div>\n<nav aria-label="Sections">{links}</nav>\n'
            f'{"".join(map(_section, page.sections))}'
            f'<footer><p>{escape(page.footer)}</p></footer></main></body></html>\n')


def _section(section: Section) -> str:
    return f'<section id="{escape(section.anchor)}"><h2>{escape(section.title)}</h2>{_blocks(section.blocks)}</section>\n'


def _blocks(blocks: tuple[Block, ...]) -> str:
    return "".join(map(_block, blocks))


def _block(block: Block) -> str:
    match block:
        case Text(text, tone):
            return f'<p class="{tone}">{escape(text)}</p>'
        case Heading(text):
            return f"<h3>{escape(text)}</h3>"
        case Table():
            return _table(block)
        case Charts(charts):
            figures = "".join(f'<figure class="{"wide" if chart.is_wide else ""}">{chart.svg}</figure>' for chart in charts)
            return f'<div class="charts">{figures}</div>'
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Tiles(tiles):
            return f'<div class="tiles">{"".join(map(_tile, tiles))}</div>'
        case Samples(samples):
            return "".join(map(_sample, samples))
        case Notice(title, text, tone):
            return f'<div class="notice {tone}"><strong>{escape(title)}</strong><p>{_lines(text)}</p></div>'
        case Details(title, blocks):
            return f"<details><summary>{escape(title)}</summary>{_blocks(blocks)}</details>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col" class="{column.kind}">{escape(column.title)}</th>' for column in table.columns)
    tones = table.tones or ("",) * len(table.rows)
    body = "".join(_row(table, row, tone) for row, tone in zip(table.rows, tones, strict=True))
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(table: Table, row: tuple[str, ...], tone: str) -> str:
    toned = table.toned_column % len(row)
    cells = (f'<td class="{column.kind} {tone if place == toned else ""}">{_lines(cell)}</td>'
             for place, (column, cell) in enumerate(zip(table.columns, row, strict=True)))
    return f"<tr>{''.join(cells)}</tr>"


def _tile(tile: Tile) -> str:
    was = f'<span class="was">{escape(tile.before)} → </span>' if tile.before else ""
    change = f'<div class="change {tile.tone}">{escape(tile.change)}</div>' if tile.change else ""
    return (f'<div class="tile"><div class="label">{escape(tile.label)}</div>'
            f'<div class="value">{was}{escape(tile.after)}</div>{change}</div>')


def _sample(sample: Sample) -> str:
    return (f'<article class="sample"><div class="prompt"><span class="who">prompt</span>{escape(sample.prompt)}</div>'
            f'<div class="answers">{_answer("before", sample.before, sample.before_passes)}'
            f'{_answer("after", sample.after, sample.after_passes)}</div></article>')


def _answer(who: str, answer: str, passes: bool | None) -> str:
    word, tone = VERDICTS.get(passes, ("", ""))
    verdict = f' · <span class="{tone}">{word}</span>' if word else ""
    return f'<div><span class="who">{who}{verdict}</span>{escape(answer) or EMPTY}</div>'


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")
