"""What every baseline is: a classifier of scikit-learn on features that do not train, written as a network's parts."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from fourm_ser.baselines.pooled import Layers, PooledFeatures
from fourm_ser.checks import check_number
from fourm_ser.config import build
from fourm_ser.errors import InputError

ABSENT = -1e4
"""The logit of a class that nobody was trained on: no probability is left of it, and no loss is infinite."""


class Samples(NamedTuple):
    """Utterances that something is fitted to.

    Attributes:
        numbers: (utterances, numbers) all statistics of their features, float64.
        labels: (utterances,) class indices.
        speakers: (utterances,) who speaks; None where the protocol tests speakers that are trained on, too.
    """

    numbers: np.ndarray
    labels: np.ndarray
    speakers: np.ndarray | None

    def part(self, rows: np.ndarray) -> "Samples":
        """Some of them."""
        speakers = None if self.speakers is None else self.speakers[rows]
        return Samples(self.numbers[rows], self.labels[rows], speakers)

    def read(self, columns: np.ndarray) -> "Samples":
        """The same utterances by some of their numbers."""
        return self._replace(numbers=self.numbers[:, columns])


class Choice(NamedTuple):
    """What was chosen on training utterances.

    Attributes:
        layers: The hidden states that are read.
        settings: Arguments of the classifier.
    """

    layers: Layers
    settings: dict[str, Any]


class Fitted(NamedTuple):
    """A classifier, fitted.

    Attributes:
        mean: (numbers,) what is taken off the numbers that are read.
        scale: (numbers,) what they are divided by then.
        head: The config node of a head that computes the same, but for `dim` and `classes`.
        state: That head's state.
        classes: How many classes there are.
    """

    mean: np.ndarray
    scale: np.ndarray
    head: dict[str, Any]
    state: dict[str, Tensor]
    classes: int

    def build_head(self) -> nn.Module:
        """The head."""
        head: nn.Module = build(self.head, dim=len(self.mean), classes=self.classes)
        head.load_state_dict(self.state)
        return head.eval()

    @torch.no_grad()
    def logits(self, numbers: np.ndarray) -> Tensor:
        """(utterances, numbers that are read), not standardised -> logits (utterances, classes)."""
        return self.build_head()(torch.from_numpy((numbers - self.mean) / self.scale).float())


class Baseline(ABC):
    """A baseline, as a config describes it.

    Args:
        inner_folds: In how many parts training utterances are cut where something is chosen: each is predicted once
            by what was fitted to the others. By speakers, where the test has other speakers than the training.

    Raises:
        InputError: a value out of its range.
    """

    name: ClassVar[str]
    statistics: Mapping[str, str]  # by modality, what of its frames is read: see `PooledFeatures`

    def __init__(self, inner_folds: int) -> None:
        check_number("baseline.inner_folds", inner_folds, "a whole number from 2", least=2, whole=True)
        self.inner_folds = inner_folds

    @abstractmethod
    def encoders(self, config: DictConfig) -> dict[str, DictConfig]:
        """The config node of each encoder whose features are read, by modality, out of a run's config."""

    @abstractmethod
    def choose(self, samples: Samples, fusion: PooledFeatures) -> Choice:
        """Choose what is not given, on training utterances alone, of which all statistics are known."""

    @abstractmethod
    def fit(self, samples: Samples, choice: Choice, classes: int) -> Fitted:
        """Fit to utterances, by the numbers that the choice reads; heads have as many classes as there are."""


def inner_folds(samples: Samples, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut utterances into folds: positions of those to fit to, and of those to predict; by speakers if there are any.

    Raises:
        InputError: there are too few speakers, or too few classes are left to fit to.
    """
    from sklearn.model_selection import GroupKFold, StratifiedKFold

    if samples.speakers is None:
        rarest = int(np.unique(samples.labels, return_counts=True)[1].min())
        folds = StratifiedKFold(max(2, min(count, rarest))).split(samples.numbers, samples.labels)
    else:
        speakers = len(set(samples.speakers))
        if speakers < 2:
            raise InputError("baseline: one speaker is trained on, which cannot be cut into inner folds of speakers.")
        folds = GroupKFold(min(count, speakers)).split(samples.numbers, samples.labels, samples.speakers)
    for fitted, held in folds:
        if len(set(samples.labels[fitted])) < 2:
            raise InputError("baseline: without one inner fold a single emotion is left of the training side.")
        yield fitted, held


def mean_recall(labels: np.ndarray, predicted: np.ndarray) -> float:
    """UA: the mean of the recalls of the classes that occur."""
    return float(np.mean([np.mean(predicted[labels == label] == label) for label in np.unique(labels)]))


def standardised(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers (utterances, n) less their mean over their deviation, which is 1 where it is nothing; mean; deviation."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    return scaler.fit_transform(numbers), scaler.mean_, scaler.scale_


def told_layers(layers: Layers) -> Sequence[str]:
    """The layers in words, where not all are read."""
    return [f"{modality} layers {', '.join(map(str, chosen))}" for modality, chosen in layers.items()]
