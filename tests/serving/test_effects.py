"""Parts that are left out: what the network says of what is left."""

from pathlib import Path

import numpy as np
import pytest

from fourm_ser.encoders.base import Features
from fourm_ser.prediction.items import Item
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.serving.effects import MOMENT, effects_of
from tests.conftest import Compose
from tests.prediction.predictors import model, noise

TEXT = "every happy door, I can't"


def predicted(predictor: Predictor, item: Item) -> Prediction:
    found = predictor(item.audio, item.text)
    assert isinstance(found, Prediction)
    return found


def test_each_word_and_moment_has_the_effect_of_its_absence(predictor: Predictor) -> None:
    item = Item(noise(3.0), TEXT)
    said = predicted(predictor, item)
    found = effects_of(predictor, item, said)
    assert [word.name for word in found.words] == ["every", "happy", "door,", "I", "can't"]
    assert all(word.start is None for word in found.words)
    starts, ends = (np.array([getattr(moment, name) for moment in found.moments]) for name in ("start", "end"))
    assert starts[0] == 0.0
    assert ends[-1] == pytest.approx(3.0)
    np.testing.assert_allclose(starts[1:], ends[:-1])
    assert (ends - starts).min() >= MOMENT - 1e-9
    assert max(abs(part.effect) for part in (*found.words, *found.moments)) > 1e-4


def test_an_effect_is_that_of_the_features_without_the_part(predictor: Predictor) -> None:
    """Of the second moment, computed here with the others' frames alone."""
    item = Item(noise(3.0), TEXT)
    said = predicted(predictor, item)
    found = effects_of(predictor, item, said)
    window = predictor.planner.windows(0, item, None, Path())[0]
    features = predictor.inference.stem_features(predictor.dataset.collate([predictor.dataset.prepare(window)]))
    audio = features["audio"].features[0]
    begin, end = predictor.inference.network.by_modality["audio"].frontend.span(item.audio)  # type: ignore[attr-defined]
    middles = begin + (np.arange(len(audio)) + 0.5) * (end - begin) / len(audio)
    second = found.moments[1]
    assert second.start is not None
    assert second.end is not None
    kept = audio[(middles < second.start) | (middles >= second.end)]
    assert 0 < len(kept) < len(audio)
    left = Features(kept[None], features["audio"].mask[:, : len(kept)])
    shares = predictor.inference(features["text"], left).logits.softmax(1)[0]
    place = predictor.emotions.index(said.emotion)
    assert second.effect == pytest.approx(said.probabilities[said.emotion] - float(shares[place]), abs=1e-5)


@pytest.mark.parametrize(
    ("fusion", "item", "words", "moments"),
    [
        ("text_attention", Item(None, TEXT), 5, False),
        ("audio_attention", Item(noise(2.0), None), 0, True),
        ("text_attention", Item(None, "happy"), 1, False),
        ("audio_attention", Item(noise(0.1), None), 0, False),  # nothing would be left
    ],
)
def test_a_part_is_of_what_the_model_reads(
    fusion: str, item: Item, words: int, moments: bool, tmp_path: Path, composed: Compose
) -> None:
    alone = Predictor.load(model(tmp_path / "model", composed, f"fusion={fusion}", "fusion.heads=4"))
    found = effects_of(alone, item, predicted(alone, item))
    assert (len(found.words), bool(found.moments)) == (words, moments)


def test_beyond_what_is_heard_nothing_has_an_effect(predictor: Predictor) -> None:
    item = Item(noise(8.0), TEXT)
    assert effects_of(predictor, item, predicted(predictor, item)).moments[-1].end == pytest.approx(6.0)
