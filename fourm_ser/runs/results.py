"""What a finished run leaves for people and programs: metrics.json, predictions.csv, figures."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich import get_console

from fourm_ser.data.corpus import Corpus
from fourm_ser.errors import InputError
from fourm_ser.figures import confusion_figure, curves_figure, save_figure
from fourm_ser.files import finite, write_json, write_table
from fourm_ser.models.inference import Outputs
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.runs.directory import PREDICTED, RunDirectory, confusion_counts, read_epochs_table
from fourm_ser.terminal import make_table, near, say

log = logging.getLogger(__name__)


class Results(NamedTuple):
    """A finished run.

    Attributes:
        metrics: what metrics.json holds.
        emotions: the classes in the order of their indices.
        outputs: what the network makes of the test side.
        predictions: what predictions.csv holds.
        figures: paths of the figures.
    """

    metrics: dict[str, Any]
    emotions: list[str]
    outputs: Outputs
    predictions: pd.DataFrame
    figures: list[Path]


def gather_metrics(
    corpus: Corpus, network: EmotionNetwork, outputs: Mapping[str, Outputs], encoded: Mapping[str, int]
) -> dict[str, Any]:
    """What metrics.json says of every run.

    Args:
        corpus: The corpus, set up.
        network: What was tested.
        outputs: What it makes of the sides `test` and `val`.
        encoded: How many utterances the run put into the store, by modality.
    """
    origins = [encoder.weights for encoder in network.by_modality.values()]
    return {
        **{f"{side}/{name}": value for side in ("test", "val") for name, value in outputs[side].metrics.items()},
        **corpus.protocol_record(),
        "weights": origins[0] if len(set(origins)) == 1 else "+".join(origins),
        **{f"encoded/{modality}": count for modality, count in encoded.items()},
    }


def write_results(directory: RunDirectory, corpus: Corpus, metrics: Mapping[str, Any], outputs: Outputs) -> Results:
    """Write what a run leaves of its test side; metrics.json last, for it says that the run has finished."""
    headline = told_results(metrics, "test")
    predictions = write_predictions(directory, corpus, corpus.emotions, outputs, headline)
    figures = [directory.confusion_matrix]
    curves = {}
    for name, path in directory.tables.items():
        try:
            curves[name] = read_epochs_table(path)
        except InputError as error:  # of an earlier stage, which a run that goes on does not do again
            log.warning("%s is drawn without stage %s: %s", directory.training_curves.name, name, error)
    if curves:
        save_figure(curves_figure(curves, headline), directory.training_curves)
        figures.append(directory.training_curves)
    written = write_metrics(directory, {**metrics, "finished": True})
    return Results(written, corpus.emotions, outputs, predictions, figures)


def told_results(metrics: Mapping[str, Any], side: str) -> str:
    """Corpus, protocol and UA, for the title of a figure."""
    parts = [str(metrics["corpus"])] if "corpus" in metrics else []
    parts += [told_protocol(metrics)] if "split" in metrics else []
    names = {"val": "validation"}
    parts.append(f"{names.get(side, side)} UA {metrics[f'{side}/ua']:.1%}")
    return ", ".join(parts)


def told_protocol(metrics: Mapping[str, Any]) -> str:
    """The split that metrics.json records: `session fold 0`, `random split`."""
    split = str(metrics.get("split", "-"))
    return f"{split} fold {metrics.get('fold')}" if split in ("session", "speaker") else f"{split} split"


def write_predictions(
    directory: RunDirectory, corpus: Corpus, classes: list[str], outputs: Outputs, title: str = ""
) -> pd.DataFrame:
    """Write the confusion matrix and predictions.csv: the columns `PREDICTED`, then the probability of each class."""
    known = corpus.frame[PREDICTED[:-1]].iloc[outputs.rows].reset_index(drop=True)
    predicted = pd.DataFrame({PREDICTED[-1]: [classes[label] for label in outputs.predicted]})
    predictions = pd.concat([known, predicted, pd.DataFrame(outputs.probabilities, columns=classes)], axis=1)
    write_table(directory.predictions, predictions, seal=True)
    figure = confusion_figure(confusion_counts(predictions, classes), classes, title)
    save_figure(figure, directory.confusion_matrix)
    return predictions


def write_metrics(directory: RunDirectory, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Write metrics.json and return what it holds: what is undefined becomes null, and the log says why."""
    for reason in undefined(metrics):
        log.info("metrics.json: %s", reason)
    written: dict[str, Any] = finite(metrics)
    write_json(directory.metrics, written, seal=True)
    return written


def undefined(metrics: Mapping[str, Any]) -> list[str]:
    """Why metrics are no numbers, a sentence each, by their full names, such as `test/recall/anger`."""
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
    table = make_table(None, ["metric", "validation", "test"], ["validation", "test"])
    names = [key.removeprefix("test/") for key in metrics if key.startswith("test/")]
    terms = [name for name in names if name.startswith("loss/")]
    for name in names:
        if terms == [name] and metrics[f"test/{name}"] == metrics["test/loss"]:
            continue  # the only term of the loss
        values = (metrics.get(f"val/{name}"), metrics[f"test/{name}"])
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in values))
    say(f"results in {near(run_dir)}")
    get_console().print(table)
    if not metrics["speaker_independent"]:
        say("speakers of the test side were also trained on (data.split): not speaker-independent")
