"""What a finished run leaves for people and programs: metrics.json, predictions.csv, figures."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console

from fourm_ser.data.corpus import Corpus
from fourm_ser.figures import confusion_figure, curves_figure, save_figure
from fourm_ser.files import finite, whole, write_json
from fourm_ser.terminal import make_table

log = logging.getLogger(__name__)


class Results(NamedTuple):
    """A finished run.

    Attributes:
        metrics: what metrics.json holds.
        emotions: the classes in the order of their indices.
        labels: class index of each test utterance.
        predicted: the same as predicted.
        predictions: what predictions.csv holds.
        figures: paths of the figures by name.
    """

    metrics: dict[str, Any]
    emotions: list[str]
    labels: list[int]
    predicted: list[int]
    predictions: pd.DataFrame
    figures: dict[str, Path]


def write_results(
    run_dir: Path,
    corpus: Corpus,
    metrics: Mapping[str, Any],
    index: np.ndarray,
    probabilities: np.ndarray,
    stages: list[Path],
) -> Results:
    """Write what a run leaves; metrics.json last, for it says that the run has finished.

    Args:
        run_dir: the run directory.
        corpus: the run's corpus.
        metrics: flat metrics; what is undefined becomes null, and the log says why.
        index: (n,) positions of the test utterances in the manifest.
        probabilities: (n, classes).
        stages: the stages' folders in order.
    """
    rows = corpus.frame.iloc[index]
    predicted = probabilities.argmax(1)
    predictions = rows[["id", "speaker", "emotion"]].reset_index(drop=True)
    predictions["predicted"] = [corpus.emotions[label] for label in predicted]
    for place, emotion in enumerate(corpus.emotions):
        predictions[emotion] = probabilities[:, place]
    with whole(run_dir / "predictions.csv") as temporary:
        predictions.to_csv(temporary, index=False)

    labels = corpus.label[index]
    counts = np.zeros((len(corpus.emotions), len(corpus.emotions)), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    curves = {stage.name: pd.read_csv(stage / "metrics.csv") for stage in stages if (stage / "metrics.csv").is_file()}
    figures = {"confusion_matrix": run_dir / "confusion_matrix.png"}
    save_figure(confusion_figure(counts, corpus.emotions), figures["confusion_matrix"])
    if curves:
        figures["training_curves"] = run_dir / "training_curves.png"
        save_figure(curves_figure(curves), figures["training_curves"])

    for reason in undefined(metrics):
        log.info("metrics.json: %s", reason)
    written = {**finite(metrics), "finished": True}
    write_json(run_dir / "metrics.json", written)
    return Results(written, corpus.emotions, labels.tolist(), predicted.tolist(), predictions, figures)


def undefined(metrics: Mapping[str, Any]) -> list[str]:
    """Why metrics are no numbers, a sentence each.

    Args:
        metrics: flat metrics by their full names, such as `test/recall/anger`.
    """
    reasons = []
    for name, value in metrics.items():
        if not isinstance(value, float) or math.isfinite(value):
            continue
        if "/recall/" in name:
            why = "no utterance has that emotion"
        elif name.endswith("/intra_inter"):
            why = "the means of the classes that occur coincide, or fewer than two occur"
        else:
            why = f"it is {value}"
        reasons.append(f"{name} is null: {why}")
    return reasons


def print_results(metrics: Mapping[str, Any], run_dir: Path) -> None:
    """The closing table of the validation and test metrics."""
    table = make_table(f"results in {run_dir}", ["metric", "validation", "test"], ["validation", "test"])
    for name in [key.removeprefix("test/") for key in metrics if key.startswith("test/")]:
        values = (metrics.get(f"val/{name}"), metrics[f"test/{name}"])
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in values))
    Console().print(table)
    if not metrics["speaker_independent"]:
        Console().print("speakers of the test side were also trained on (data.split): not speaker-independent")
