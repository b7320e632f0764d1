"""The thread that answers: each as if it were alone, none ended by another."""

import threading
from pathlib import Path
from typing import Any

import pytest

from fourm_ser.errors import InputError
from fourm_ser.prediction.items import Cutting, Item
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.serving.desk import CrowdedError, Desk
from tests.conftest import Compose
from tests.prediction.predictors import ctc, model, noise


def test_requests_at_once_are_answered_as_if_alone(desk: Desk, predictor: Predictor) -> None:
    asked = [Item(noise(0.5 + 0.4 * number, number), f"happy {number}") for number in range(8)]
    found = [request.result(30) for request in [desk.ask(item) for item in asked]]
    for item, answer in zip(asked, found, strict=True):
        alone = predictor(item.audio, item.text)
        assert isinstance(alone, Prediction)
        (moment,) = answer.moments
        assert moment.prediction is not None
        assert moment.prediction.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert answer.effects is None


def test_what_cannot_be_predicted_on_ends_no_other(desk: Desk) -> None:
    bad, good = desk.ask(Item(noise(1.0), None)), desk.ask(Item(noise(1.0), ""))
    with pytest.raises(InputError, match="reads text, and none is given"):
        bad.result(30)
    assert good.result(30).moments


def test_an_error_of_ours_is_the_answer_and_the_next_is_served(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(desk.predictor, "along", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        with pytest.raises(RuntimeError, match="broken"):
            desk.ask(Item(noise(1.0), "")).result(30)
    assert desk.ask(Item(noise(1.0), "")).result(30).moments


def test_more_than_may_wait_are_refused(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, real = threading.Event(), predictor.along

    taken = threading.Event()

    def slow(*given: Any) -> Any:
        taken.set()
        gate.wait(30)
        return real(*given)

    monkeypatch.setattr(predictor, "along", slow)
    desk = Desk(predictor, None, waiting=2)
    waiting = [desk.ask(Item(noise(1.0), ""))]
    assert taken.wait(30)
    waiting += [desk.ask(Item(noise(1.0), "")) for _ in range(2)]
    with pytest.raises(CrowdedError, match="2 requests wait"):
        desk.ask(Item(noise(1.0), ""))
    gate.set()
    assert all(request.result(30).moments for request in waiting)
    desk.close()


def test_who_gave_up_is_passed_over(desk: Desk) -> None:
    first, gone, last = (desk.ask(Item(noise(1.0), "")) for _ in range(3))
    gone.cancel()
    assert first.result(30).moments
    assert last.result(30).moments


def test_windows_that_the_model_cannot_have_are_refused(predictor: Predictor) -> None:
    with pytest.raises(InputError, match="window=9"):
        Desk(predictor, Cutting(9.0, 9.0, 4.5), waiting=2)


def test_what_is_transcribed_is_explained_by_its_transcript(tmp_path: Path, composed: Compose) -> None:
    folder = model(tmp_path / "model", composed, max_seconds=6.0)
    desk = Desk(Predictor.load(folder, asr=str(ctc(tmp_path / "asr"))), None, waiting=2)
    answer = desk.ask(Item(noise(2.0), None), explain=True).result(60)
    desk.close()
    said = answer.moments[0].prediction
    assert said is not None
    assert said.text
    assert answer.effects is not None
    assert [word.name for word in answer.effects.words] == said.text.split()
