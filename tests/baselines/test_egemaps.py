"""The support vector machine is scikit-learn's, the functionals are openSMILE's."""

import sys
from typing import Any

import numpy as np
import opensmile
import pytest
import torch
from sklearn.svm import SVC

from fourm_ser.baselines.base import Choice
from fourm_ser.baselines.egemaps import Egemaps
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.functionals import FunctionalsEncoder
from fourm_ser.errors import InputError
from tests.baselines.test_linear_probe import reader, samples

USUAL: dict[str, Any] = {
    "encoder": {
        "_target_": "fourm_ser.encoders.functionals.FunctionalsEncoder",
        "name": "e",
        "feature_set": "eGeMAPSv02",
    },
    "C": 10.0,
    "gamma": "scale",
    "class_weight": "balanced",
    "inner_folds": 3,
}


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("gamma", ["scale", 0.3])
def test_a_fitted_head_decides_as_scikit_learn(classes: int, gamma: float | str) -> None:
    own, others = samples(classes), samples(classes, seed=1)
    fitted = Egemaps(**{**USUAL, "gamma": gamma}).fit(own, Choice({}, {"factor": 2.0}), classes)
    mean, scale = own.numbers.mean(0), own.numbers.std(0)
    model = SVC(C=10.0, gamma=gamma, class_weight="balanced", break_ties=True, decision_function_shape="ovr")
    model.fit((own.numbers - mean) / scale, own.labels)
    logits = fitted.logits(others.numbers).numpy()
    numbers = (others.numbers - mean) / scale
    assert (logits.argmax(1) == model.predict(numbers)).all()
    if classes > 2:
        assert np.allclose(logits, 2 * model.decision_function(numbers), atol=2e-3)


def test_a_class_that_nobody_was_trained_on_is_never_found() -> None:
    own = samples(4)
    own = own.part(np.flatnonzero(own.labels != 1))
    fitted = Egemaps(**USUAL).fit(own, Choice({}, {"factor": 1.0}), 4)
    assert (fitted.logits(own.numbers).softmax(1)[:, 1] == 0).all()


def test_a_neighbour_changes_no_decision() -> None:
    own = samples(3)
    fitted = Egemaps(**USUAL).fit(own, Choice({}, {"factor": 1.0}), 3)
    alone = torch.cat([fitted.logits(row[None]) for row in own.numbers])
    assert torch.allclose(alone, fitted.logits(own.numbers), atol=1e-5)


def test_probabilities_are_surer_where_inner_folds_are_right_more_often() -> None:
    factors = []
    for told in (0.0, 5.0):
        found = Egemaps(**USUAL).choose(samples(told=told), reader())
        factors.append(found.settings["factor"])
    assert factors[0] < 0.3 < 1.0 < factors[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [("C", 0), ("gamma", "auto"), ("gamma", -1), ("class_weight", "equal"), ("inner_folds", 1)],
)
def test_a_value_out_of_its_range_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^baseline.{key}"):
        Egemaps(**{**USUAL, key: value})


def test_an_unknown_set_of_functionals_is_refused() -> None:
    with pytest.raises(InputError, match=r"feature_set=IS09"):
        Egemaps(**{**USUAL, "encoder": {**USUAL["encoder"], "feature_set": "IS09"}})


def test_without_opensmile_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opensmile", None)
    with pytest.raises(InputError, match=r'pip install "fourm_ser\[opensmile\]"'):
        Egemaps(**USUAL)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> FunctionalsEncoder:
    return FunctionalsEncoder(name="e", feature_set="eGeMAPSv02", resources=Resources(tmp_path_factory.mktemp("c")))


def waveform(seconds: float, seed: int = 0) -> np.ndarray:
    time = np.arange(round(seconds * 16000)) / 16000
    noise = np.random.default_rng(seed).normal(0, 0.01, len(time))
    return (0.3 * np.sin(2 * np.pi * 180 * time) + noise).astype(np.float32)


def test_functionals_are_those_of_opensmile_and_one_frame(encoder: FunctionalsEncoder) -> None:
    raws = [waveform(0.6), waveform(1.1, 1)]
    found = encoder(encoder.collate([encoder.frontend(raw) for raw in raws]))
    assert found.features.shape == (2, 1, 88) == (2, 1, encoder.dim)
    assert found.mask.all()
    plain = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    for raw, own in zip(raws, found.features[:, 0].numpy(), strict=True):
        assert (own == plain.process_signal(raw, 16000).to_numpy()[0]).all()


@pytest.mark.parametrize("samples", [1, 160, 1599])
@pytest.mark.filterwarnings("error")
def test_the_shortest_utterances_have_functionals(encoder: FunctionalsEncoder, samples: int) -> None:
    (found,) = encoder.frontend(waveform(samples / 16000)).values()
    assert found.isfinite().all()


def test_another_set_is_kept_in_another_store(encoder: FunctionalsEncoder) -> None:
    other = FunctionalsEncoder(name="e", feature_set="GeMAPSv01b", resources=Resources(None))  # type: ignore[arg-type]
    assert other.dim == 62
    assert other.fingerprint() != encoder.fingerprint()
