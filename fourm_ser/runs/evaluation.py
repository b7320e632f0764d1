"""A trained model on any side of any corpus: metrics with intervals, tables, figures."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fourm_ser.checks import check_word
from fourm_ser.config import build, refuse_missing
from fourm_ser.data.batch import Batch
from fourm_ser.data.corpora.cross_corpus import CrossCorpus
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.data.manifest import order_emotions
from fourm_ser.devices import copies_ahead, find_device, resolve_budget, sent
from fourm_ser.errors import InputError, blamed
from fourm_ser.figures import reliability_figure, save_figure
from fourm_ser.files import finite, write_table
from fourm_ser.losses.base import Loss
from fourm_ser.models.directory import Model, load_model
from fourm_ser.models.features import Encoding
from fourm_ser.models.inference import Inference, Outputs, Step, compute_outputs
from fourm_ser.models.metrics import BINS
from fourm_ser.models.network import NetworkOutput
from fourm_ser.models.shared import fetch_model, is_hub_id
from fourm_ser.models.sources import check_transcripts, compare_cleaning, compare_languages, make_sources, summarised
from fourm_ser.runs.claims import claim, folder_name, read_training, refuse_changed, was_refit
from fourm_ser.runs.directory import PREDICTED, RunDirectory
from fourm_ser.runs.given import evaluated
from fourm_ser.runs.intervals import bootstrap
from fourm_ser.runs.resampling import FEWEST, unit_of
from fourm_ser.runs.results import told_results, write_metrics, write_predictions
from fourm_ser.terminal import busy, make_table, near, say
from fourm_ser.trust import CACHE, own_cache, read_trust

log = logging.getLogger(__name__)

BATCH = 32


def evaluate(config: DictConfig, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Evaluate, write the results and print them.

    Args:
        config: the composed config of `evaluate`.
        changes: keys below `data` that change the run's own corpus; None where `config.data` is another corpus.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: no model, no corpus, a corpus without the model's classes, a side that nobody is on, a corpus that
            changed since the run, utterances that the model was trained on.
    """
    trust = read_trust(config.get("trust"))
    record, folder, node = _find(config, changes, trust)
    training = read_training(config.run, config.model)
    if config.cache is None and record is not None:
        cache = own_cache(record.cache, RunDirectory(folder.parent).record)
    else:
        cache = Path(config.cache or CACHE).expanduser()
    model = load_model(folder, cache, trust)
    device = find_device(config.device, "device")
    with blamed(f"{config.run}: its record of the corpus") if changes is not None else nullcontext():
        corpus, classes = find_corpus(node, model.emotions, config.classes, cache)
    if "text" in model.network.by_modality and not corpus.frame["text"].str.strip().any():
        raise InputError(f"the model reads text, and no utterance of {corpus.name} has a transcript.")
    rows = corpus.rows(config.side)
    if training is not None and changes is not None:
        refuse_changed(corpus, training, changes, config.run)
    claims = claim(corpus, rows, training, config.allow_seen, was_refit(folder))
    directory = _find_place(config, changes, corpus, classes, model, training)
    resampled = unit_of(corpus.frame["speaker"].to_numpy()[rows], config.resample)
    inference = Inference(model, device, exact=record is not None)
    budgets = [resolve_budget(key, config.encode[key], device) for key in ("max_seconds", "max_tokens")]
    data = EmotionDataModule(corpus, pin_memory=copies_ahead(device), seed=0)
    compare_languages(model.network, corpus)
    compare_cleaning(model, corpus)
    check_transcripts(model.network, corpus.frame["text"].iloc[rows])
    rounding, keeps = model.conditions.encoding_tf32, model.conditions.store
    encoding = Encoding(cache, inference.encoding, budgets[0], budgets[1], device, rounding, keeps)
    sources, _ = make_sources(model.network, data, encoding)
    loss = None
    if record is not None and "loss" in record and classes == model.emotions:
        with blamed(f"{config.run}: its record of the loss"):
            loss = load_loss(RunDirectory(folder.parent), record, corpus, model)
    usual = None if record is None else RunDirectory(folder.parent).batch_size
    sources = summarised(model.network, sources, () if loss is None else loss.on)
    data.serve(sources, config.batch_size or usual or BATCH)
    batches = track(data.dataloader(rows), "evaluating", transient=True)
    outputs = compute_outputs(step_of(inference, loss, classes), batches, classes=classes, device=device)
    about = {
        **corpus.protocol_record(),
        **claims,
        "classes": classes,
        "model_classes": model.emotions,
        "side": config.side,
        "utterances": len(rows),
        "left_out": len(corpus.left_out),
        "model": str(config.model if config.run is None else config.run),
        "resamples": config.resamples,
        "resampled": resampled,
    }
    return write(directory, corpus, outputs, about, config)


