"""A matplotlib figure as its reader sees it: colours and places on the page, against the axes' numbers and names."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


class Drawn:
    """A figure, drawn. All places are in pixels from the lower left of the page."""

    def __init__(self, figure: Figure) -> None:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        self._page = np.asarray(canvas.buffer_rgba())[::-1, :, :3] / 255.0  # type: ignore[no-untyped-call]

    def colour(self, x: float, y: float) -> np.ndarray:
        """Red, green and blue at a place."""
        return self._page[int(y), int(x)]

    def bar_colour(self, bar: Axis, number: float) -> np.ndarray:
        """The colour that stands for a number on a colour bar, whose numbers this axis has."""
        box = bar.axes.get_window_extent()
        place = pixels(bar, number)
        if bar is bar.axes.yaxis:
            return self.colour((box.x0 + box.x1) / 2, min(max(place, box.y0 + 3), box.y1 - 3))
        return self.colour(min(max(place, box.x0 + 3), box.x1 - 3), (box.y0 + box.y1) / 2)


def names(axis: Axis) -> dict[str, float]:
    """Where an axis has its names: pixels across, or up."""
    ticks = {tick.label1.get_text(): tick.get_loc() for tick in axis.get_major_ticks()}
    return {name: _along(axis, place) for name, place in ticks.items() if name}


def pixels(axis: Axis, numbers: np.ndarray | list[float] | float) -> np.ndarray:
    """Where numbers stand by the numbers that are written at an axis, which must grow to the right, or upwards."""
    written = {name: place for name, place in names(axis).items() if name.strip()}
    values = [float(name.replace("\N{MINUS SIGN}", "-")) for name in written]
    slope, start = np.polyfit(values, list(written.values()), 1)
    assert slope > 0, "the numbers of the axis do not grow to the right, or upwards"
    return start + slope * np.asarray(numbers, dtype=np.float64)


def marks(artist: Artist) -> np.ndarray:
    """The points of a line, or the marks of a scatter: (n, 2) pixels."""
    if isinstance(artist, Line2D):
        return artist.get_transform().transform(np.asarray(artist.get_xydata()))
    assert isinstance(artist, PathCollection)
    return artist.get_offset_transform().transform(np.asarray(artist.get_offsets()))


def written(axes: Axes) -> dict[tuple[str, str], str]:
    """What is written in the cells of a matrix, by the names of the row and column that it stands nearest to."""
    rows, columns = names(axes.yaxis), names(axes.xaxis)
    found = {}
    for text in axes.texts:
        x, y = text.get_transform().transform(text.get_position())
        row = min(rows, key=lambda name: abs(rows[name] - y))
        found[row, min(columns, key=lambda name: abs(columns[name] - x))] = text.get_text()
    assert len(found) == len(axes.texts)
    return found


def distance(colour: np.ndarray, other: np.ndarray | str) -> float:
    """How far two colours are apart: 0 for the same, 1 for black and white."""
    return float(np.abs(colour - (to_rgb(other) if isinstance(other, str) else other)).max())


def lightness(colour: np.ndarray) -> float:
    """From 0 for black to 1 for white."""
    return float(colour @ [0.2126, 0.7152, 0.0722])


def _along(axis: Axis, place: float) -> float:
    across = axis is axis.axes.xaxis
    point = axis.axes.transData.transform(
        (place, axis.axes.get_ylim()[0]) if across else (axis.axes.get_xlim()[0], place)
    )
    return float(point[0 if across else 1])
