"""The HTTP interface: answers, limits, and who may ask."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("fastapi_offline")
from fastapi.testclient import TestClient

from fourm_ser.prediction.items import Cutting
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.serving.app import PAGE, make_app, outline
from fourm_ser.serving.desk import Desk
from tests.prediction.predictors import noise
from tests.serving.conftest import wav

RECORDING = wav(noise(1.5))


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    desk = Desk(predictor, Cutting.of("auto", None, 2.0, predictor.max_seconds), waiting=16)
    app = make_app(desk, transcribes=False, max_megabytes=0.5, max_seconds=5.0, hosts=["testserver"])
    with TestClient(app) as opened:
        yield opened


def test_a_recording_s_answer_is_the_prediction_with_its_parts(client: TestClient, predictor: Predictor) -> None:
    answer = client.post("/api/emotion", params={"text": "every happy door", "explain": True}, content=RECORDING)
    assert answer.status_code == 200
    found, alone = answer.json(), predictor(noise(1.5), "every happy door")
    assert isinstance(alone, Prediction)
    assert found["emotion"] == alone.emotion
    assert found["probabilities"] == pytest.approx(alone.probabilities, abs=1e-5)
    assert found["seconds"] == 1.5
    assert [word["name"] for word in found["words"]] == ["every", "happy", "door"]
    assert found["moments"]
    assert len(found["outline"]) == 600
    (stretch,) = found["stretches"]
    assert (stretch["start"], stretch["end"], stretch["text"]) == (0.0, 1.5, "every happy door")


def test_nobody_asked_for_parts(client: TestClient) -> None:
    found = client.post("/api/emotion", params={"text": ""}, content=RECORDING).json()
    assert (found["words"], found["moments"]) == ([], [])


def test_what_is_served_is_told_and_described(client: TestClient, predictor: Predictor) -> None:
    about = client.get("/api/model").json()
    assert about["emotions"] == predictor.emotions
    assert about["reads"] == ["text", "audio"]
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/api/model", "/api/emotion"}
    body = described["paths"]["/api/emotion"]["post"]["requestBody"]
    assert "application/octet-stream" in body["content"]
    assert "//" not in client.get("/docs").text.replace("/* ", "").replace("http://testserver", "")


@pytest.mark.parametrize("path", PAGE)
def test_the_page_fetches_nothing_from_elsewhere(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" not in answer.text.replace("http-equiv", "").replace("on https pages", "")


@pytest.mark.parametrize(
    ("content", "words", "status", "said"),
    [
        (b"", {"text": ""}, 422, "body is empty"),
        (b"no sound at all", {"text": ""}, 422, "recording: cannot be decoded"),
        (RECORDING, {}, 422, "reads text, and none is given"),
        (RECORDING, {"text": "x", "name": "n" * 300}, 422, ""),
        (wav(np.zeros(8000, np.float32)), {"text": ""}, 422, "recording"),  # silent
        (wav(noise(6.0), 16_000), {"text": ""}, 422, "6 s. Expected 5 s at most"),
        (b"\0" * 600_000, {"text": ""}, 413, "0.5 MB at most"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    client: TestClient, content: bytes, words: dict[str, str], status: int, said: str
) -> None:
    answer = client.post("/api/emotion", params=words, content=content)
    assert answer.status_code == status
    assert said in str(answer.json()["detail"])
    assert "/tmp" not in answer.text
    assert client.post("/api/emotion", params={"text": ""}, content=RECORDING).status_code == 200


def test_what_is_too_large_is_refused_while_it_comes(client: TestClient) -> None:
    parts = (b"\0" * 100_000 for _ in range(100))  # without a length beforehand
    answer = client.post("/api/emotion", params={"text": ""}, content=parts)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "other.example"}, 400),
        ({"origin": "https://other.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://testserver"}, 200),
    ],
)
def test_other_sites_pages_may_not_ask(client: TestClient, headers: dict[str, str], status: int) -> None:
    answer = client.post("/api/emotion", params={"text": ""}, content=RECORDING, headers=headers)
    assert answer.status_code == status


def test_many_at_once_are_all_answered_alike(client: TestClient) -> None:
    def ask(_: int) -> float:
        return client.post("/api/emotion", params={"text": "happy"}, content=RECORDING).json()["probabilities"]["anger"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(12)))
    assert found == pytest.approx([found[0]] * 12, abs=1e-6)


def test_the_outline_is_of_the_loudest() -> None:
    assert outline(np.array([0.1, -0.5, 0.2], np.float32)) == [0.1, 0.5, 0.2]
    assert max(outline(noise(3.0))) == pytest.approx(float(np.abs(noise(3.0)).max()), abs=1e-4)
