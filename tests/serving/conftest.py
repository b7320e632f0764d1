"""Small models to serve, and recordings to send."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

from fourm_ser.prediction.items import Cutting
from fourm_ser.prediction.predictor import Predictor
from fourm_ser.serving.desk import Desk
from tests.conftest import Compose
from tests.prediction.predictors import RATE, model


@pytest.fixture(scope="session")
def predictor(tmp_path_factory: pytest.TempPathFactory, composed: Compose) -> Predictor:
    """Reads text and audio, on at most six seconds."""
    return Predictor.load(model(tmp_path_factory.mktemp("served") / "model", composed, max_seconds=6.0))


@pytest.fixture
def desk(predictor: Predictor) -> Iterator[Desk]:
    made = Desk(predictor, Cutting.of("auto", None, 2.0, predictor.max_seconds), waiting=16)
    yield made
    made.close()


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    """The bytes of a WAV."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()
