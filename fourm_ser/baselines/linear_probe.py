"""The linear probe: a logistic regression on pooled features of frozen encoders, which a network has to beat."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from omegaconf import DictConfig

from fourm_ser.baselines.base import (
    ABSENT,
    Baseline,
    Choice,
    Fitted,
    Samples,
    inner_folds,
    mean_recall,
    standardised,
    told_layers,
)
from fourm_ser.baselines.pooled import STATISTICS, PooledFeatures
from fourm_ser.checks import check_number, check_word
from fourm_ser.errors import InputError

log = logging.getLogger(__name__)

HEAD = {
    "_target_": "fourm_ser.models.network.Head",
    "layers": [],
    "dropout": 0.0,
    "activation": "none",
    "last_dropout": 0.0,
}


class LinearProbe(Baseline):
    """Logistic regression on each modality's mean and deviation over time, and over speech alone, standardised.

    Args:
        statistics: By modality, `mean`, `mean_std` or `active`: what of its frames is read, see `PooledFeatures`.
        layer: Of encoders whose stores hold several hidden states (`layer: weighted`, or a list): `all` side by side,
            `best` (of each modality by itself, by inner folds), or one by its number; for both or each modality.
        C: Inverse strength of the L2 penalty, or `auto`: the best of the candidates by inner folds.
        candidates: What `auto` tries; of equals the smallest wins.
        class_weight: `balanced` (each class counts alike) or None.
        max_iter: Most steps of the solver.
        inner_folds: See `Baseline`.

    Raises:
        InputError: a value out of its range.
    """

    name: ClassVar[str] = "linear_probe"

    def __init__(
        self,
        *,
        statistics: Mapping[str, str],
        layer: str | int | Mapping[str, str | int],
        C: float | str,  # noqa: N803 - scikit-learn's name
        candidates: Sequence[float],
        class_weight: str | None,
        max_iter: int,
        inner_folds: int,
    ) -> None:
        super().__init__(inner_folds)
        for modality in ("text", "audio"):
            check_word(f"baseline.statistics.{modality}", statistics.get(modality), STATISTICS)
        self.statistics, self.layer = dict(statistics), layer
        for modality in ("text", "audio"):
            asked = self._layer(modality)
            if asked not in ("all", "best"):
                check_number("baseline.layer", asked, "all, best, or a layer from 0", whole=True)
        if not isinstance(candidates, list | tuple) or not candidates:
            raise InputError(f"baseline.candidates={candidates}: expected a list of numbers, such as [0.01, 0.1].")
        for number in candidates:
            check_number("baseline.candidates", number, "numbers above 0", above=True)
        if C != "auto":
            check_number("baseline.C", C, "auto, or a number above 0", above=True)
        if class_weight is not None:
            check_word("baseline.class_weight", class_weight, ["balanced"])
        check_number("baseline.max_iter", max_iter, "a whole number from 1", least=1, whole=True)
        self.candidates = sorted(candidates) if C == "auto" else [float(C)]
        self.arguments = {"class_weight": class_weight, "max_iter": max_iter}

    def _layer(self, modality: str) -> str | int:
        return self.layer.get(modality, "all") if isinstance(self.layer, Mapping) else self.layer

    def encoders(self, config: DictConfig) -> dict[str, DictConfig]:
        return {modality: config.encoder[modality] for modality in config.fusion.modalities}

    def choose(self, samples: Samples, fusion: PooledFeatures) -> Choice:
        layers: dict[str, Sequence[int]] = {}
        for modality, held in fusion.states.items():
            asked = self._layer(modality)
            if isinstance(asked, int) and not (len(held) > 1 and asked in held):
                one = f"one layer alone. Add encoder.{modality}.layer=weighted, or use baseline.layer=all"
                told = f"the layers {', '.join(map(str, held))}" if len(held) > 1 else one
                raise InputError(f"baseline.layer={asked}: of {modality} the store holds {told}.")
            if len(held) > 1 and asked != "all":
                layers[modality] = [asked if isinstance(asked, int) else self._best_layer(samples, fusion, modality)]
        own = samples.read(fusion.places(layers))
        chosen = self._best(own)[0] if len(self.candidates) > 1 else self.candidates[0]
        for said in told_layers(layers):
            log.info("linear probe: reads %s", said)
        log.info("linear probe: C=%g", chosen)
        return Choice(layers, {"C": chosen})

    def _best_layer(self, samples: Samples, fusion: PooledFeatures, modality: str) -> int:
        scores = {
            layer: self._best(samples.read(fusion.places({modality: [layer]}, [modality])))[1]
            for layer in fusion.states[modality]
        }
        told = ", ".join(f"{layer}: {100 * score:.1f}" for layer, score in scores.items())
        log.info("linear probe: UA of inner folds by layer of %s: %s", modality, told)
        return max(scores, key=lambda layer: scores[layer])

    def _best(self, samples: Samples) -> tuple[float, float]:
        """The best candidate by UA over all inner folds together, and its UA."""
        predicted = np.empty((len(self.candidates), len(samples.labels)), samples.labels.dtype)
        for fitted, held in inner_folds(samples, self.inner_folds):
            numbers, mean, scale = standardised(samples.numbers[fitted])
            for place, number in enumerate(self.candidates):
                model = self._fit(numbers, samples.labels[fitted], number)
                predicted[place, held] = model.predict((samples.numbers[held] - mean) / scale)
        scores = [mean_recall(samples.labels, row) for row in predicted]
        best = int(np.argmax(scores))
        return self.candidates[best], scores[best]

    def _fit(self, numbers: np.ndarray, labels: np.ndarray, strength: float) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model = LogisticRegression(C=strength, **self.arguments).fit(numbers, labels)
        if caught:
            log.warning("linear probe: C=%g has not converged in baseline.max_iter steps", strength)
        return model

    def fit(self, samples: Samples, choice: Choice, classes: int) -> Fitted:
        numbers, mean, scale = standardised(samples.numbers)
        model = self._fit(numbers, samples.labels, choice.settings["C"])
        weight, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # the sigmoid of a difference is the softmax of its halves
            weight, bias = np.vstack([-weight / 2, weight / 2]), np.hstack([-bias / 2, bias / 2])
        whole, ends = np.zeros((classes, numbers.shape[1])), np.full(classes, ABSENT)
        whole[model.classes_], ends[model.classes_] = weight, bias
        state = {"layers.2.weight": torch.from_numpy(whole).float(), "layers.2.bias": torch.from_numpy(ends).float()}
        return Fitted(mean, scale, HEAD, state, classes)
