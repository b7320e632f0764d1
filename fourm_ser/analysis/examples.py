"""The utterances that are looked at closely: which they are, and what one sees of each."""

import re
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from scipy.special import logsumexp

from fourm_ser import SAMPLE_RATE
from fourm_ser.errors import InputError
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.runs.finished import OpenRun

BINS = 1200  # stretches of a drawn waveform: about one a pixel of the figure's width


class Example(NamedTuple):
    """An utterance.

    Attributes:
        row: the utterance's position in the manifest.
        id: the utterance's id.
        text: the transcript.
        seconds: the utterance's length, as far as the run reads it.
        emotion: the label.
        predicted: the emotion that the trained network gives the utterance.
        probability: the probability of the predicted emotion.
        why: the reason why the utterance was chosen, in a few words.
    """

    row: int
    id: str
    text: str
    seconds: float
    emotion: str
    predicted: str
    probability: float
    why: str

    @property
    def title(self) -> str:
        """Its id, label and prediction."""
        right = self.emotion == self.predicted
        result = f"{self.emotion}, recognised" if right else f"{self.emotion}, taken for {self.predicted}"
        return f"{self.id}: {result} (probability {self.probability:.2f})"

    @property
    def heading(self) -> str:
        """The title, and the transcript below it."""
        return f"{self.title}\n{textwrap.fill(self.text, 100) or '(no words)'}"


def choose_examples(run: OpenRun, side: str, ids: Sequence[str], each: int, mistakes: int) -> list[Example]:
    """The utterances that are named; without names the surest of each emotion, and the surest mistakes.

    How sure a network is of an emotion is measured by the emotion's log-odds: probabilities near 1 are all alike.

    Args:
        run: the run that recognised them.
        side: the side where utterances are looked for.
        ids: ids of the utterances that are wanted, in their order; none to choose.
        each: the number of recognised utterances of each emotion.
        mistakes: the number of utterances that are taken for another emotion.

    Raises:
        InputError: There is no such utterance on that side.
    """
    features = run.features(run.trained, side)
    frame = run.corpus.frame.iloc[features.rows]
    others, cells = features.logits.astype(np.float64), (np.arange(len(frame)), features.predicted)
    sure = others[cells]
    others[cells] = -np.inf
    sure -= logsumexp(others, axis=1)
    right = features.predicted == features.labels

    def example(position: int, why: str) -> Example:
        utterance = frame.iloc[position]
        predicted = int(features.predicted[position])
        return Example(
            int(features.rows[position]),
            str(utterance["id"]),
            str(utterance["text"]),
            float(utterance["seconds"]),
            run.emotions[features.labels[position]],
            run.emotions[predicted],
            float(features.probabilities[position, predicted]),
            why,
        )

    if ids:
        positions = {key: position for position, key in enumerate(frame["id"])}
        unknown = [key for key in dict.fromkeys(ids) if key not in positions]
        if unknown:
            raise _not_there(unknown, run, side)
        return [example(positions[key], "asked for by its id") for key in dict.fromkeys(ids)]
    order = np.argsort(-sure, kind="stable")
    chosen = []
    for label, emotion in enumerate(run.emotions):
        own = [position for position in order if right[position] and features.labels[position] == label]
        chosen += [
            example(position, f"the surest {emotion}" if each == 1 else f"among the surest of {emotion}")
            for position in own[:each]
        ]
    wrong = [position for position in order if not right[position]]
    return chosen + [example(position, "among the surest mistakes") for position in wrong[:mistakes]]


def _not_there(unknown: Sequence[str], run: OpenRun, side: str) -> InputError:
    rows = np.flatnonzero(run.corpus.frame["id"] == unknown[0])
    sides = [name for name in ("train", "val", "test") if np.isin(rows, getattr(run.corpus.split, name)).any()]
    where = f"it is on the side {sides[0]}: choose that" if sides else "expected ids of the corpus's manifest"
    more = f" ({len(unknown)} such ids)" if len(unknown) > 1 else ""
    return InputError(f"utterance {unknown[0]}: not on the side {side} of {run.name}{more}; {where}.")


def file_stem(number: int, example: Example) -> str:
    """What stands for an utterance in the name of a file: its number, and its id as far as a name may hold it."""
    plain = re.sub(r"[^\w.-]+", "_", example.id)
    return f"{number}-{plain}"


def read_waveform(run: OpenRun, example: Example) -> np.ndarray:
    """The utterance as the run reads it: [samples] at 16 kHz."""
    return run.data.readers()["audio"](example.row)


def told_pooling(network: EmotionNetwork) -> str:
    """A sentence, with a blank before it, that says which features are no sequence over time; empty where all are."""
    pooled = [modality for modality, encoder in network.by_modality.items() if encoder.pooling != "none"]
    if not pooled:
        return ""
    return f" The {' and the '.join(pooled)} features are pooled over time (encode.pool): the whole utterance is one."


def draw_waveform(axes: Axes, samples: np.ndarray) -> None:
    """A waveform [samples] at 16 kHz over its seconds, as the range of each short stretch."""
    starts = np.unique(np.linspace(0, len(samples), BINS, endpoint=False).astype(int))
    low, high = np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)
    axes.fill_between(starts / SAMPLE_RATE, low, high, step="post", color="#555555", linewidth=0)
    axes.set_xlim(0, len(samples) / SAMPLE_RATE)
    limit = 1.05 * max(float(np.abs(samples).max()), 1e-4)
    axes.set_ylim(-limit, limit)
    axes.set_yticks([])
    axes.set_ylabel("waveform", fontsize="small")
    axes.tick_params(labelsize="small", labelbottom=False)
