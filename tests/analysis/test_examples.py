"""Which utterances are looked at closely, and what one sees of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from matplotlib.figure import Figure

from fourm_ser.analysis.examples import choose_examples, draw_waveform, file_stem, read_waveform
from fourm_ser.errors import InputError
from fourm_ser.runs.finished import OpenRun
from tests.drawn import Drawn, distance, pixels


@pytest.fixture(scope="module")
def opened(two_stage_run: Path) -> OpenRun:
    return OpenRun(two_stage_run)


@pytest.fixture(scope="module")
def predictions(two_stage_run: Path) -> pd.DataFrame:
    """What the run itself said of its test utterances, with the probability of the predicted emotion."""
    table = pd.read_csv(two_stage_run / "predictions.csv")
    sure = [row[row["predicted"]] for row in table.to_dict("records")]
    return table.assign(sure=sure, right=table["emotion"] == table["predicted"])


def test_the_surest_of_each_emotion_and_the_surest_mistakes_are_chosen(
    opened: OpenRun, predictions: pd.DataFrame
) -> None:
    chosen = choose_examples(opened, "test", [], each=1, mistakes=2)
    right, wrong = predictions[predictions["right"]], predictions[~predictions["right"]]
    expected = [
        right[right["emotion"] == emotion].nlargest(1, "sure")["id"].item()
        for emotion in opened.emotions
        if (right["emotion"] == emotion).any()
    ]
    expected += wrong.nlargest(2, "sure")["id"].tolist()
    assert [example.id for example in chosen] == expected
    table = predictions.set_index("id")
    for example in chosen:
        assert (example.emotion, example.predicted) == tuple(table.loc[example.id, ["emotion", "predicted"]])
        assert example.probability == pytest.approx(table.loc[example.id, "sure"], abs=1e-4)
        assert opened.corpus.frame.iloc[example.row]["text"] == example.text


def test_named_utterances_come_in_the_order_of_their_names(opened: OpenRun) -> None:
    ids = opened.corpus.frame["id"].iloc[opened.corpus.rows("test")].tolist()
    names = [ids[7], ids[2], ids[7]]
    assert [example.id for example in choose_examples(opened, "test", names, 1, 2)] == [ids[7], ids[2]]


def test_an_utterance_that_is_not_there_is_named(opened: OpenRun) -> None:
    with pytest.raises(InputError, match=r"utterance nobody: not on the side test .*expected ids of the corpus"):
        choose_examples(opened, "test", ["nobody"], 1, 2)
    elsewhere = str(opened.corpus.frame["id"].iloc[opened.corpus.split.train[0]])
    with pytest.raises(InputError, match=rf"utterance {elsewhere}: .*it is on the side train: choose that"):
        choose_examples(opened, "test", [elsewhere], 1, 2)


def test_the_waveform_is_drawn_with_its_peaks_and_its_seconds(opened: OpenRun) -> None:
    example = choose_examples(opened, "test", [], 1, 0)[0]
    samples = read_waveform(opened, example)
    expected, rate = soundfile.read(opened.corpus.frame["file"].iloc[example.row], dtype="float32")
    assert rate == 16_000
    assert samples == pytest.approx(expected)
    axes = Figure().subplots()
    draw_waveform(axes, samples)
    drawn = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert drawn[:, 1].max() == pytest.approx(samples.max())
    assert drawn[:, 1].min() == pytest.approx(samples.min())
    assert axes.get_xlim() == pytest.approx((0, example.seconds))


def test_a_file_s_name_holds_no_folder(opened: OpenRun) -> None:
    example = choose_examples(opened, "test", [], 1, 0)[0]._replace(id="Ses01/F 003:é")
    assert file_stem(3, example) == "3-Ses01_F_003_é"


def test_the_waveform_swings_up_where_it_is_positive_and_at_its_seconds() -> None:
    samples = np.zeros(32_000, dtype=np.float32)
    samples[6_400:9_600:2], samples[22_400:25_600:2] = 0.8, -0.5
    figure = Figure()
    axes = figure.subplots()
    draw_waveform(axes, samples)
    axes.tick_params(labelbottom=True)
    drawn = Drawn(figure)
    box = axes.get_window_extent()
    middle = (box.y0 + box.y1) / 2
    high, low = (middle + share * box.height / 2 / 1.05 for share in (0.5, -0.5 * 0.5 / 0.8))
    for second, above, below in ((0.2, 0, 0), (0.5, 1, 0), (1.0, 0, 0), (1.5, 0, 1), (1.8, 0, 0)):
        x = float(pixels(axes.xaxis, second))
        assert (distance(drawn.colour(x, high), "white") > 0.5) == bool(above)
        assert (distance(drawn.colour(x, low), "white") > 0.5) == bool(below)
