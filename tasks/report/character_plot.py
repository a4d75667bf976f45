"""Curves in characters, for terminals: a dot of braille is the eighth of a character. Pure."""

from collections.abc import Sequence

from tasks.report.svg import Point, short

# Of the dots of a character, two beside each other and four below: the bit of U+2800 that sets it, column by column.
BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
EMPTY = 0x2800
COLUMNS, ROWS = 2, 4
LARGEST = 1e300  # differences of larger ones are no numbers any more
MARK = "o"  # a point of the second line; also told apart without colours
SHARE_OF_ROOM = 0.04  # of the span, free above and below a line
Parts = list[tuple[str, str]]  # texts with their styles


def plotted(
    line: Sequence[Point], points: Sequence[Point], size: tuple[int, int], styles: tuple[str, str]
) -> list[Parts]:
    """Return ``size`` (width, height) characters: ``line`` as connected dots, ``points`` as marks over it; the largest
    and the smallest value on the left. Values that are no numbers are left out; nothing to draw gives empty rows.
    """
    width, height = size
    line, points = _finite(line), _finite(points)
    values = [y for _, y in (*line, *points)]
    if not values:
        return [[(" " * width, "")] for _ in range(height)]
    low, high = _with_room(min(values), max(values))
    names = [short(max(values)), short(min(values))]
    margin = min(max(map(len, names)), width - 2) + 1
    across = width - margin
    first, last = min(x for x, _ in (*line, *points)), max(x for x, _ in (*line, *points))

    def place(point: Point, columns: int, rows: int) -> tuple[int, int]:
        x, y = point
        right = (x - first) / (last - first) if last > first else 0.0
        return round(right * (columns - 1)), round((high - y) / (high - low) * (rows - 1))

    cells = [[EMPTY] * across for _ in range(height)]
    dots = [place(point, across * COLUMNS, height * ROWS) for point in line]
    for start, end in zip(dots, dots[1:] or dots, strict=False):
        for x, y in _between(start, end):
            cells[y // ROWS][x // COLUMNS] |= BITS[x % COLUMNS][y % ROWS]
    marks = {place(point, across, height) for point in points}
    labels = [names[0], *[""] * (height - 2), names[1]] if height > 1 else [names[0]]
    return [
        [(f"{labels[row][: margin - 1]:>{margin - 1}} ", "dim"), *_runs(cells[row], row, marks, styles)]
        for row in range(height)
    ]


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if abs(x) < LARGEST and abs(y) < LARGEST]


def _with_room(low: float, high: float) -> tuple[float, float]:
    """Bounds in which the values lie; one value lies in the middle."""
    room = (high - low) * SHARE_OF_ROOM or abs(high) * SHARE_OF_ROOM or 1.0
    return low - room, high + room


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a straight line."""
    (x, y), (to_x, to_y) = start, end
    count = max(abs(to_x - x), abs(to_y - y), 1)
    return [
        (round(x + (to_x - x) * part / count), round(y + (to_y - y) * part / count))
        for part in range(count + 1)
    ]


def _runs(cells: Sequence[int], row: int, marks: set[tuple[int, int]], styles: tuple[str, str]) -> Parts:
    """A row's characters, neighbours of one style together."""
    parts: Parts = []
    for column, cell in enumerate(cells):
        is_mark = (column, row) in marks
        # An empty one as a space: some fonts draw the braille pattern of no dots.
        letter = MARK if is_mark else chr(cell) if cell != EMPTY else " "
        style = styles[is_mark]
        if parts and parts[-1][1] == style:
            parts[-1] = (parts[-1][0] + letter, style)
        else:
            parts.append((letter, style))
    return parts
