"""What a run leaves behind."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from fourm_ser.data.corpus import Corpus
from fourm_ser.figures import CURVES
from fourm_ser.models.inference import Outputs
from fourm_ser.runs import results
from fourm_ser.runs.directory import RunDirectory
from tests.drawn import Drawn, marks, pixels, written

EMOTIONS = ["anger", "happiness", "sadness"]


def test_the_figures_of_a_run_are_of_its_predictions_and_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, 40)
    label[:8] = 0  # no matrix is its own transpose by chance
    frame = pd.DataFrame({"id": [f"u{n}" for n in range(40)], "speaker": "s1", "emotion": np.array(EMOTIONS)[label]})
    corpus = cast(Corpus, SimpleNamespace(frame=frame, emotions=EMOTIONS))
    probabilities = generator.dirichlet(np.ones(3), 35)
    likeliest = probabilities.argmax(1)
    outputs = SimpleNamespace(rows=np.arange(5, 40), labels=label[5:], probabilities=probabilities, predicted=likeliest)
    table = pd.DataFrame({"epoch": range(3), "train/loss": [1.4, 1.2, 1.1], "val/loss": [1.5, 1.3, 1.35]})
    table["val/ua"], table["val/wa"] = [0.3, 0.6, 0.5], [0.2, 0.5, 0.55]
    epochs = RunDirectory(tmp_path).stage(0, "transfer").epochs
    epochs.parent.mkdir(parents=True)
    table.to_csv(epochs, index=False)
    saved = dict[str, Figure]()
    monkeypatch.setattr(results, "save_figure", lambda figure, path: saved.update({path.stem: figure}))
    results.write_results(RunDirectory(tmp_path), corpus, {"test/ua": 0.5}, cast(Outputs, outputs))
    Drawn(saved["confusion_matrix"])
    counts = {place: text.split("\n")[0] for place, text in written(saved["confusion_matrix"].axes[0]).items()}
    assert counts == {
        (EMOTIONS[row], EMOTIONS[column]): str(int(((label[5:] == row) & (likeliest == column)).sum()))
        for row, column in product(range(3), repeat=2)
    }
    Drawn(saved["training_curves"])
    upper, lower = saved["training_curves"].axes
    for axes, key in ((upper, "train/loss"), (upper, "val/loss"), (lower, "val/ua"), (lower, "val/wa")):
        (line,) = [line for line in axes.lines if line.get_label() == CURVES[key]]
        assert marks(line)[:, 1] == pytest.approx(pixels(axes.yaxis, table[key].to_numpy()), abs=0.5)
