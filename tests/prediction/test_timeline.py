"""The figure of an emotion along a recording, read back from its colours."""

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from fourm_ser.errors import InputError
from fourm_ser.prediction.predictor import Moment, Prediction
from fourm_ser.prediction.timeline import timeline_figure
from tests.drawn import Drawn, distance, names, pixels

EMOTIONS = ["anger", "happiness", "sadness"]
SHARES = [[0.6, 0.3, 0.1], None, [0.15, 0.25, 0.6], [0.2, 0.5, 0.3]]


def moments(scale: float) -> list[Moment]:
    """Windows of 4 units every 3: they are drawn from 0, 3.5, 6.5, 9.5 to 13 units."""
    made = []
    for number, shares in enumerate(SHARES):
        prediction = None
        if shares is not None:
            prediction = Prediction(EMOTIONS[int(np.argmax(shares))], dict(zip(EMOTIONS, shares, strict=True)), None)
        error = InputError("silence") if prediction is None else None
        made.append(Moment(3 * scale * number, scale * (3 * number + 4), prediction, error))
    return made


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["seconds", "minutes"])
def test_each_window_has_its_probabilities_in_the_legend_s_colours(scale: float) -> None:
    figure = timeline_figure(moments(scale), EMOTIONS)
    drawn = Drawn(figure)
    band, axes = figure.axes
    legend: Any = axes.get_legend()
    looks = {
        text.get_text(): np.array(to_rgb(handle.get_facecolor()))
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert list(looks) == EMOTIONS[::-1]  # as they are stacked
    clock = dict(names(axes.xaxis).items())
    if scale > 1:
        seconds = {name: 60 * int(name.split(":")[0]) + int(name.split(":")[1]) for name in clock if name[0].isdigit()}
        slope, start = np.polyfit(list(seconds.values()), [clock[name] for name in seconds], 1)
    else:
        start, slope = float(pixels(axes.xaxis, 0)), float(pixels(axes.xaxis, 1) - pixels(axes.xaxis, 0))
    assert slope > 0
    edges = scale * np.array([0, 3.5, 6.5, 9.5, 13])
    box = band.get_window_extent()
    for place, shares in enumerate(SHARES):
        for x in start + slope * (edges[place : place + 2] @ [[0.9, 0.1], [0.1, 0.9]]):
            if shares is None:
                assert distance(drawn.colour(x, float(pixels(axes.yaxis, 0.5))), "white") < 0.02
                assert distance(drawn.colour(x, box.y0 + 2), "white") < 0.02
                continue
            tops = np.cumsum(shares)
            for emotion, share, top in zip(EMOTIONS, shares, tops, strict=True):
                for inside in (0.15, 0.85):
                    y = float(pixels(axes.yaxis, top - inside * share))
                    assert distance(drawn.colour(x, y), looks[emotion]) < 0.02
            assert distance(drawn.colour(x, box.y0 + 2), looks[EMOTIONS[int(np.argmax(shares))]]) < 0.02
    for text in band.texts:
        x, _ = text.get_transform().transform(text.get_position())
        assert distance(drawn.colour(x, box.y0 + 2), looks[text.get_text()]) < 0.02
