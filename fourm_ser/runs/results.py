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
from fourm_ser.files import finite, write_json, write_table
from fourm_ser.runs.directory import PREDICTED, RunDirectory
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
        figures: paths of the figures.
    """

    metrics: dict[str, Any]
    emotions: list[str]
    labels: list[int]
    predicted: list[int]
    predictions: pd.DataFrame
    figures: list[Path]


def write_results(
    directory: RunDirectory,
    corpus: Corpus,
    metrics: Mapping[str, Any],
    index: np.ndarray,
    probabilities: np.ndarray,
) -> Results:
    """Write what a run leaves; metrics.json last, for it says that the run has finished.

    Args:
        directory: the run directory.
        corpus: the run's corpus.
        metrics: flat metrics; what is undefined becomes null, and the log says why.
        index: (n,) positions of the test utterances in the manifest.
        probabilities: (n, classes).
    """
    labels, predicted = corpus.label[index], probabilities.argmax(1)
    predictions = predictions_frame(corpus, corpus.emotions, index, probabilities)
    write_table(directory.predictions, predictions)

    counts = confusion_counts(labels, predicted, len(corpus.emotions))
    save_figure(confusion_figure(counts, corpus.emotions), directory.confusion_matrix)
    curves = {name: pd.read_csv(path) for name, path in directory.tables.items()}
    if curves:
        save_figure(curves_figure(curves), directory.training_curves)
    figures = [directory.confusion_matrix, *([directory.training_curves] if curves else [])]

    for reason in undefined(metrics):
        log.info("metrics.json: %s", reason)
    written = {**finite(metrics), "finished": True}
    write_json(directory.metrics, written)
    return Results(written, corpus.emotions, labels.tolist(), predicted.tolist(), predictions, figures)


def predictions_frame(corpus: Corpus, classes: list[str], index: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """What predictions.csv holds: the columns `PREDICTED`, then the probability of each class.

    Args:
        corpus: the corpus.
        classes: the classes in the order of the probabilities.
        index: (n,) positions of the utterances in the manifest.
        probabilities: (n, classes).
    """
    known = corpus.frame[PREDICTED[:-1]].iloc[index].reset_index(drop=True)
    predicted = pd.DataFrame({PREDICTED[-1]: [classes[label] for label in probabilities.argmax(1)]})
    return pd.concat([known, predicted, pd.DataFrame(probabilities, columns=classes)], axis=1)


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many utterances of each class (rows) were taken for each (columns): (classes, classes).

    Args:
        labels: (n,) class indices.
        predicted: (n,) class indices.
        classes: number of classes.
    """
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


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
