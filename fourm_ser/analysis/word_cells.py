"""Words as coloured cells, in lines as they are read."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

Colour = tuple[float, float, float, float]

WIDTH = 100  # characters in a line
INCHES = 0.25  # height of a line


def word_positions(names: Sequence[str], width: int = WIDTH) -> list[tuple[int, int]]:
    """Line and column of each word where lines hold `width` characters."""
    positions = []
    line = column = 0
    for name in names:
        if column and column + len(name) + 1 > width:
            line, column = line + 1, 0
        positions.append((line, column))
        column += len(name) + 1
    return positions


def count_lines(names: Sequence[str], width: int = WIDTH) -> int:
    """How many lines words take."""
    return word_positions(names, width)[-1][0] + 1 if names else 0


def prepare_axes(axes: Axes, lines: float) -> None:
    """Axes in characters and lines, of which the first is at the top."""
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(lines, 0)
    axes.set_axis_off()


def draw_words(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    colour: Callable[[float], Colour],
    top: float = 0.0,
    left: int = 0,
) -> None:
    """Draw words on axes that `prepare_axes` has prepared.

    Args:
        axes: the axes to draw on.
        names: the words.
        values: (words,) number of each word, which chooses its colour.
        colour: the function that makes red, green, blue and alpha of a number.
        top: the line that the words begin in.
        left: the column that lines begin in.
    """
    for name, value, (line, column) in zip(names, values, word_positions(names, WIDTH - left), strict=True):
        face = colour(float(value))
        corner = left + column, top + line + 0.06
        axes.add_patch(Rectangle(corner, len(name) + 0.8, 0.88, facecolor=face, edgecolor="#bbbbbb", linewidth=0.4))
        # Relative luminance as in WCAG, without its gamma: good enough to choose between black and white.
        light = 0.2126 * face[0] + 0.7152 * face[1] + 0.0722 * face[2]
        ink = "black" if light > 0.5 else "white"
        middle = left + column + (len(name) + 0.8) / 2, top + line + 0.5
        look: dict[str, Any] = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 8, "color": ink}
        axes.text(*middle, name.replace("$", r"\$"), **look)
