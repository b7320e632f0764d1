"""What is refused before any encoder is built, and what only a built encoder can tell."""

import types
from typing import Any

import pytest

from fourm_ser.config import build
from fourm_ser.errors import InputError
from fourm_ser.training.misfits import refuse_misfits
from tests.conftest import Compose

SPEECH = ["encoder=bert_whisper_base", "encoder.weights=random", "fusion.statistics.audio=[active_mean]"]


def refuse(composed: Compose, *words: str) -> None:
    config, corpus = composed(*words), types.SimpleNamespace(wanted=["anger", "sadness"])
    given: Any = corpus
    refuse_misfits(config, [], given, build(config.loss))


def test_statistics_of_speech_alone_are_for_encoders_to_refuse(composed: Compose) -> None:
    refuse(composed, *SPEECH)
    with pytest.raises(
        InputError, match=r"fusion\.statistics\.audio=\['active_mean'\]: .*encode\.pool leaves no frames"
    ):
        refuse(composed, *SPEECH, "encode.pool=mean_std")
