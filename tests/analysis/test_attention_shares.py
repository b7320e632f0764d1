"""What the figure of the modalities' shares of attention shows, read back."""

from itertools import product
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from fourm_ser.analysis.attention_shares import FIRST, MODALITY_COLOURS, share_finding
from fourm_ser.runs.finished import OpenRun
from tests.drawn import Drawn, distance, marks, names, pixels

EMOTIONS = ["anger", "sadness"]


def test_bars_are_divided_where_the_share_of_text_ends() -> None:
    generator = np.random.default_rng(0)
    rows = []
    for number, asking in product(range(6), ("audio", "text", FIRST)):
        share = generator.uniform(0.1, 0.9)
        about = {"row": number, "emotion": EMOTIONS[number % 2], "map": "both", "queries": asking}
        rows.append({**about, "keys": "text", "share": share, "even": 0.2 + 0.05 * number})
        rows.append({**about, "keys": "audio", "share": 1 - share, "even": 0.8 - 0.05 * number})
    table = pd.DataFrame(rows)
    figure = share_finding(table, cast(OpenRun, SimpleNamespace(emotions=EMOTIONS)), "test").figure
    assert figure is not None
    Drawn(figure)
    asked = {"the words": "text", "the frames": "audio", "the first token": FIRST}
    assert len(figure.axes) == 3
    places = names(figure.axes[0].yaxis)
    assert set(places) == {*EMOTIONS, "all"}
    for axes in figure.axes:
        asking = asked[axes.get_title().partition(", of ")[2]]
        (border,) = [marks(line) for line in axes.lines if line.get_label() == "border if even"]
        for emotion, y in places.items():
            own = table[(table["queries"] == asking) & (table["keys"] == "text")]
            own = own if emotion == "all" else own[own["emotion"] == emotion]
            bars = {}
            for patch in axes.patches:
                box = patch.get_window_extent()
                if box.y0 < y < box.y1:
                    for modality, colour in MODALITY_COLOURS.items():
                        if distance(np.array(to_rgb(patch.get_facecolor())), colour) < 0.01:
                            bars[modality] = box
            share = own["share"].mean()
            assert [bars["text"].x0, bars["text"].x1] == pytest.approx(pixels(axes.xaxis, [0, share]), abs=0.5)
            assert [bars["audio"].x0, bars["audio"].x1] == pytest.approx(pixels(axes.xaxis, [share, 1]), abs=0.5)
            (mark,) = border[np.abs(border[:, 1] - y) < 1]
            assert mark[0] == pytest.approx(pixels(axes.xaxis, own["even"].mean()), abs=0.5)
