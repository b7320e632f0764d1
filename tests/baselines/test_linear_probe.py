"""The linear probe is scikit-learn's, whatever chooses its layer and its penalty."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fourm_ser.baselines.base import Choice, Samples, inner_folds, mean_recall
from fourm_ser.baselines.linear_probe import LinearProbe
from fourm_ser.baselines.pooled import PooledFeatures
from fourm_ser.errors import InputError

USUAL: dict[str, Any] = {
    "statistics": {"text": "mean", "audio": "mean_std"},
    "layer": "all",
    "C": 0.1,
    "candidates": [0.001, 0.1, 10.0],
    "class_weight": "balanced",
    "max_iter": 800,
    "inner_folds": 3,
}


def samples(classes: int = 3, width: int = 6, count: int = 90, told: float = 1.0, seed: int = 0) -> Samples:
    """Numbers of which the first tell the class, the more the larger `told` is, by six speakers."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    numbers = generator.normal(3.0, 2.0, (count, width))
    numbers[:, :classes] += told * np.eye(classes)[labels]
    return Samples(numbers, labels, np.array([f"s{n % 6}" for n in range(count)]))


def reader(states: int | list[int] = 1, width: int = 6) -> PooledFeatures:
    return PooledFeatures(
        dims={"audio": width}, modalities=["audio"], statistics=USUAL["statistics"], stored={"audio": "mean"},
        states={"audio": states},
    )  # fmt: skip


def plain(strength: float, **others: Any) -> Any:
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, max_iter=800, **{"class_weight": "balanced", **others})
    )


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("class_weight", ["balanced", None])
def test_a_fitted_head_has_the_probabilities_of_scikit_learn(classes: int, class_weight: str | None) -> None:
    own = samples(classes)
    fitted = LinearProbe(**{**USUAL, "class_weight": class_weight}).fit(own, Choice({}, {"C": 0.1}), classes)
    expected = plain(0.1, class_weight=class_weight).fit(own.numbers, own.labels).predict_proba(own.numbers)
    assert np.allclose(fitted.logits(own.numbers).softmax(1).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_a_class_that_nobody_was_trained_on_has_no_probability(missing: int) -> None:
    own = samples(4)
    own = own.part(np.flatnonzero(own.labels != missing))
    fitted = LinearProbe(**USUAL).fit(own, Choice({}, {"C": 0.1}), 4)
    shares = fitted.logits(own.numbers).softmax(1).numpy()
    assert (shares[:, missing] == 0).all()
    expected = plain(0.1).fit(own.numbers, own.labels).predict_proba(own.numbers)
    assert np.allclose(np.delete(shares, missing, 1), expected, atol=1e-5)


def test_the_penalty_is_the_best_of_the_candidates_by_folds_of_training_speakers() -> None:
    own = samples(told=0.7)
    scores = []
    for strength in USUAL["candidates"]:
        folds = GroupKFold(3)
        predicted = cross_val_predict(plain(strength), own.numbers, own.labels, groups=own.speakers, cv=folds)
        scores.append(mean_recall(own.labels, predicted))
    assert len(set(scores)) > 1
    found = LinearProbe(**{**USUAL, "C": "auto"}).choose(own, reader())
    assert found.settings == {"C": USUAL["candidates"][int(np.argmax(scores))]}


@pytest.mark.parametrize("telling", [0, 1, 2])
@pytest.mark.parametrize("states", [[0, 1, 2], [2, 3, 6]])
def test_the_best_layer_is_the_one_that_tells_the_classes(telling: int, states: list[int]) -> None:
    generator = np.random.default_rng(1)
    own = samples(width=4, told=3.0)
    layers = [own.numbers if layer == telling else generator.normal(size=(90, 4)) for layer in range(3)]
    whole = own._replace(numbers=np.hstack(layers))
    found = LinearProbe(**{**USUAL, "layer": "best"}).choose(whole, reader(states=states, width=12))
    assert found.layers == {"audio": [states[telling]]}
    assert reader(states, 12).places(found.layers).tolist() == list(range(4 * telling, 4 * telling + 4))
    assert found.settings == {"C": 0.1}


def test_a_layer_may_be_given_by_its_number_for_one_modality_alone() -> None:
    probe = LinearProbe(**{**USUAL, "layer": {"audio": 2}})
    fusion = PooledFeatures(
        dims={"text": 4, "audio": 6}, modalities=["text", "audio"], statistics=USUAL["statistics"],
        stored={"text": "mean", "audio": "mean"}, states={"text": 2, "audio": 3},
    )  # fmt: skip
    assert probe.choose(samples(width=10), fusion).layers == {"audio": [2]}


@pytest.mark.parametrize(("states", "said"), [(1, "one layer alone"), (3, "layers 0, 1, 2"), ([2, 4], "2, 4")])
def test_a_layer_that_is_not_stored_is_refused(states: int | list[int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LinearProbe(**{**USUAL, "layer": 3}).choose(samples(), reader(states))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("statistics", {"text": "mean", "audio": "none"}),
        ("statistics", {"text": "mean"}),
        ("layer", "last"),
        ("layer", -1),
        ("layer", {"audio": 1.5}),
        ("C", 0),
        ("C", "best"),
        ("candidates", []),
        ("candidates", [0.1, -1]),
        ("class_weight", "equal"),
        ("max_iter", 0),
        ("inner_folds", 1),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^baseline.{key}"):
        LinearProbe(**{**USUAL, key: value})


def test_inner_folds_part_speakers_where_the_test_has_other_speakers_and_classes_where_not() -> None:
    own = samples()
    assert own.speakers is not None
    held = []
    for fitted, rows in inner_folds(own, 4):
        assert not set(own.speakers[fitted]) & set(own.speakers[rows])
        held += rows.tolist()
    assert sorted(held) == list(range(90))
    for _, rows in inner_folds(own._replace(speakers=None), 4):
        assert set(own.labels[rows]) == {0, 1, 2}


def test_what_cannot_be_cut_into_inner_folds_is_refused() -> None:
    own = samples()
    with pytest.raises(InputError, match="one speaker"):
        list(inner_folds(own._replace(speakers=np.full(90, "s")), 3))
    by_class = own._replace(speakers=np.where(own.labels == 0, "a", "b"), labels=np.minimum(own.labels, 1))
    with pytest.raises(InputError, match="single emotion"):
        list(inner_folds(by_class, 2))


def test_a_solver_that_runs_out_of_steps_is_told(caplog: pytest.LogCaptureFixture) -> None:
    LinearProbe(**{**USUAL, "max_iter": 1}).fit(samples(), Choice({}, {"C": 10.0}), 3)
    assert "baseline.max_iter" in caplog.text
