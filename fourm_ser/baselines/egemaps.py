"""Functionals of openSMILE under a support vector machine: what there is without any pretrained weights."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn import functional

from fourm_ser.baselines.base import Baseline, Choice, Fitted, Samples, inner_folds, standardised
from fourm_ser.baselines.pooled import PooledFeatures
from fourm_ser.baselines.support_vectors import state_of
from fourm_ser.checks import check_number, check_word
from fourm_ser.encoders.functionals import SETS, require_opensmile

FACTORS = (0.05, 20.0)
"""Between which the factor of the logits lies: votes are whole numbers, and 20 is as good as certain."""


class Egemaps(Baseline):
    """A support vector machine with a radial kernel on functionals, standardised.

    Its probabilities are the softmax of its votes times a factor: the one with the least cross-entropy over inner
    folds. It changes no prediction.

    Args:
        encoder: The config node of the audio encoder; see `fourm_ser.encoders.functionals`.
        C: Penalty of what is on the wrong side.
        gamma: Width of the kernel: a number, or `scale`: 1 / (how many numbers there are * their variance).
        class_weight: `balanced` (each class counts alike) or None.
        inner_folds: See `Baseline`.

    Raises:
        InputError: openSMILE is not installed, or a value is out of its range.
    """

    name: ClassVar[str] = "egemaps"

    def __init__(
        self,
        *,
        encoder: Mapping[str, Any],
        C: float,  # noqa: N803 - scikit-learn's name
        gamma: float | str,
        class_weight: str | None,
        inner_folds: int,
    ) -> None:
        super().__init__(inner_folds)
        check_number("baseline.C", C, "a number above 0", above=True)
        if gamma != "scale":
            check_number("baseline.gamma", gamma, "scale, or a number above 0", above=True)
        if class_weight is not None:
            check_word("baseline.class_weight", class_weight, ["balanced"])
        check_word("baseline.encoder.feature_set", encoder.get("feature_set"), SETS)
        require_opensmile(f"baseline={self.name}")
        self.statistics = {"audio": "mean"}  # of one frame
        self.encoder, self.gamma = dict(encoder), gamma
        self.arguments = {"C": C, "class_weight": class_weight}

    def encoders(self, config: DictConfig) -> dict[str, DictConfig]:
        return {"audio": OmegaConf.create(self.encoder)}

    def choose(self, samples: Samples, fusion: PooledFeatures) -> Choice:
        from scipy.optimize import minimize_scalar

        logits, labels = [], []
        for fitted, held in inner_folds(samples, self.inner_folds):
            machine = self.fit(samples.part(fitted), Choice({}, {"factor": 1.0}), int(samples.labels.max()) + 1)
            known = held[np.isin(samples.labels[held], samples.labels[fitted])]
            logits.append(machine.logits(samples.numbers[known]))
            labels.append(samples.labels[known])
        found, own = torch.cat(logits), torch.from_numpy(np.concatenate(labels))

        def cost(logarithm: float) -> float:
            return float(functional.cross_entropy(found * math.exp(logarithm), own))

        best = minimize_scalar(cost, bounds=np.log(FACTORS), method="bounded")
        return Choice({}, {"factor": math.exp(best.x)})

    def _gamma(self, numbers: np.ndarray) -> float:
        return 1 / (numbers.shape[1] * numbers.var()) if self.gamma == "scale" else float(self.gamma)

    def _fit(self, numbers: np.ndarray, labels: np.ndarray, gamma: float) -> Any:
        from sklearn.svm import SVC

        return SVC(kernel="rbf", gamma=gamma, decision_function_shape="ovr", **self.arguments).fit(numbers, labels)

    def fit(self, samples: Samples, choice: Choice, classes: int) -> Fitted:
        numbers, mean, scale = standardised(samples.numbers)
        gamma = self._gamma(numbers)
        model = self._fit(numbers, samples.labels, gamma)
        head = {
            "_target_": "fourm_ser.baselines.support_vectors.SupportVectors",
            "vectors": len(model.support_vectors_),
            "known": model.classes_.tolist(),
        }
        return Fitted(mean, scale, head, state_of(model, gamma, choice.settings["factor"]), classes)
