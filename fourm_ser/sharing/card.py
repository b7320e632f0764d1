"""The model card of a run: what it was trained on, how well it does, how sure that is, and what it is not for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import DictConfig, OmegaConf

from fourm_ser import __version__
from fourm_ser.models.metrics import BINS
from fourm_ser.runs.directory import PREDICTED, RunDirectory, confusion_counts
from fourm_ser.runs.intervals import bootstrap
from fourm_ser.runs.resampling import FEWEST, unit_of

HEADLINES = {
    "ua": "UA, the mean of the emotions' recalls",
    "wa": "WA, accuracy",
    "f1_macro": "F1, mean over the emotions",
    "f1_weighted": "F1, weighted by their utterances",
    "ece": f"calibration error (ECE, {BINS} bins)",
}
PRIVATE = ("cache", "logger", "resume", "sweep")  # keys of a record that say nothing of the model
HIDDEN = "(a path)"
FOLDER = "a folder of whoever trained it"


class Weights(NamedTuple):
    """Where the weights of an encoder come from.

    Attributes:
        modality: What it reads.
        name: What the encoder is called.
        source: Hub id with its commit, or url, or `FOLDER`; None for random weights.
        licence: As the hub says it; None where that is not known.
        included: Whether they are in the model directory, and not fetched from their source.
    """

    modality: str
    name: str
    source: str | None
    licence: str | None
    included: bool


def make_card(
    run: RunDirectory,
    *,
    repo: str,
    weights: Sequence[Weights],
    licence: str | None,
    resamples: int,
    seed: int,
) -> ModelCard:
    """The card of a finished run's model, whose text is Markdown and whose head is the hub's metadata.

    Args:
        run: The run.
        repo: `<user>/<name>` on the hub.
        weights: Where each encoder's weights come from.
        licence: An identifier of the hub's list of licences; None for none.
        resamples: How many resamples intervals are from.
        seed: Seed of these.

    Raises:
        InputError: its results are damaged.
        OSError: it has no results.
        ValueError: its predictions are damaged.
    """
    record, metrics = run.peek_record(), run.read_results()
    table = pd.read_csv(run.predictions, dtype=dict.fromkeys(PREDICTED, str), keep_default_na=False)
    emotions = [name for name in table.columns if name not in PREDICTED]
    labels = table["emotion"].map({emotion: place for place, emotion in enumerate(emotions)}).to_numpy()
    probabilities = table[emotions].to_numpy(dtype=float)
    unit = unit_of(table["speaker"].to_numpy())
    groups = table["speaker"].to_numpy() if unit == "speakers" else None
    ends = bootstrap(labels, probabilities, emotions, resamples=resamples, seed=seed, groups=groups)
    environment = Environment(
        loader=PackageLoader("fourm_ser", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    text = environment.get_template("sharing/card.md.j2").render(
        repo=repo,
        version=__version__,
        emotions=emotions,
        modalities=list(record.fusion.modalities) or ["audio"],
        record=record,
        metrics=metrics,
        scores=[(told, *_with_interval(metrics, ends, name)) for name, told in HEADLINES.items()],
        recalls=[
            (emotion, *_with_interval(metrics, ends, f"recall/{emotion}"), int((labels == place).sum()))
            for place, emotion in enumerate(emotions)
        ],
        unit=unit,
        few=unit == "utterances" and table["speaker"].nunique() < FEWEST,
        resamples=resamples,
        speakers=table["speaker"].nunique(),
        bins=reliability(labels, probabilities),
        confusions=confusion_counts(table, emotions).tolist(),
        sides=_sides(run, emotions),
        weights=weights,
        config=OmegaConf.to_yaml(OmegaConf.create(without_places(OmegaConf.to_container(record)))),
    )
    metadata = _metadata(repo, record, metrics, weights, licence)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}")


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[float, float, int, float, float]]:
    """How often a model is right where it is so sure: of each bin of confidence in which there are utterances.

    Args:
        labels: (n,) class indices.
        probabilities: (n, classes).

    Returns:
        The bin's ends, how many utterances are in it, their mean confidence, and the share that is right.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        (place / BINS, (place + 1) / BINS, int(own.sum()), float(confidence[own].mean()), float(right[own].mean()))
        for place in range(BINS)
        if (own := bins == place).any()
    ]


def without_places(node: Any) -> Any:
    """A record in plain values without the paths of the machine that it was made on, and without its `PRIVATE` keys."""
    if isinstance(node, Mapping):
        return {key: without_places(value) for key, value in node.items() if key not in PRIVATE}
    if isinstance(node, list):
        return [without_places(value) for value in node]
    return HIDDEN if is_place(node) else node


def is_place(value: Any) -> bool:
    """Whether a value of a config is a path of the machine that it was made on."""
    return isinstance(value, str) and (value.startswith(("/", "~", "./", "../", "\\")) or value[1:3] in (":\\", ":/"))


def cell(text: Any) -> str:
    """A text of the run's data in Markdown, on one line, as it stands: no markup of it is one."""
    told = "".join(f"&#{ord(sign)};" if sign in "&<>|`*_[]\\" else sign for sign in str(text))
    return " ".join(told.split())


def _with_interval(metrics: Mapping[str, Any], ends: Mapping[str, tuple[float, float]], name: str) -> tuple[str, str]:
    """A metric of the test in per cent, and its 95% interval."""
    value, (low, high) = metrics.get(f"test/{name}"), ends[name]
    if value is None or np.isnan(low):
        return "-", "-"
    return f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"


def _sides(run: RunDirectory, emotions: Sequence[str]) -> list[tuple[str, int, int, str]]:
    """Of each side its name, utterances, speakers, and utterances an emotion; none where the run did not record it."""
    corpus = run.read_corpus()
    if corpus is None:
        return []
    named = {"train": "trained on", "val": "validated on", "test": "tested on"}
    return [
        (told, len(own), own["speaker"].nunique(), _counted(own["emotion"], emotions))
        for side, told in named.items()
        if len(own := corpus[corpus["side"] == side])
    ]


def _counted(labels: pd.Series, emotions: Sequence[str]) -> str:
    return ", ".join(f"{cell(emotion)} {(labels == emotion).sum()}" for emotion in emotions)


def _metadata(
    repo: str, record: DictConfig, metrics: Mapping[str, Any], weights: Sequence[Weights], licence: str | None
) -> ModelCardData:
    """The head of the card, as the hub reads it."""
    corpus = str(metrics.get("corpus", "unknown"))
    kinds = {"test/ua": ("recall", "UA"), "test/wa": ("accuracy", "WA"), "test/f1_macro": ("f1", "macro F1")}
    found = [
        EvalResult(
            task_type="audio-classification",
            dataset_type=corpus,
            dataset_name=corpus,
            metric_type=kind,
            metric_name=name,
            metric_value=metrics[key],
        )
        for key, (kind, name) in kinds.items()
        if metrics.get(key) is not None
    ]
    hub = [
        each.source.partition("@")[0]
        for each in weights
        if each.source not in (None, FOLDER) and "://" not in each.source
    ]
    spoken = record.data.get("language")
    return ModelCardData(
        base_model=hub or None,
        eval_results=found,
        language=list(spoken) if isinstance(spoken, Sequence) and not isinstance(spoken, str) else spoken,
        library_name="fourm_ser",
        license=licence,
        metrics=[kind for kind, _ in kinds.values()],
        model_name=Path(repo).name,
        pipeline_tag="audio-classification",
        tags=["speech-emotion-recognition", *record.fusion.modalities],
    )
