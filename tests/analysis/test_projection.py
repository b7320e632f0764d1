"""Test embeddings of a finished run, its loss's class vectors, and both in the plane."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from fourm_ser.analysis import projection
from fourm_ser.analysis.findings import UnsuitedError
from fourm_ser.analysis.projection import Embeddings, make_panel, projection_figure, read_embeddings
from fourm_ser.analysis.reduction import class_means, perplexity, project, unit
from fourm_ser.errors import InputError
from fourm_ser.models.directory import load_model
from fourm_ser.runs.finished import OpenRun
from tests.drawn import Drawn, marks, pixels

RNG = np.random.default_rng(0)
EMOTIONS = ["anger", "happiness", "sadness"]


@pytest.fixture(scope="module")
def embeddings(two_stage_run: Path) -> Embeddings:
    return read_embeddings(OpenRun(two_stage_run))


def test_embeddings_are_those_that_the_run_tested(two_stage_run: Path, embeddings: Embeddings, cache: Path) -> None:
    network, emotions, _ = load_model(two_stage_run / "model", cache)
    table = pd.read_csv(two_stage_run / "predictions.csv")
    with torch.inference_mode():
        probabilities = network.head(torch.from_numpy(embeddings.vectors)).softmax(1).numpy()
    assert probabilities == pytest.approx(table[emotions].to_numpy(), abs=1e-4)
    assert [emotions[label] for label in embeddings.labels] == table["emotion"].tolist()
    metrics = json.loads((two_stage_run / "metrics.json").read_text())
    assert embeddings.ratio == pytest.approx(metrics["test/intra_inter"], abs=1e-4)


@pytest.mark.slow
def test_another_cache_gives_the_same_embeddings(embeddings: Embeddings, two_stage_run: Path, tmp_path: Path) -> None:
    run, again = OpenRun(two_stage_run), OpenRun(two_stage_run, cache=tmp_path)
    assert read_embeddings(again).vectors == pytest.approx(embeddings.vectors, abs=1e-4)
    untrained = [opened.features(next(opened.snapshots()), "test").embedding for opened in (run, again)]
    assert list(tmp_path.rglob("shard-*"))
    assert untrained[1] == pytest.approx(untrained[0], abs=1e-4)


def test_class_vectors_are_the_loss_s_own_where_it_uses_them(two_stage_run: Path, embeddings: Embeddings) -> None:
    checkpoint = two_stage_run / "stages" / "1-finetune" / "checkpoints" / "best.ckpt"
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    assert embeddings.class_vectors is not None
    assert embeddings.class_vectors.tolist() == state["loss.terms.center.centers.embedding"].tolist()
    opened = OpenRun(two_stage_run)
    opened.config.loss.weights.center = 0.0
    assert opened.class_vectors() is None


def test_the_projection_keeps_the_directions_of_most_variance() -> None:
    vectors, others = RNG.normal(size=(40, 6)) * [5, 1, 3, 1, 0.5, 0.1], RNG.normal(size=(3, 6))
    points, flat, shares = project(vectors, others)
    centred = vectors - vectors.mean(0)
    values, directions = np.linalg.eigh(centred.T @ centred)
    plane = directions[:, ::-1][:, :2]
    for found, given in ((points, centred), (flat, others - vectors.mean(0))):
        assert np.abs(found) == pytest.approx(np.abs(given @ plane))
    assert shares == pytest.approx(values[::-1][:2] / values.sum())


def test_a_class_that_does_not_occur_has_no_mean() -> None:
    means = class_means(np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]), np.array([2, 2, 0]), 3)
    assert means[[0, 2]].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert np.isnan(means[1]).all()


def test_a_plain_panel_has_means_and_a_unit_panel_the_loss_s_vectors(embeddings: Embeddings) -> None:
    at_unit, plain = make_panel("a", embeddings), make_panel("a", embeddings, plain=True)
    assert (at_unit.learned, plain.learned) == (True, False)
    assert plain.centres is not None
    assert at_unit.centres is not None
    first = embeddings.labels == 0
    assert plain.centres[0] == pytest.approx(plain.points[first].mean(0), abs=1e-4)
    # Both are in one plane: distances there cannot be larger than between the vectors of length 1.
    assert embeddings.class_vectors is not None
    whole = np.linalg.norm(unit(embeddings.vectors) - unit(embeddings.class_vectors)[0], axis=1)
    assert (np.linalg.norm(at_unit.points - at_unit.centres[0], axis=1) <= whole + 1e-5).all()
    assert at_unit.title == f"a: distance ratio {embeddings.ratio:.3f}"


def test_a_figure_has_a_panel_a_run_and_one_look_an_emotion(embeddings: Embeddings) -> None:
    panel = make_panel("a", embeddings)
    turned = embeddings._replace(
        emotions=embeddings.emotions[::-1], labels=len(embeddings.emotions) - 1 - embeddings.labels
    )
    figure = projection_figure([panel, panel._replace(embeddings=turned), panel._replace(name="b")])
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == [
        panel.title,
        panel.title,
        f"b: distance ratio {embeddings.ratio:.3f}",
    ]
    colours = [
        {str(part.get_label()): tuple(np.asarray(part.get_facecolor())[0]) for part in axes.collections}
        for axes in shown
    ]
    assert all(colours[0][emotion] == colours[1][emotion] for emotion in embeddings.emotions)
    assert len({colours[0][emotion] for emotion in embeddings.emotions}) == len(embeddings.emotions)


def test_the_command_writes_a_figure(two_stage_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures" / "embedding.png"
    projection.main([str(two_stage_run), "--output", str(output)])
    assert capsys.readouterr().out.strip() == str(output)
    height, width = imread(output).shape[:2]
    assert min(width, height) > 400


def test_the_command_names_what_is_wrong(
    two_stage_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for folders in ([tmp_path / "empty"], [two_stage_run, tmp_path / "empty"]):
        with pytest.raises(SystemExit, match=r"empty: holds no run"):
            projection.main([*map(str, folders), "--output", str(tmp_path / "a.png")])
    with pytest.raises(SystemExit):
        projection.main([str(two_stage_run), "--output", str(tmp_path / "a.doc")])
    assert "expected a file that ends in .png, .svg, .pdf" in capsys.readouterr().err
    copy = shutil.copytree(two_stage_run, tmp_path / "sweep" / "copy")
    (copy / "stages" / "1-finetune" / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(SystemExit, match=r"best\.ckpt: no such file"):
        projection.main([str(tmp_path / "sweep"), "--output", str(tmp_path / "a.png")])
    (copy / "metrics.json").unlink()
    with pytest.raises(SystemExit, match="copy: unfinished"):
        projection.main([str(two_stage_run), str(tmp_path / "sweep"), "--output", str(tmp_path / "a.png")])


def test_every_projection_is_a_finding_of_all_runs(embeddings: Embeddings, two_stage_run: Path) -> None:
    opened = OpenRun(two_stage_run)
    findings = {
        found.name: found for found in projection.projection([opened, OpenRun(two_stage_run, name="again")], "test", 0)
    }
    assert list(findings) == ["projection_pca_2d", "projection_pca_3d", "projection_tsne_2d", "projection_tsne_3d"]
    n, classes = len(embeddings.labels), len(embeddings.emotions)
    for name, found in findings.items():
        axes = ["x", "y", "z"][: int(name[-2])]
        utterances = found.table[found.table["what"] == "utterance"]
        assert list(found.table.columns) == ["run", "what", "id", "emotion", *axes]
        assert utterances.groupby("run", sort=False)["id"].apply(list).to_dict() == dict.fromkeys(
            ["centres", "again"], embeddings.ids
        )
        centres = found.table[found.table["what"] != "utterance"]
        assert len(centres) == (2 * classes if "pca" in name else 0)
        assert found.figure is not None
        assert len(found.figure.axes) == 2
        assert found.shown is not None
        assert found.shown["distance_ratio"].to_numpy() == pytest.approx(embeddings.ratio)
        # The same run twice is twice the same: nothing hangs on chance.
        both = utterances[axes].to_numpy().reshape(2, n, -1)
        assert (both[0] == both[1]).all()
    flat, space = (findings[f"projection_pca_{dims}d"].table for dims in (2, 3))
    assert space[["x", "y"]].to_numpy() == pytest.approx(flat[["x", "y"]].to_numpy())


def test_t_sne_keeps_neighbours_together_and_follows_its_seed(embeddings: Embeddings) -> None:
    vectors = np.concatenate([RNG.normal(size=(20, 8)), RNG.normal(size=(20, 8)) + 20])
    small = embeddings._replace(vectors=vectors, labels=np.repeat([0, 1], 20), ids=[""] * 40)
    points = projection.make_tsne_panel("a", small, 2, seed=0).points
    away = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(40, np.inf))
    assert (away.argmin(1) // 20 == np.arange(40) // 20).all()
    assert (projection.make_tsne_panel("a", small, 2, seed=0).points == points).all()
    assert perplexity(40) < 40
    assert perplexity(1000) == 30


def test_few_utterances_and_dead_embeddings_are_refused(two_stage_run: Path) -> None:
    opened = OpenRun(two_stage_run)
    features = opened.features(opened.trained, "test")
    key = ("after finetune", "test")
    opened._features[key] = features._replace(
        labels=features.labels[:9], embedding=features.embedding[:9], rows=features.rows[:9]
    )
    with pytest.raises(InputError, match="side=test: 9 utterances are too few"):
        projection.projection([opened], "test", 0)
    opened._features[key] = features._replace(embedding=np.ones_like(features.embedding))
    with pytest.raises(UnsuitedError, match="all point the same way"):
        projection.projection([opened], "test", 0)
    opened._features[key] = features._replace(embedding=np.full_like(features.embedding, np.nan))
    with pytest.raises(UnsuitedError, match="not finite"):
        projection.projection([opened], "test", 0)


def test_a_plane_takes_two_dimensions() -> None:
    with pytest.raises(InputError, match="5 embeddings of width 1"):
        project(np.zeros((5, 1)), np.zeros((2, 1)))


def test_help_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys; from fourm_ser.analysis.projection import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: assert not {'torch', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RUN_DIR" in done.stdout


def test_utterances_stand_where_their_components_are_and_the_axes_are_named_by_their_shares() -> None:
    vectors = RNG.normal(size=(60, 4)) @ np.diag([5.0, 2.0, 0.5, 0.2]) @ np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    labels = np.arange(60) % 3
    panel = make_panel("a", Embeddings(EMOTIONS, labels, vectors, None, 0.5, [""] * 60), plain=True)
    figure = projection_figure([panel])
    Drawn(figure)
    (axes,) = figure.axes
    seen = np.zeros((60, 2))
    unit_of = [float(pixels(axis, 1.0) - pixels(axis, 0.0)) for axis in (axes.xaxis, axes.yaxis)]
    zero = [float(pixels(axis, 0.0)) for axis in (axes.xaxis, axes.yaxis)]
    *utterances, legend = [part for part in axes.collections if part.get_label() in [*EMOTIONS, "class mean"]]
    centres = [part for part in axes.collections if part not in (*utterances, legend)]
    for label, (own, centre) in enumerate(zip(utterances, centres, strict=True)):
        assert own.get_label() == EMOTIONS[label]
        seen[labels == label] = (marks(own) - zero) / unit_of
        assert ((marks(centre)[0] - zero) / unit_of) == pytest.approx(seen[labels == label].mean(0), abs=0.05)
        assert np.asarray(centre.get_edgecolor())[0, :3] == pytest.approx(np.asarray(own.get_facecolor())[0, :3])
    spreads, directions = np.linalg.eigh(np.cov(vectors.T))
    shares = spreads[::-1] / spreads.sum()
    assert [axes.get_xlabel(), axes.get_ylabel()] == [
        f"component 1 ({100 * shares[0]:.0f}% of variance)",
        f"component 2 ({100 * shares[1]:.0f}%)",
    ]
    first, second = ((vectors - vectors.mean(0)) @ directions[:, ::-1][:, :2]).T
    for along, expected in zip(seen.T, (first, second), strict=True):
        sign = np.sign(along @ expected)
        assert along == pytest.approx(sign * expected, abs=0.05)
    assert seen == pytest.approx(panel.points, abs=0.05)


def test_three_components_stand_along_the_axes_that_name_them() -> None:
    vectors = RNG.normal(size=(30, 5)) * [4.0, 2.0, 1.0, 0.2, 0.1]
    panel = make_panel("a", Embeddings(EMOTIONS, np.arange(30) % 3, vectors, None, 0.5, [""] * 30), plain=True, dims=3)
    axes: Any = projection_figure([panel]).axes[0]
    shares = vectors.var(0) / vectors.var(0).sum()
    for name, axis, share in zip(
        (axes.get_xlabel(), axes.get_ylabel(), axes.get_zlabel()), "123", shares, strict=False
    ):
        assert name.startswith(f"component {axis} (")
        assert int(name.partition("(")[2].partition("%")[0]) == pytest.approx(100 * share, abs=5)
    for label, emotion in enumerate(EMOTIONS):
        (own,) = [part for part in axes.collections if part.get_label() == emotion]
        assert np.asarray(np.ma.stack(own._offsets3d, 1)) == pytest.approx(
            panel.points[panel.embeddings.labels == label]
        )
    for axis in ("x", "y", "z"):
        low, high = getattr(axes, f"get_{axis}lim")()
        assert low < high
