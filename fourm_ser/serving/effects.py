"""What each word and moment does to the emotion's probability, by leaving it out."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fourm_ser.analysis.findings import UnsuitedError
from fourm_ser.analysis.spectrogram import frame_edges
from fourm_ser.analysis.words import words_of
from fourm_ser.encoders.base import Encoder, Features, length_mask
from fourm_ser.prediction.items import Item, seconds
from fourm_ser.prediction.predictor import Prediction, Predictor

MOMENT = 0.25  # seconds that are left out at a time, at least
MOMENTS = 60  # of a recording, at most
TOGETHER = 16  # variants computed together


class Effect(NamedTuple):
    """A part of an utterance.

    Attributes:
        name: the word; empty for a moment.
        start: where a moment begins, in seconds; None for a word.
        end: where it ends.
        effect: how much of the emotion's probability goes when the part is left out; negative where it rises.
    """

    name: str
    start: float | None
    end: float | None
    effect: float


class Effects(NamedTuple):
    """The parts of an utterance in their order, of what the model reads."""

    words: list[Effect]
    moments: list[Effect]


class Part(NamedTuple):
    """A word or moment, and which of its modality's tokens or frames are left when it is gone."""

    modality: str
    told: Effect
    kept: Tensor


def effects_of(predictor: Predictor, item: Item, predicted: Prediction) -> Effects:
    """Leave out each word and each moment in turn (occlusion: Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901).

    What is left out are tokens and frames of the encoders' features, which have heard their neighbours: a word's trace
    in others stays. Of recordings that are longer than the model hears, the beginning alone has effects.

    Args:
        predictor: the model.
        item: the utterance, as it was predicted on.
        predicted: what was predicted, with the transcript.

    Raises:
        InputError: the utterance cannot be read.
    """
    window = predictor.planner.windows(0, item._replace(text=predicted.text), None, Path())[0]
    prepared = predictor.dataset.prepare(window)
    features = predictor.inference.stem_features(predictor.dataset.collate([prepared]))
    parts = list[Part]()
    encoders = predictor.inference.network.by_modality
    if "text" in features:
        parts += _words(encoders["text"], prepared.text or "", features["text"])
    if "audio" in features:
        parts += _moments(encoders["audio"], item, predictor.max_seconds, features["audio"])
    target = predictor.emotions.index(predicted.emotion)
    whole = _probabilities(predictor, features, [])[0, target].item()
    found = dict[str, list[Effect]](text=[], audio=[])
    for first in range(0, len(parts), TOGETHER):
        some = parts[first : first + TOGETHER]
        for part, left in zip(some, _probabilities(predictor, features, some)[:, target].tolist(), strict=True):
            found[part.modality].append(part.told._replace(effect=whole - left))
    return Effects(found["text"], found["audio"])


def _words(encoder: Encoder, text: str, features: Features) -> list[Part]:
    words = words_of(encoder, text)
    indices = torch.from_numpy(np.asarray(words.indices))
    if len(indices) != features.features.shape[1]:  # pooled, or cut off
        return []
    parts = [
        Part("text", Effect(name, None, None, 0.0), indices != place)
        for place, (name, special) in enumerate(zip(words.names, words.special, strict=True))
        if not special
    ]
    return [part for part in parts if part.kept.any()]


def _moments(encoder: Encoder, item: Item, longest: float | None, features: Features) -> list[Part]:
    count = features.features.shape[1]
    if count < 2 or encoder.pooling != "none" or not isinstance(item.audio, np.ndarray):
        return []
    samples = item.audio if longest is None else item.audio[: round(longest * item.rate)]
    try:
        edges = frame_edges(encoder, samples, count)
    except UnsuitedError:
        return []
    length = min(seconds(item), longest or seconds(item))
    bounds = np.linspace(0.0, length, 1 + max(1, min(MOMENTS, int(length / MOMENT))))
    owner = torch.from_numpy(np.searchsorted(bounds, (edges[:-1] + edges[1:]) / 2, side="right") - 1)
    parts = [
        Part("audio", Effect("", float(begin), float(end), 0.0), owner != place)
        for place, (begin, end) in enumerate(itertools.pairwise(bounds))
    ]
    return [part for part in parts if part.kept.any() and not part.kept.all()]


def _probabilities(predictor: Predictor, features: dict[str, Features], parts: Sequence[Part]) -> Tensor:
    """(parts, classes) of the utterance without each part; (1, classes) of the whole where there are none."""
    given: dict[str, Features | None] = {"text": None, "audio": None}
    for modality, own in features.items():
        frames = own.features[0]
        left = [frames[part.kept.to(frames.device)] if part.modality == modality else frames for part in parts] or [
            frames
        ]
        lengths = torch.tensor([len(rest) for rest in left], device=frames.device)
        given[modality] = Features(pad_sequence(left, batch_first=True), length_mask(lengths, int(lengths.max())))
    return predictor.inference(given["text"], given["audio"]).logits.float().softmax(1)
