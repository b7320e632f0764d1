"""Figures of the report read back: the numbers and names that places, widths and shades of their SVG stand for."""

import re
import xml.etree.ElementTree as ET
from typing import NamedTuple

import numpy as np


class Heat(NamedTuple):
    """A cell of a heat map: how strong its colour is (None: empty), what stands in it, whether it is framed."""

    strength: float | None
    lines: list[str]
    framed: bool


def read_heat_map(image: str, rows: list[str], columns: list[str]) -> dict[tuple[str, str], Heat]:
    """The cells of a heat map by the names at which they stand: in their row, or above it, and over their column."""
    drawn = ET.fromstring(image)
    boxes = [box for box in drawn.iter("rect") if box.get("class") != "mark"]
    frames = [_middle(box) for box in drawn.iter("rect") if box.get("class") == "mark"]
    texts = [(_number(text, "x"), _number(text, "y"), text.text or "") for text in drawn.iter("text")]
    first = min(_number(box, "y") for box in boxes)
    across, beside, above = dict[str, float](), dict[str, float](), dict[str, float]()
    for text in drawn.iter("text"):
        (x, y), name = (_number(text, key) for key in ("x", "y")), text.text or ""
        if y < first and (text.get("text-anchor") == "middle" or text.get("transform")):
            across[name] = x
        elif text.get("text-anchor") == "end":
            beside[name] = y
        elif text.get("text-anchor") == "start":
            above[name] = y
    assert sorted(across) == sorted(columns)
    assert sorted([*beside, *above]) == sorted(rows)
    cells = {}
    for box in boxes:
        x, y, width, height = (_number(box, key) for key in ("x", "y", "width", "height"))
        (column,) = [name for name, place in across.items() if x <= place <= x + width]
        at_height = [name for name, place in beside.items() if y <= place <= y + height]
        (row,) = at_height or [name for name, place in above.items() if y - 20 < place < y]
        own = [line for at, up, line in texts if abs(at - x - width / 2) < 0.2 and y < up < y + height]
        strength = float(box.get("fill-opacity", "nan")) if box.get("class") == "heat" else None
        assert (row, column) not in cells
        cells[row, column] = Heat(strength, own, any(np.hypot(*(_middle(box) - frame)) < 1 for frame in frames))
    assert len(cells) == len(rows) * len(columns)
    return cells


def read_points(image: str, rows: list[str]) -> dict[str, tuple[float, float, float]]:
    """Value, low and high end (NaN without an interval) of each row, by the numbers of the figure's axis."""
    drawn = ET.fromstring(image)
    texts = [(_number(text, "x"), _number(text, "y"), text.text or "") for text in drawn.iter("text")]
    lowest = max(y for _, y, name in texts if re.fullmatch(r"[-+]?[\d.]+(e[-+]\d+)?", name))
    axis = [(x, float(name)) for x, y, name in texts if y == lowest]
    assert [number for _, number in sorted(axis)] == sorted(number for _, number in axis)
    places, numbers = (np.array(side) for side in zip(*axis, strict=True))
    slope, start = np.polyfit(places, numbers, 1)
    points = sorted((_number(point, "cy"), _number(point, "cx")) for point in drawn.iter("circle"))
    ends = {_number(line, "y1"): line for line in drawn.iter("line") if line.get("class") == "interval"}
    found = {}
    for name in rows:
        (at,) = [y for _, y, text in texts if text == name]
        height, x = next(point for point in points if point[0] > at)
        low, high = (_number(ends[height], key) if height in ends else np.nan for key in ("x1", "x2"))
        found[name] = (start + slope * x, start + slope * low, start + slope * high)
    return found


def read_bars(image: str, rows: list[str]) -> dict[str, list[tuple[str, float, float]]]:
    """The parts of each row's bar, by the legend's names: their beginnings, from the left of all, and widths."""
    drawn = ET.fromstring(image)
    texts = [(_number(text, "x"), _number(text, "y"), text.text or "") for text in drawn.iter("text")]
    boxes = [tuple(_number(box, key) for key in ("x", "y", "width")) for box in drawn.iter("rect")]
    kinds = [str(box.get("class")) for box in drawn.iter("rect")]
    top, left = min(y for _, y, _ in boxes), min(x for x, _, _ in boxes)
    legend = {}
    for (x, y, width), kind in zip(boxes, kinds, strict=True):
        if y == top:
            legend[kind] = min((at, name) for at, up, name in texts if at > x + width and abs(up - y) < 12)[1]
    found = {}
    for name in rows:
        (at,) = [y for _, y, text in texts if text == name and y > top + 12]
        own = [(box, kind) for box, kind in zip(boxes, kinds, strict=True) if 0 <= box[1] - at < 12]
        found[name] = [(legend[kind], x - left, width) for (x, _, width), kind in own]
    return found


def read_curves(image: str) -> dict[str, list[np.ndarray]]:
    """The lines of each name of the legend: (points, 2), epoch and value by the numbers at the axes; the mean last."""
    drawn = ET.fromstring(image)
    texts = [(_number(text, "x"), _number(text, "y"), text.text or "") for text in drawn.iter("text")]
    heights = [(y, float(name)) for x, y, name in texts if re.fullmatch(r"-?\d+\.\d\d", name)]
    ((begin, foot),) = [(x, y) for x, y, name in texts if name == "epoch 1"]
    ((end, last),) = [(x, float(name)) for x, y, name in texts if y == foot and name != "epoch 1"]
    # Numbers stand 4 pixels below the lines that they name, for they are as high.
    at, values = np.array(heights).T
    slope, start = np.polyfit(at, values, 1)
    start += 4 * slope
    assert slope < 0, "values do not grow upwards"
    found: dict[str, list[np.ndarray]] = {}
    names = {}
    for line in drawn.iter("line"):
        if str(line.get("class")).startswith("line"):
            names[line.get("class")] = min((x, name) for x, y, name in texts if x > _number(line, "x2") and y < 20)[1]
    for line in drawn.iter("polyline"):
        points = np.array([point.split(",") for point in str(line.get("points")).split()], dtype=float)
        epochs = 1 + (points[:, 0] - begin) * (max(last, 2) - 1) / (end - begin)
        name = names[str(line.get("class")).removesuffix(" thin")]
        found.setdefault(name, []).append(np.stack([epochs, start + slope * points[:, 1]], 1))
    return found


def _number(element: ET.Element, key: str) -> float:
    return float(element.get(key, "nan"))


def _middle(box: ET.Element) -> np.ndarray:
    x, y, width, height = (_number(box, key) for key in ("x", "y", "width", "height"))
    return np.array([x + width / 2, y + height / 2])
