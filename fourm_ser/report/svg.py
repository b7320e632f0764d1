"""Figures of the report as SVG: drawn by hand, so that they follow the page's light or dark colours by CSS."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

LETTER = 6.4  # width of a letter at font size 11, in pixels, on the wide side
ROW = 30  # pixels: a name, and the bar below it
WIDTH = 330  # of figures that fit a phone


class Chart(NamedTuple):
    """A chart of the report as an SVG element, and the header and rows of the table that says the same."""

    title: str
    image: Markup
    header: list[str]
    rows: list[list[str]]


class Grid(NamedTuple):
    """Cells of a heat map.

    Attributes:
        rows: the names of the rows.
        columns: the names of the columns.
        shade: (rows, columns) shade of each cell, from 0 to 1; NaN for an empty one.
        texts: the lines of text in each cell, by row and column.
        marked: the rows and columns of cells with a frame.
    """

    rows: list[str]
    columns: list[str]
    shade: np.ndarray
    texts: list[list[list[str]]]
    marked: Collection[tuple[int, int]] = ()


def heat_map(grid: Grid, alt: str) -> Markup:
    """A heat map. Long names of rows stand above their row, long names of columns are turned."""
    above = max(len(name) for name in grid.rows) > 14
    left = 6 if above else 12 + LETTER * max(len(name) for name in grid.rows)
    width = max(50, min(84, (WIDTH - left) / len(grid.columns)))
    longest = max(len(name) for name in grid.columns) * LETTER
    turned = longest > width
    top = 10 + (0.6 * longest + 12 if turned else 14)
    height, gap = 36, 20 if above else 0
    parts = []
    for column, name in enumerate(grid.columns):
        x = left + (column + 0.5) * width
        if turned:
            turn = f'transform="rotate(-37 {x:.1f} {top - 6:.1f})"'
            parts.append(_text(x - 4, top - 6, name, attributes=turn))
        else:
            parts.append(_text(x, top - 6, name, "middle"))
    for row, name in enumerate(grid.rows):
        y = top + row * (height + gap) + gap
        parts.append(_text(left, y - 6, name) if above else _text(left - 6, y + height / 2 + 4, name, "end"))
        for column in range(len(grid.columns)):
            x, shade = left + column * width, grid.shade[row, column]
            if math.isnan(shade):
                parts.append(_box(x, y, width, height, 'class="empty"'))
                parts.append(_text(x + width / 2, y + height / 2 + 4, "-", "middle", "faint"))
                continue
            parts.append(_box(x, y, width, height, f'class="heat" fill-opacity="{0.05 + 0.6 * shade:.3f}"'))
            lines = grid.texts[row][column]
            for number, line in enumerate(lines):
                offset = y + height / 2 + 4 + 13 * (number - (len(lines) - 1) / 2)
                bold = "value" if number == 0 else "small"
                parts.append(_text(x + width / 2, offset, line, "middle", bold))
            if (row, column) in grid.marked:
                parts.append(_box(x + 1, y + 1, width - 2, height - 2, 'class="mark"'))
    last = 0.8 * len(grid.columns[-1]) * LETTER if turned else 0
    right = left + len(grid.columns) * width
    return _svg(max(right + 6, right - width / 2 + last), top + len(grid.rows) * (height + gap) + 6, parts, alt)


def interval_plot(groups: Mapping[str, list[tuple[str, float, float, float]]], unit: str, alt: str) -> Markup:
    """Points with intervals about zero: a group of rows an axis, the name above its row.

    Args:
        groups: rows of name, value, low and high (NaN without an interval), by the group's title.
        unit: the unit of the numbers.
        alt: what one sees, in sentences.
    """
    numbers = [abs(x) for rows in groups.values() for row in rows for x in row[1:] if not math.isnan(x)]
    reach = _nice(max(numbers, default=1.0))
    middle, scale = WIDTH / 2, (WIDTH / 2 - 14) / reach
    parts: list[str] = []
    y = 4.0
    for title, rows in groups.items():
        y += 16
        parts.append(_text(4, y, title, kind="value"))
        for name, value, low, high in rows:
            y += 17
            x = middle + value * scale
            parts.append(_text(4, y, name))
            parts.append(_text(WIDTH - 4, y, f"{value:+.2f}", "end"))
            y += 11
            parts.append(f'<line class="grid" x1="{14}" x2="{WIDTH - 14}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<line class="axis" x1="{middle}" x2="{middle}" y1="{y - 6:.1f}" y2="{y + 6:.1f}"/>')
            if not math.isnan(low):
                ends = f'x1="{middle + low * scale:.1f}" x2="{middle + high * scale:.1f}"'
                parts.append(f'<line class="interval" {ends} y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        y += 12
    y += 10
    for tick in (-reach, 0.0, reach):
        parts.append(_text(middle + tick * scale, y, f"{tick:+g}" if tick else "0", "middle", "small"))
    parts.append(_text(middle, y + 15, unit, "middle", "small"))
    return _svg(WIDTH, y + 22, parts, alt)


def bars(rows: Sequence[tuple[str, Mapping[str, float]]], alt: str) -> Markup:
    """Stacked bars from zero, the name above its bar; the parts of a bar are told apart by shade and legend."""
    names = list(dict.fromkeys(name for _, shares in rows for name in shares))
    most = max((sum(shares.values()) for _, shares in rows), default=0.0) or 1.0
    parts, x = [], 4.0
    for number, name in enumerate(names):
        parts.append(_box(x, 6, 10, 10, f'class="bar{number % 3}"'))
        parts.append(_text(x + 14, 15, name))
        x += 26 + LETTER * len(name)
    y = 24.0
    for name, shares in rows:
        parts.append(_text(4, y + 11, name))
        parts.append(_text(WIDTH - 4, y + 11, f"{sum(shares.values()):.1f} s", "end"))
        x = 4.0
        for part, seconds in shares.items():
            width = (WIDTH - 8) * seconds / most
            parts.append(_box(x, y + 15, max(width, 0.5), 9, f'class="bar{names.index(part) % 3}"'))
            x += width
        y += ROW
    return _svg(max(WIDTH, x + 4), y + 6, parts, alt)


def curves(
    lines: Sequence[tuple[str, Sequence[tuple[Sequence[float], Sequence[float]]]]],
    stages: Sequence[tuple[str, float]],
    alt: str,
    limits: tuple[float, float] | None = None,
) -> Markup:
    """Curves over the epochs, stages one after the other.

    Args:
        lines: each line's name, and its curves: the epochs and values of each run. Several runs are drawn thin, with
            their mean.
        stages: each stage's name, and the epoch that it begins with.
        alt: what one sees, in sentences.
        limits: the least and the largest value on the axis; None for those of the data.
    """
    points = [(x, y) for _, several in lines for xs, ys in several for x, y in zip(xs, ys, strict=True)]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    low, high = limits or (min((y for _, y in points), default=0.0), max((y for _, y in points), default=1.0))
    if high - low < 1e-9:
        high = low + 1.0
    last = max((x for x, _ in points), default=1.0)
    left, right, top, bottom = 38.0, WIDTH - 8.0, 24.0, 150.0

    def point(x: float, y: float) -> str:
        across = (x - 1) / max(last - 1, 1.0)
        return f"{left + across * (right - left):.1f},{bottom - (y - low) / (high - low) * (bottom - top):.1f}"

    parts, legend = [], left
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 5, y + 4, f"{low + share * (high - low):.2f}", "end", "small"))
    for name, start in stages:
        x, _, _ = point(start, low).partition(",")
        if len(stages) > 1:
            parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(float(x) + 3, bottom + 14, name, kind="small"))
    parts.append(_text(left, bottom + 27, "epoch 1", kind="small"))
    parts.append(_text(right, bottom + 27, f"{last:.0f}", "end", "small"))
    for number, (name, several) in enumerate(lines):
        style = f"line{number % 3}"
        parts.append(f'<line class="{style}" x1="{legend}" x2="{legend + 16}" y1="10" y2="10"/>')
        parts.append(_text(legend + 20, 14, name))
        legend += 32 + LETTER * len(name)
        for xs, ys in several:
            drawn = " ".join(point(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y))
            thin = " thin" if len(several) > 1 else ""
            parts.append(f'<polyline class="{style}{thin}" points="{drawn}"/>')
            if len(xs) == 1 and drawn:
                x, _, y_text = drawn.partition(",")
                parts.append(f'<circle class="point" cx="{x}" cy="{y_text}" r="3"/>')
        if len(several) > 1:
            drawn = " ".join(point(x, y) for x, y in _mean_curve(several))
            parts.append(f'<polyline class="{style}" points="{drawn}"/>')
    return _svg(WIDTH, bottom + 33, parts, alt)


def _mean_curve(several: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[tuple[float, float]]:
    """The mean over the curves as far as all of them go, for beyond it the mean would jump."""
    shared = set.intersection(*(set(xs) for xs, _ in several))
    by_epoch = [dict(zip(xs, ys, strict=True)) for xs, ys in several]
    means = [(x, float(np.mean([values[x] for values in by_epoch]))) for x in sorted(shared)]
    return [(x, y) for x, y in means if math.isfinite(y)]


def _nice(number: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below a number."""
    if number <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(number))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= number * 0.999)


def _svg(width: float, height: float, parts: Sequence[str], alt: str) -> Markup:
    box = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return Markup(f'<svg role="img" aria-label="{escape(alt)}" {box}>{"".join(parts)}</svg>')


def _text(x: float, y: float, words: str, anchor: str = "start", kind: str = "", attributes: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style} {attributes}>{escape(words)}</text>'


def _box(x: float, y: float, width: float, height: float, attributes: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {attributes}/>'
