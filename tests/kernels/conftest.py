"""Encoders to speed up: those of the encoders' tests."""

from tests.encoders.conftest import mel_lstm as mel_lstm
from tests.encoders.conftest import resources as resources
from tests.encoders.conftest import speech_encoder as speech_encoder
from tests.encoders.conftest import text_encoder as text_encoder
from tests.encoders.conftest import texts as texts
from tests.encoders.conftest import waveforms as waveforms
