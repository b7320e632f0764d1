"""The embedding space by emotion and by speaker."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fourm_ser.analysis import reduction, space
from fourm_ser.analysis.findings import Finding
from fourm_ser.errors import InputError
from fourm_ser.runs.finished import OpenRun
from tests.drawn import Drawn, distance, marks


@pytest.fixture(scope="module")
def opened(two_stage_run: Path) -> OpenRun:
    return OpenRun(two_stage_run)


@pytest.fixture(scope="module")
def found(opened: OpenRun) -> Finding:
    (finding,) = space.space(opened, "all", seed=0)
    return finding


def test_utterances_and_centres_are_placed_together(opened: OpenRun, found: Finding) -> None:
    utterances = found.table[found.table["what"] == "utterance"]
    frame = opened.corpus.frame
    assert (
        utterances[["id", "emotion", "speaker"]].to_numpy().tolist()
        == frame[["id", "emotion", "speaker"]].to_numpy().tolist()
    )
    centres = found.table[found.table["what"] != "utterance"]
    assert set(centres["what"]) == {"class vector of the loss"}
    assert centres["emotion"].tolist() == opened.emotions
    assert np.isfinite(found.table[["x", "y"]].to_numpy()).all()


def test_the_same_seed_draws_the_same_plane(opened: OpenRun, found: Finding) -> None:
    (again,) = space.space(opened, "all", seed=0)
    assert again.table.equals(found.table)
    assert ("UMAP" if find_spec("umap") else "t-SNE, perplexity 30") in found.method


def test_silhouettes_are_rousseeuw_s(opened: OpenRun, found: Finding) -> None:
    features = opened.features(opened.trained, "all")
    vectors = features.embedding.astype(float) / np.linalg.norm(features.embedding, axis=1, keepdims=True)
    away = 1 - vectors @ vectors.T
    speakers = opened.corpus.frame["speaker"].to_numpy()
    for column, labels in (("silhouette_emotion", features.labels), ("silhouette_speaker", speakers)):
        for place in range(0, len(labels), 17):
            others = labels == labels[place]
            others[place] = False
            own = away[place][others].mean()
            nearest = min(away[place][labels == other].mean() for other in set(labels) - {labels[place]})
            expected = (nearest - own) / max(own, nearest)
            assert found.table[column][place] == pytest.approx(expected, abs=1e-5)
    assert found.shown is not None
    everyone = found.shown.iloc[0]
    assert everyone["silhouette_emotion"] == pytest.approx(found.table["silhouette_emotion"].mean())
    assert everyone["distance_ratio"] == pytest.approx(features.metrics["intra_inter"])
    assert found.shown["emotion"].tolist() == ["all", *opened.emotions]


def test_silhouettes_take_two_groups() -> None:
    vectors = np.eye(4)
    assert np.isnan(space.silhouettes(vectors, np.zeros(4, dtype=int))).all()
    assert np.isnan(space.silhouettes(vectors, np.arange(4))).all()
    groups = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    assert (space.silhouettes(groups, np.array([0, 0, 1, 1])) > 0.95).all()


def test_of_many_speakers_the_most_frequent_are_coloured() -> None:
    generator = np.random.default_rng(0)
    counts = dict(zip([f"s{number:02d}" for number in range(20)], range(20, 0, -1), strict=True))
    speakers = [speaker for speaker, count in counts.items() for _ in range(count)]
    places = generator.normal(size=(len(speakers), 2))
    table = pd.DataFrame(
        {"what": "utterance", "emotion": "anger", "speaker": speakers, "x": places[:, 0], "y": places[:, 1]}
    )
    _, right = space.space_figure(table, ["anger"], learned=False).axes
    drawn = {str(part.get_label()): len(np.asarray(part.get_offsets())) for part in right.collections}
    assert drawn == {"12 others": sum(range(1, 13))} | {f"s{number:02d}": 20 - number for number in range(8)}
    _, right = space.space_figure(table[table["speaker"] < "s12"], ["anger"], learned=False).axes
    looks = {
        (np.asarray(part.get_facecolor()).tobytes(), np.asarray(part.get_paths()[0].vertices).tobytes())
        for part in right.collections
    }
    assert len(looks) == 12


def test_classes_without_vectors_of_the_loss_are_drawn_by_their_means(
    opened: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "class_vectors", lambda: None)
    (finding,) = space.space(opened, "test", seed=0)
    centres = finding.table[finding.table["what"] == "class mean"]
    assert centres["emotion"].tolist() == opened.emotions
    assert "class mean" in finding.method


def test_few_utterances_are_refused(opened: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "LEAST", 10_000)
    with pytest.raises(InputError, match=r"side=test: \d+ utterances are too few .* expected 10000 or more"):
        space.space(opened, "test", seed=0)


def test_both_panels_show_every_utterance_at_its_place_by_emotion_and_by_speaker() -> None:
    generator = np.random.default_rng(0)
    emotions, speakers = ["anger", "sadness"], ["s1", "s2", "s3"]
    table = pd.DataFrame({"what": "utterance", "emotion": emotions * 9, "speaker": speakers * 6})
    centres = pd.DataFrame({"what": "class mean", "emotion": emotions, "speaker": ""})
    table = pd.concat([table, centres], ignore_index=True)
    table[["x", "y"]] = generator.uniform(-3, 5, (len(table), 2))
    figure = space.space_figure(table, emotions, learned=False)
    Drawn(figure)
    for axes, key, groups in zip(figure.axes, ("emotion", "speaker"), (emotions, speakers), strict=True):
        assert axes.get_title() == f"by {key}"
        for low, high in (axes.get_xlim(), axes.get_ylim()):
            assert low < high
        table[["right", "up"]] = axes.transData.transform(table[["x", "y"]].to_numpy())
        drawn = {str(part.get_label()): part for part in axes.collections}
        for group in groups:
            own = table[(table["what"] == "utterance") & (table[key] == group)]
            assert marks(drawn[group]) == pytest.approx(own[["right", "up"]].to_numpy(), abs=0.5)
        if key == "emotion":
            places = np.concatenate([marks(part) for part in axes.collections if str(part.get_label())[0] == "_"])
            placed = table[table["what"] != "utterance"][["right", "up"]]
            assert places == pytest.approx(placed.to_numpy(), abs=0.5)
            edges = [part.get_edgecolor() for part in axes.collections if str(part.get_label())[0] == "_"]
            for emotion, edge in zip(emotions, edges, strict=True):
                assert distance(np.asarray(edge)[0, :3], np.asarray(drawn[emotion].get_facecolor())[0, :3]) < 0.01