def _find(
    config: DictConfig, changes: Mapping[str, Any] | None, trust: Sequence[str]
) -> tuple[DictConfig | None, Path, DictConfig]:
    """The run's record where there is a run, the model's folder, and the corpus's node."""
    run, folder = evaluated(config, other_corpus=changes is None)
    if run is None and is_hub_id(config.model):
        folder = fetch_model(config.model)
    record = None if run is None else run.read_record(trust)
    if changes is None:
        refuse_missing(config)
        return record, folder, config.data
    assert record is not None
    node = OmegaConf.create({"data": record.data})
    for key, value in changes.items():
        OmegaConf.update(node, key, value)
    return record, folder, node.data


def find_corpus(node: DictConfig, emotions: list[str], classes: str, cache: Path) -> tuple[Corpus, list[str]]:
    """The corpus under the model's classes.

    Args:
        node: the corpus's config; its `emotions` give way to the model's.
        emotions: the model's classes in the order of their indices.
        classes: `all` or `shared`: which of them the corpus has to have.
        cache: the folder for what is made once.

    Returns:
        The corpus, set up, and the classes that it is tested under, in the model's order.

    Raises:
        InputError: it lacks some of the classes and `classes` is `all`, or it has fewer than two.
    """
    check_word("classes", classes, ("all", "shared"))
    corpus: Corpus = build(node, cache=cache)
    if isinstance(corpus, CrossCorpus):
        corpus.setup()
        if corpus.emotions != emotions:
            raise InputError(
                f"{corpus.name}: its classes are {', '.join(corpus.emotions)}, the model's {', '.join(emotions)}. "
                "Evaluate on one of the two corpora by itself: data=<corpus>."
            )
        return corpus, emotions
    found = set(corpus.read().frame["emotion"].replace(corpus.label_map))
    shared = [emotion for emotion in emotions if emotion in found]
    absent = [emotion for emotion in emotions if emotion not in found]
    if len(shared) < 2 or (absent and classes == "all"):
        advice = "Fold its labels by data.label_map" + (
            "." if len(shared) < 2 else ", or test the classes that both have: classes=shared."
        )
        raise InputError(
            f"{corpus.name}: has no utterance of {', '.join(absent)}, which the model tells apart; it has "
            f"{', '.join(order_emotions(list(found)))}. {advice}"
        )
    if corpus.wanted != shared and not (corpus.wanted is None and order_emotions(list(found)) == shared):
        corpus = build(OmegaConf.merge(node, {"emotions": shared, "drop_other": True}), cache=cache)
    corpus.setup()
    return corpus, shared


def load_loss(directory: RunDirectory, record: DictConfig, corpus: Corpus, model: Model) -> Loss | None:
    """The loss that a run trained with, at its best epoch; None where its checkpoint is not there any more."""
    best = directory.chosen_stage.best
    if not best.is_file():
        log.warning("the loss is left out: %s: no such file. What it learned is read from there.", best)
        return None
    state = directory.chosen_stage.read_weights("loss")
    loss: Loss = build(record.loss)
    counts = corpus.joined().counts if record.refit else corpus.counts
    loss.setup(len(model.emotions), model.network.widths, counts)
    loss.load_state_dict(state)
    return loss.eval()


def step_of(inference: Inference, loss: Loss | None, classes: Sequence[str]) -> Step:
    """What is done with a batch: the model chooses among `classes` of its own, and the loss's terms are computed."""
    columns = [inference.emotions.index(emotion) for emotion in classes]
    loss = None if loss is None else loss.to(inference.device)

    def step(batch: Batch) -> tuple[NetworkOutput, Mapping[str, Tensor], int]:
        output = inference(batch.text, batch.audio)
        terms: Mapping[str, Tensor] = {}
        if loss is not None:
            with inference.as_trained():
                terms = loss(output.logits, output.features(loss.on), sent(batch.labels, inference.device))
        return output._replace(logits=output.logits[:, columns]), terms, len(batch.rows)

    return step


def _find_place(
    config: DictConfig,
    changes: Mapping[str, Any] | None,
    corpus: Corpus,
    classes: list[str],
    model: Model,
    training: pd.DataFrame | None,
) -> RunDirectory:
    """Where the results go, which is no run; what they replace is told."""
    if config.output is not None:
        place = RunDirectory(Path(config.output).expanduser())
    else:
        home = RunDirectory(Path() if config.run is None else Path(config.run).expanduser())
        others = [
            corpus.protocol if changes is None else {key: changes[key] for key in sorted({*changes} - {"data.fold"})},
            [] if classes == model.emotions else classes,
            "" if config.run is not None else str(Path(config.model).expanduser().absolute()),
        ]
        place = RunDirectory(home.evaluations / folder_name(corpus, config.side, training, *others))
    if place.record.is_file():
        raise InputError(
            f"output={place.path}: is a run or a model: its own results would be lost. Choose another folder."
        )
    if place.metrics.is_file():
        log.warning("%s: replaces the results of an earlier evaluation", place.path)
    return place


