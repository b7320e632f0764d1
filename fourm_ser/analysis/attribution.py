"""Which words and which moments of an utterance speak for the emotion that a network gives it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from torch import Tensor

from fourm_ser import SAMPLE_RATE
from fourm_ser.analysis.attention_shares import MODALITY_COLOURS
from fourm_ser.analysis.examples import Example, draw_waveform, file_stem, read_waveform, told_pooling
from fourm_ser.analysis.findings import Finding
from fourm_ser.analysis.spectrogram import frame_edges
from fourm_ser.analysis.word_cells import INCHES, count_lines, draw_words, prepare_axes
from fourm_ser.analysis.words import Words, words_of
from fourm_ser.encoders.base import Features
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.runs.finished import OpenRun

HELD = 2**22  # numbers in the features of the steps that are computed together: 16 MB, and what gradients take beside
TOGETHER = 64  # steps computed together at most, however short the utterance
DIVERGING = "RdBu_r"  # red speaks for, blue against: told apart by colour-blind readers
FOR, AGAINST = "#b2182b", "#2166ac"


class Attribution(NamedTuple):
    """What the parts of an utterance add to the logit of the emotion that it is given.

    Attributes:
        values: (frames or tokens,) by modality; all together they are `logit` - `reference`, but for the gap.
        logit: the predicted emotion's logit.
        reference: the predicted emotion's logit where every token and frame is the average one.
        average_class: the emotion that an utterance of average tokens and frames is given.
        steps: the number of steps on the path from the average utterance.
    """

    values: dict[str, np.ndarray]
    logit: float
    reference: float
    average_class: int
    steps: int

    @property
    def sums(self) -> dict[str, float]:
        """What each modality adds."""
        return {modality: float(values.sum()) for modality, values in self.values.items()}

    @property
    def gap(self) -> float:
        """How far all values together are from what they should be, as a share of it (completeness)."""
        difference = self.logit - self.reference
        return abs(sum(self.sums.values()) - difference) / max(abs(difference), 1e-12)


def attribution(
    run: OpenRun, examples: Sequence[Example], side: str, steps: int, tolerance: float, most_steps: int
) -> list[Finding]:
    """Integrated gradients (Sundararajan et al. 2017) of the predicted emotion's logit, over words and time.

    Text and audio go the path together. It leads over the features of the encoders' stems, which are the frames that
    the store holds: they lie where they were spoken, while behind an LSTM every frame has heard the whole utterance.
    (Behind a transformer they have heard it in the stem, whatever is chosen.)

    The path begins at the average token and frame of the side, at every position. Zero would be no utterance at all:
    the fusions' layer norms do not change with the scale of what they are given, so that on a line from zero nothing
    happens but for one jump at its beginning, which no number of steps meets. The reference is as long as the
    utterance: what its length tells is a part of the reference.

    Args:
        run: the run.
        examples: the utterances that are explained, all of the side.
        side: the side at whose average token and frame the path begins.
        steps: the number of steps on the path at first.
        tolerance: the completeness gap that is small enough, as a share; while it is larger, steps are doubled.
        most_steps: the number of steps that doubling stops at.

    Returns:
        A finding an utterance, and `attribution-modalities` over all of them.
    """
    if not examples:
        return []
    features, average = read_features(run, [example.row for example in examples], side)
    findings, found = [], []
    for number, example in enumerate(examples, start=1):
        target = run.emotions.index(example.predicted)
        own = features[example.row]
        result = attribute(
            run.network, own, average, target=target, steps=steps, tolerance=tolerance, most_steps=most_steps
        )
        found.append(result)
        findings.append(_draw(run, number, example, result, tolerance))
    return [*findings, _draw_modalities(run.emotions, examples, found, tolerance)]


@torch.no_grad()
def read_features(
    run: OpenRun, rows: Sequence[int], side: str
) -> tuple[dict[int, dict[str, Tensor]], dict[str, Tensor]]:
    """The stems' features of some utterances, and the average over all frames of the side that they are on.

    Returns:
        By row and modality, features (time, stem_dim); by modality, (stem_dim,): every token or frame counts alike.
    """
    kept = {row: dict[str, Tensor]() for row in rows}
    sums, counts = dict[str, Tensor](), Counter[str]()
    everyone = run.corpus.rows(side)
    for row, modality, features in stem_features(run, everyone, run.network.by_modality, f"{run.name}, features"):
        own = features.cpu().double()  # MPS has no float64
        sums[modality] = sums.get(modality, 0.0) + own.sum(0)
        counts[modality] += len(own)
        if row in kept:
            kept[row][modality] = features
    return kept, {modality: (total / counts[modality]).float().to(run.device) for modality, total in sums.items()}


def stem_features(
    run: OpenRun, rows: np.ndarray, modalities: Iterable[str], doing: str = ""
) -> Iterator[tuple[int, str, Tensor]]:
    """Row, modality and features of utterances at some rows: what the stem gives, (time, stem_dim), without padding."""
    for batch in run.batches(run.network, rows, doing):
        for modality in modalities:
            inputs = batch._asdict()[modality]
            encoder = run.network.by_modality[modality]
            found = inputs if isinstance(inputs, Features) else encoder.stem_features(inputs)
            for row, features, mask in zip(batch.rows.tolist(), found.features, found.mask, strict=True):
                yield row, modality, features[mask].float()


def attribute(
    network: EmotionNetwork,
    features: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    *,
    target: int,
    steps: int,
    tolerance: float,
    most_steps: int,
) -> Attribution:
    """Integrated gradients of one logit of one utterance, summed over each frame's features.

    Args:
        network: the network, in evaluation mode.
        features: (time, stem_dim) features of the stems, by modality.
        average: (stem_dim,) token or frame that the path begins at, by modality.
        target: the class whose logit is explained.
        steps: the number of steps on the path at first.
        tolerance: the completeness gap that is small enough, as a share; while it is larger, steps are doubled.
        most_steps: the number of steps that doubling stops at.
    """
    from captum.attr import IntegratedGradients

    modalities = list(network.by_modality)

    def logits(*given: Tensor) -> Tensor:
        whole = {
            modality: Features(tensor, torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device))
            for modality, tensor in zip(modalities, given, strict=True)
        }
        return network(whole.get("text"), whole.get("audio")).logits

    inputs = tuple(features[modality][None] for modality in modalities)
    references = tuple(average[modality].expand_as(features[modality])[None].clone() for modality in modalities)
    together = max(1, min(TOGETHER, HELD // sum(tensor.numel() for tensor in inputs)))
    # cuDNN's LSTM has no backward pass in evaluation mode.
    with torch.backends.cudnn.flags(enabled=False):
        with torch.no_grad():
            own, average_logits = logits(*inputs)[0], logits(*references)[0]
        ends = float(own[target]), float(average_logits[target]), int(average_logits.argmax())
        method = IntegratedGradients(logits)
        while True:
            parts = method.attribute(
                inputs, baselines=references, target=target, n_steps=steps, internal_batch_size=together
            )
            values = {
                modality: part.detach()[0].cpu().double().sum(1).numpy()
                for modality, part in zip(modalities, parts, strict=True)
            }
            found = Attribution(values, *ends, steps)
            if found.gap <= tolerance or steps >= most_steps:
                return found
            steps = min(2 * steps, most_steps)


def _draw(run: OpenRun, number: int, example: Example, found: Attribution, tolerance: float) -> Finding:
    words, edges, tables = None, None, []
    samples = read_waveform(run, example) if "audio" in found.values else None
    if "text" in found.values:
        words = words_of(run.network.by_modality["text"], example.text)
        own = words.sum(found.values["text"])
        tables.append(pd.DataFrame({"modality": "text", "word": words.names, "attribution": own}))
    if samples is not None:
        values = found.values["audio"]
        edges = frame_edges(run.network.by_modality["audio"], samples, len(values))
        times = {"start": edges[:-1].round(3), "end": edges[1:].round(3)}
        tables.append(pd.DataFrame({"modality": "audio", **times, "attribution": values}))
    for part in tables:
        part.insert(1, "number", range(1, len(part) + 1))
    table = pd.concat(tables, ignore_index=True)
    said = _in_words(example, found, tolerance)
    average = run.emotions[found.average_class]
    same = (
        f" The average utterance is taken for {average} itself: what is shown is only what goes beyond that."
        if average == example.predicted
        else f" The average utterance is taken for {average}."
    )
    what = " and ".join({"text": "words", "audio": "moments"}[modality] for modality in found.values).capitalize()
    return Finding(
        f"attribution-{file_stem(number, example)}",
        f"What speaks for {example.predicted} in {example.id}",
        f"Chosen: {example.why}. {said}{same} Red speaks for {example.predicted}, blue against it."
        + told_pooling(run.network),
        table,
        _figure(example, found, said, words, samples, edges),
        f"{what} of the utterance “{example.text}”, coloured by what they add to the logit of {example.predicted}.",
        _strongest(table),
    )


def _in_words(example: Example, found: Attribution, tolerance: float) -> str:
    parts = ", ".join(f"{modality} {value:+.2f}" for modality, value in found.sums.items())
    met = "" if found.gap <= tolerance else f", more than the {100 * tolerance:g}% that were wanted"
    return (
        f"Logit of {example.predicted} {found.logit:.2f}, of the average utterance {found.reference:.2f}; {parts}; "
        f"gap {100 * found.gap:.2g}% with {found.steps:,} steps{met}."
    )


def _figure(
    example: Example,
    found: Attribution,
    said: str,
    words: Words | None,
    samples: np.ndarray | None,
    edges: np.ndarray | None,
) -> Figure:
    lines = count_lines(words.names) if words is not None else 0
    heights = [0.9, 1.4] * (samples is not None) + [INCHES * (lines + 0.2), 0.12] * (words is not None)
    figure = Figure(figsize=(9.5, sum(heights) + 0.95 + 0.7 * (samples is not None)), layout="constrained")
    axes = list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if samples is not None and edges is not None:
        draw_waveform(axes[0], samples)
        _draw_time(axes[1], edges, found.values["audio"], len(samples))
        axes = axes[2:]
    if words is not None:
        values = words.sum(found.values["text"])
        norm = CenteredNorm(0.0, max(float(np.abs(values).max()), 1e-12))
        palette = colormaps[DIVERGING]
        prepare_axes(axes[0], lines)
        draw_words(axes[0], words.names, values.tolist(), lambda value: palette(norm(value)))
        bar = figure.colorbar(ScalarMappable(norm, palette), cax=axes[1], orientation="horizontal")
        bar.set_label("words: added to the logit", fontsize="small")
        axes[1].tick_params(labelsize="x-small")
    figure.suptitle(f"{example.heading}\n{said}", fontsize="small")
    return figure


def _draw_time(axes: Axes, edges: np.ndarray, values: np.ndarray, samples: int) -> None:
    """What each frame adds, per second: frames may differ in length, and areas are what counts."""
    height = values / np.maximum(np.diff(edges), 1e-9)
    for sign, colour in ((1, FOR), (-1, AGAINST)):
        axes.stairs(np.where(sign * height > 0, height, 0.0), edges, fill=True, color=colour)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xlim(0, samples / SAMPLE_RATE)
    axes.set_xlabel("seconds", fontsize="small")
    axes.set_ylabel("audio: added to\nthe logit, per second", fontsize="small")
    axes.tick_params(labelsize="small")
    axes.grid(alpha=0.3)


def _strongest(table: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """The words and frames that add or take most."""
    largest = table.sort_values("attribution", key=abs, ascending=False, kind="stable")
    largest = largest.groupby("modality", sort=False).head(count)
    names = [
        f"{row['start']:.2f} to {row['end']:.2f} s" if row["modality"] == "audio" else str(row["word"])
        for row in largest.to_dict("records")
    ]
    shown = largest[["modality"]].assign(what=names, attribution=largest["attribution"])
    return shown.sort_values("modality", ascending=False, kind="stable").reset_index(drop=True)


def _draw_modalities(
    emotions: Sequence[str], examples: Sequence[Example], found: Sequence[Attribution], tolerance: float
) -> Finding:
    rows = [
        {
            "id": example.id,
            "emotion": example.emotion,
            "predicted": example.predicted,
            "logit": result.logit,
            "reference": result.reference,
            "average_predicted": emotions[result.average_class],
            **result.sums,
            "gap": result.gap,
            "steps": result.steps,
            "complete": result.gap <= tolerance,
        }
        for example, result in zip(examples, found, strict=True)
    ]
    table = pd.DataFrame(rows)
    modalities = list(found[0].sums)
    figure = Figure(figsize=(7.5, 0.42 * len(examples) + 1.3), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(examples))
    thick = 0.8 / len(modalities)
    for number, modality in enumerate(modalities):
        offset = (number - (len(modalities) - 1) / 2) * thick
        sums = [result.sums[modality] for result in found]
        axes.barh(positions + offset, sums, 0.9 * thick, color=MODALITY_COLOURS[modality], label=modality)
    names = [
        f"{example.id}: {example.predicted}"
        + ("" if example.emotion == example.predicted else f" (label: {example.emotion})")
        for example in examples
    ]
    axes.set_yticks(positions, names, fontsize="small")
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel("added to the logit of the predicted emotion", fontsize="small")
    axes.tick_params(labelsize="small")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small")
    short = [str(row["id"]) for row in rows if not row["complete"]]
    gaps = (
        f"The largest completeness gap is {100 * max(result.gap for result in found):.2g}%."
        if not short
        else f"The gap stays above {100 * tolerance:g}% for {', '.join(short)}: read them with care."
    )
    return Finding(
        "attribution-modalities",
        "What each modality adds",
        gaps,
        table,
        figure,
        "A bar for each modality of each utterance: what it adds to the logit of the predicted emotion.",
        method="Integrated gradients from the average utterance to each of these, summed by modality: what text and "
        "audio add to the logit of the emotion that the network chose.",
    )
