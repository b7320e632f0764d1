"""Test embeddings of a finished run, its loss's class vectors, and both in the plane."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from fourm_ser.analysis import projection
from fourm_ser.analysis.projection import (
    Embeddings,
    class_means,
    make_panel,
    project,
    projection_figure,
    read_embeddings,
    unit,
)
from fourm_ser.analysis.runs import OpenRun
from fourm_ser.errors import InputError
from fourm_ser.experiment import run
from fourm_ser.model import load_model
from tests.conftest import Compose

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, composed: Compose, slice_of_demo: list[str]) -> Path:
    """A run whose loss has centres."""
    run_dir = tmp_path_factory.mktemp("run") / "centres"
    run(composed(*slice_of_demo, "loss=ce_center", "stage=transfer", "stage.transfer.epochs=2"), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def embeddings(finished: Path) -> Embeddings:
    return read_embeddings(OpenRun(finished))


def test_embeddings_are_those_that_the_run_tested(finished: Path, embeddings: Embeddings, cache: Path) -> None:
    network, emotions, _ = load_model(finished / "model", cache)
    table = pd.read_csv(finished / "predictions.csv")
    with torch.inference_mode():
        probabilities = network.head(torch.from_numpy(embeddings.vectors)).softmax(1).numpy()
    assert probabilities == pytest.approx(table[emotions].to_numpy(), abs=1e-4)
    assert [emotions[label] for label in embeddings.labels] == table["emotion"].tolist()
    metrics = json.loads((finished / "metrics.json").read_text())
    assert embeddings.ratio == pytest.approx(metrics["test/intra_inter"], abs=1e-4)


def test_another_cache_gives_the_same_embeddings(embeddings: Embeddings, finished: Path, tmp_path: Path) -> None:
    again = read_embeddings(OpenRun(finished, cache=tmp_path))
    assert list(tmp_path.rglob("shard-*"))
    assert again.vectors == pytest.approx(embeddings.vectors, abs=1e-4)


def test_class_vectors_are_the_loss_s_own_where_it_uses_them(finished: Path, embeddings: Embeddings) -> None:
    checkpoint = finished / "stages" / "0-transfer" / "checkpoints" / "best.ckpt"
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    assert embeddings.class_vectors is not None
    assert embeddings.class_vectors.tolist() == state["loss.terms.center.centers.embedding"].tolist()
    opened = OpenRun(finished)
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
    first = embeddings.labels == 0
    assert plain.centres[0] == pytest.approx(plain.points[first].mean(0), abs=1e-4)
    # Both are in one plane: distances there cannot be larger than between the vectors of length 1.
    assert embeddings.class_vectors is not None
    whole = np.linalg.norm(unit(embeddings.vectors) - unit(embeddings.class_vectors)[0], axis=1)
    assert (np.linalg.norm(at_unit.points - at_unit.centres[0], axis=1) <= whole + 1e-5).all()
    assert at_unit.title == f"a: distance ratio {embeddings.ratio:.3f}"


def test_a_figure_has_a_panel_a_run_and_one_look_an_emotion(embeddings: Embeddings) -> None:
    panel = make_panel("a", embeddings)
    turned = panel._replace(emotions=panel.emotions[::-1], labels=len(panel.emotions) - 1 - panel.labels)
    figure = projection_figure([panel, turned, panel._replace(title="b")])
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == [panel.title, panel.title, "b"]
    colours = [
        {str(part.get_label()): tuple(np.asarray(part.get_facecolor())[0]) for part in axes.collections}
        for axes in shown
    ]
    assert all(colours[0][emotion] == colours[1][emotion] for emotion in panel.emotions)
    assert len({colours[0][emotion] for emotion in panel.emotions}) == len(panel.emotions)


def test_the_command_writes_a_figure(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures" / "embedding.png"
    projection.main([str(finished), "--output", str(output)])
    assert capsys.readouterr().out.strip() == str(output)
    height, width = imread(output).shape[:2]
    assert min(width, height) > 400


def test_the_command_names_what_is_wrong(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folders in ([tmp_path / "empty"], [finished, tmp_path / "empty"]):
        with pytest.raises(SystemExit, match=r"empty: holds no run"):
            projection.main([*map(str, folders), "--output", str(tmp_path / "a.png")])
    with pytest.raises(SystemExit):
        projection.main([str(finished), "--output", str(tmp_path / "a.doc")])
    assert "expected a file that ends in .png, .svg, .pdf" in capsys.readouterr().err
    copy = shutil.copytree(finished, tmp_path / "sweep" / "copy")
    (copy / "stages" / "0-transfer" / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(SystemExit, match=r"best\.ckpt: no such file"):
        projection.main([str(tmp_path / "sweep"), "--output", str(tmp_path / "a.png")])
    (copy / "metrics.json").unlink()
    with pytest.raises(SystemExit, match="copy: unfinished"):
        projection.main([str(finished), str(tmp_path / "sweep"), "--output", str(tmp_path / "a.png")])


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