def write(
    directory: RunDirectory, corpus: Corpus, outputs: Outputs, about: Mapping[str, Any], config: DictConfig
) -> dict[str, Any]:
    """Write the tables and figures, and metrics.json last of all; print and return what it holds."""
    with busy("writing the results"):
        written, speakers, mistakes = _write(directory, corpus, outputs, about, config)
    show(written, outputs.metrics, speakers, mistakes.head(config.shown))
    say(f"written to {near(directory.path)}")
    return written


def _write(
    directory: RunDirectory, corpus: Corpus, outputs: Outputs, about: Mapping[str, Any], config: DictConfig
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Write, and return what metrics.json holds, the table by speaker, and the mistakes, the surest first."""
    side, classes = about["side"], about["classes"]
    numbers = {f"{side}/{name}": value for name, value in outputs.metrics.items()}
    headline = told_results({**about, **numbers}, side)
    predictions = write_predictions(directory, corpus, classes, outputs, headline)
    mistakes = surest_mistakes(predictions, corpus.frame["text"].iloc[outputs.rows].tolist())
    write_table(directory.confusions, mistakes, inert=True)
    speakers = by_speaker(predictions, classes)
    write_table(directory.speakers, speakers, inert=True)
    confidence, right = outputs.probabilities.max(1), outputs.predicted == outputs.labels
    save_figure(reliability_figure(confidence, right, outputs.metrics["ece"], BINS, headline), directory.reliability)
    groups = predictions["speaker"].to_numpy() if about["resampled"] == "speakers" else None
    times = {"resamples": config.resamples, "seed": config.seed}
    intervals = bootstrap(outputs.labels, outputs.probabilities, classes, **times, groups=groups)
    metrics = {f"{side}/{name}": value for name, value in outputs.metrics.items()}
    for name, (low, high) in intervals.items():
        metrics |= finite({f"{side}/{name}/low": low, f"{side}/{name}/high": high})
    return write_metrics(directory, {**metrics, **about, "speakers": len(speakers)}), speakers, mistakes


def surest_mistakes(predictions: pd.DataFrame, texts: list[str]) -> pd.DataFrame:
    """The utterances that were mistaken, the surest mistakes first, with their transcripts."""
    rows = predictions.to_dict("records")
    table = predictions[PREDICTED].assign(
        probability=[row[row["predicted"]] for row in rows],
        probability_of_label=[row[row["emotion"]] for row in rows],
        text=texts,
    )
    wrong = table[table["emotion"] != table["predicted"]]
    return wrong.sort_values("probability", ascending=False, kind="stable").reset_index(drop=True)


def by_speaker(predictions: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """UA, WA and the recall of each class by speaker; empty where a speaker has no utterance of a class."""
    scored = predictions.assign(right=(predictions["emotion"] == predictions["predicted"]).astype(float))
    recall = scored.pivot_table(index="speaker", columns="emotion", values="right").reindex(columns=classes)
    groups = scored.groupby("speaker")
    table = pd.DataFrame({"utterances": groups.size(), "ua": recall.mean(axis=1), "wa": groups["right"].mean()})
    return table.join(recall.add_prefix("recall/")).reset_index()


def show(metrics: Mapping[str, Any], names: Iterable[str], speakers: pd.DataFrame, mistakes: pd.DataFrame) -> None:
    """Print what metrics.json holds, of these metrics with their intervals, the speakers, and the surest mistakes."""
    console, side = Console(), metrics["side"]
    title = f"{metrics['utterances']} utterances of {metrics['corpus']}, side {side}"
    table = make_table(title, ["metric", "value", "95% interval"], ["value", "95% interval"])
    for name in names:
        value, low, high = (metrics.get(f"{side}/{name}{end}") for end in ("", "/low", "/high"))
        interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        table.add_row(name, "-" if value is None else f"{value:.4f}", interval)
    console.print(table)
    few = f": of fewer than {FEWEST} speakers ({metrics['speakers']}), they say nothing of other speakers"
    why = few if metrics["resampled"] == "utterances" and metrics["speakers"] < FEWEST else ""
    console.print(f"intervals: {metrics['resamples']} resamples of {metrics['resampled']}{why}")
    if metrics["speaker_independent"] is False:
        console.print("the model knows speakers that are tested: not speaker-independent")
    if metrics["classes"] != metrics["model_classes"]:
        console.print(f"the model chose among {', '.join(metrics['classes'])} alone (classes=shared)")
    console.print(_plain(speakers.rename(columns=lambda name: name.removeprefix("recall/")), "by speaker: recalls"))
    if len(mistakes):
        columns = ["id", "emotion", "predicted", "probability", "text"]
        console.print(_plain(mistakes[columns], "the surest mistakes"))


def _plain(frame: pd.DataFrame, title: str) -> Table:
    numbers = [name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])]
    table = make_table(title, frame.columns, numbers, overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*("" if pd.isna(v) else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row))
    return table
