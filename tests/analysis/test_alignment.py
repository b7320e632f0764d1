"""How near speech and text lie in the fusion of several runs."""

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fourm_ser.analysis.alignment import alignment, alignment_figure, names_of, window_of
from fourm_ser.analysis.findings import Finding, UnsuitedError
from fourm_ser.errors import InputError
from fourm_ser.runs.finished import OpenRun
from fourm_ser.training.experiment import run
from tests.conftest import Compose
from tests.drawn import Drawn, marks, pixels

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def opened(two_stage_run: Path) -> OpenRun:
    return OpenRun(two_stage_run)


@pytest.fixture(scope="module")
def untrained(opened: OpenRun, two_stage_run: Path) -> OpenRun:
    """A second run of the same utterances: the first one's network as it began."""
    other = OpenRun(two_stage_run, name="untrained")
    other._features["after finetune", "test"] = other.features(next(other.snapshots()), "test")
    return other


@pytest.fixture(scope="module")
def concatenated(
    tmp_path_factory: pytest.TempPathFactory, composed: Compose, slice_of_demo: list[str], two_stage_run: Path
) -> OpenRun:
    """A run whose fusion hands the encoders' features on."""
    run_dir = tmp_path_factory.mktemp("concat") / "concat"
    slice_of_demo = [word for word in slice_of_demo if not word.startswith("fusion.")]
    run(composed(*slice_of_demo, "fusion=concat", "stage=transfer", "stage.transfer.epochs=1"), run_dir)
    return OpenRun(run_dir)


@pytest.fixture(scope="module")
def found(opened: OpenRun, untrained: OpenRun) -> Finding:
    (finding,) = alignment([opened, untrained], "test")
    return finding


def test_measures_are_those_of_the_fusion_s_sequences(opened: OpenRun, found: Finding) -> None:
    rows = opened.corpus.rows("test")
    text, audio = [], []
    for row in rows:  # each alone, without the code that pools and collects
        (batch,) = opened.batches(opened.network, np.array([row]))
        with torch.inference_mode():
            output = opened.network(batch.text, batch.audio)
        text.append(output.text.features[0].mean(0))
        audio.append(output.audio.features[0].mean(0))
    table = found.table[found.table["run"] == opened.name]
    pairs = torch.stack(text), torch.stack(audio)
    assert table["id"].tolist() == opened.corpus.frame["id"].iloc[rows].tolist()
    assert table["emotion"].tolist() == opened.corpus.frame["emotion"].iloc[rows].tolist()
    assert table["cosine"].to_numpy() == pytest.approx(torch.cosine_similarity(*pairs).numpy(), abs=1e-4)
    assert table["distance"].to_numpy() == pytest.approx(torch.pairwise_distance(*pairs).numpy(), abs=1e-3)


def test_runs_are_compared_by_emotion(opened: OpenRun, found: Finding) -> None:
    assert found.shown is not None
    assert found.shown["run"].unique().tolist() == [opened.name, "untrained"]
    assert found.shown["emotion"].tolist() == 2 * opened.emotions
    for row in found.shown.to_dict("records"):
        part = found.table[(found.table["run"] == row["run"]) & (found.table["emotion"] == row["emotion"])]
        assert row["utterances"] == len(part)
        assert row["cosine_mean"] == pytest.approx(np.mean(part["cosine"]))
        assert row["distance_std"] == pytest.approx(np.std(part["distance"], ddof=1))
    assert found.figure is not None
    grid = np.array(found.figure.axes).reshape(2, -1)
    assert [axes.get_title() for axes in grid[0]] == opened.emotions
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["cosine similarity", "Euclidean distance"]
    labels = [text.get_text() for text in found.figure.legends[0].get_texts()]
    assert labels == [opened.name, "untrained"]


def test_lines_are_the_smoothed_values_of_their_run() -> None:
    values = np.random.default_rng(0).normal(size=(2, 30))
    table = pd.DataFrame(
        {"run": np.repeat(["a", "b"], 30), "emotion": "anger", "cosine": values.ravel(), "distance": 1.0}
    )
    figure = alignment_figure(table, {"anger": 7})
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    for name, own in zip("ab", values, strict=True):
        expected = [own[max(0, place - 3) : place + 4].mean() for place in range(30)]
        assert np.asarray(lines[name].get_ydata()) == pytest.approx(expected)
    assert [window_of(count) for count in (3, 50, 64, 400)] == [5, 5, 7, 41]


def test_a_fusion_without_a_common_space_is_left_out_and_named(opened: OpenRun, concatenated: OpenRun) -> None:
    (finding,) = alignment([concatenated, opened], "test")
    assert set(finding.table["run"]) == {opened.name}
    assert "Left out: concat (its fusion" in finding.caption
    with pytest.raises(UnsuitedError, match=r"No run has .* concat \(its fusion"):
        alignment([concatenated], "test")


def test_runs_of_other_utterances_are_refused(opened: OpenRun, two_stage_run: Path) -> None:
    other = OpenRun(two_stage_run, name="other")
    features = opened.features(opened.trained, "val")
    other._features["after finetune", "test"] = features
    with pytest.raises(InputError, match=r"centres has \d+ utterances of demo there and other \d+ of demo, of which 0"):
        alignment([opened, other], "test")


def test_runs_of_one_name_go_by_their_folders(opened: OpenRun, two_stage_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(two_stage_run, tmp_path / two_stage_run.name)
    names = names_of([opened, OpenRun(copy), OpenRun(copy, name="c")])
    assert names == [str(two_stage_run), str(copy), "c"]
    with pytest.raises(InputError, match="is given twice"):
        names_of([opened, opened])


def test_similar_features_stand_high_and_distant_ones_high_below() -> None:
    generator = np.random.default_rng(0)
    counts = {"anger": 12, "sadness": 8}
    pairs = [(name, emotion) for name in "ab" for emotion in counts]
    table = pd.DataFrame([{"run": name, "emotion": emotion} for name, emotion in pairs for _ in range(counts[emotion])])
    table["cosine"] = generator.uniform(-0.9, 0.4, len(table))
    table["distance"] = generator.uniform(0.5, 30.0, len(table))
    figure = alignment_figure(table, dict.fromkeys(counts, 3))
    Drawn(figure)
    grid = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_title() for axes in grid[0]] == list(counts)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["cosine similarity", "Euclidean distance"]
    for (row, measure), (column, emotion) in product(enumerate(("cosine", "distance")), enumerate(counts)):
        axes = grid[row, column]
        for place, name in enumerate("ab"):
            values = table[(table["run"] == name) & (table["emotion"] == emotion)][measure].to_numpy()
            smooth = np.array([values[max(0, at - 1) : at + 2].mean() for at in range(len(values))])
            line, mean = axes.lines[2 * place : 2 * place + 2]
            assert line.get_label() == name
            assert line.get_color() == mean.get_color()
            expected = pixels(axes.xaxis, np.arange(1.0, len(values) + 1)), pixels(axes.yaxis, smooth)
            assert marks(line) == pytest.approx(np.stack(expected, 1), abs=0.5)
            assert marks(mean)[:, 1] == pytest.approx(pixels(axes.yaxis, [values.mean()] * 2), abs=0.5)
