"""Speech recognisers in the place of given texts: theirs is the transcript, one recording at a time."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2ForCTC, WhisperFeatureExtractor, WhisperForConditionalGeneration

from fourm_ser.errors import InputError
from fourm_ser.prediction.items import Item
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.prediction.transcriber import Transcriber
from tests.conftest import Compose
from tests.prediction.predictors import LETTERS, RATE, ctc, model, noise, whisper

CPU = torch.device("cpu")
LENGTHS = (0.4, 1.3, 0.7, 1.9)


@pytest.fixture(scope="module")
def recognisers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("asr")
    return {"ctc": ctc(folder / "ctc"), "whisper": whisper(folder / "whisper")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, composed: Compose) -> Path:
    return model(tmp_path_factory.mktemp("both") / "model", composed)


def letters_of(samples: np.ndarray, recogniser: Path) -> str:
    """What a wav2vec 2.0 recogniser writes, by hand: the likeliest token a frame, repetitions once, no blanks."""
    network = Wav2Vec2ForCTC.from_pretrained(recogniser).eval()
    scaled = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.inference_mode():
        frames = network(torch.from_numpy(scaled)[None]).logits[0].argmax(1).tolist()
    tokens = ["", " ", " ", " ", " ", *LETTERS]  # the blank; tags, which transcripts are cleaned of; between words
    return " ".join("".join(tokens[token] for token, _ in groupby(frames)).split())


def test_a_ctc_recogniser_writes_the_likeliest_letters(recognisers: dict[str, Path]) -> None:
    transcriber = Transcriber(str(recognisers["ctc"]), CPU)
    texts = [transcriber(noise(length, place)) for place, length in enumerate(LENGTHS)]
    assert texts == [letters_of(noise(length, place), recognisers["ctc"]) for place, length in enumerate(LENGTHS)]
    assert len(set(texts)) == len(texts)
    assert all(texts)


def test_a_sequence_to_sequence_recogniser_writes_what_it_generates(recognisers: dict[str, Path]) -> None:
    transcriber = Transcriber(str(recognisers["whisper"]), CPU)
    network = WhisperForConditionalGeneration.from_pretrained(recognisers["whisper"]).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(recognisers["whisper"])
    ids = {place: letter for letter, place in transcriber.pipeline.tokenizer.get_vocab().items()}
    texts = []
    for place, length in enumerate(LENGTHS):
        samples = noise(length, place)
        heard = extractor(samples, sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            generated = network.generate(heard["input_features"])[0].tolist()
        expected = "".join(ids[token] for token in generated if len(ids.get(token, "")) == 1).replace("Ġ", " ")
        texts.append(transcriber(samples))
        assert texts[-1] == " ".join(expected.split())
    assert all(texts)


def test_a_recording_longer_than_whisper_s_window_is_heard_to_its_end(recognisers: dict[str, Path]) -> None:
    transcriber = Transcriber(str(recognisers["whisper"]), CPU)
    heard: list[int] = []
    encoder = transcriber.pipeline.model.get_encoder()
    encoder.register_forward_hook(lambda *_: heard.append(1))
    transcriber(noise(5.0))
    assert len(heard) >= 3  # two seconds at a time


@pytest.mark.parametrize("kind", ["ctc", "whisper"])
def test_the_transcript_counts_as_the_text(folder: Path, recognisers: dict[str, Path], kind: str) -> None:
    predictor = Predictor.load(folder, asr=str(recognisers[kind]))
    samples = [noise(length, place) for place, length in enumerate(LENGTHS)]
    heard = predictor(samples)
    assert isinstance(heard, list)
    texts = [result.text for result in heard]
    assert texts == [Transcriber(str(recognisers[kind]), CPU)(one) for one in samples]
    told = Predictor.load(folder)(samples, texts)
    assert isinstance(told, list)
    for result, expected in zip(heard, told, strict=True):
        assert list(result.probabilities.values()) == pytest.approx(list(expected.probabilities.values()), abs=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_given_text_is_not_transcribed(folder: Path, recognisers: dict[str, Path], workers: int) -> None:
    predictor = Predictor.load(folder, asr=str(recognisers["ctc"]), workers=workers)
    results = list(predictor.predict_many([Item(noise(1.0), "calm"), Item(noise(1.0)), Item(noise(1.0), "")]))
    assert [result.text for result in results if isinstance(result, Prediction)] == [
        "calm",
        letters_of(noise(1.0), recognisers["ctc"]),
        "",
    ]


def test_each_window_is_transcribed_by_itself(folder: Path, recognisers: dict[str, Path]) -> None:
    predictor = Predictor.load(folder, asr=str(recognisers["ctc"]))
    samples = noise(3.0)
    moments = predictor.over_time(samples, window=1.5, hop=1.0)
    texts = [moment.prediction.text for moment in moments if moment.prediction is not None]
    parts = [samples[round(moment.start * RATE) : round(moment.end * RATE)] for moment in moments]
    assert texts == [letters_of(part, recognisers["ctc"]) for part in parts]
    assert len(texts) == 3


def test_a_text_model_hears_through_a_recogniser(
    composed: Compose, tmp_path: Path, recognisers: dict[str, Path]
) -> None:
    path = model(tmp_path / "text", composed, "fusion=text_only", "fusion.heads=4")
    heard = Predictor.load(path, asr=str(recognisers["ctc"]))(noise(1.0))
    told = Predictor.load(path)(text=letters_of(noise(1.0), recognisers["ctc"]))
    assert heard == told


def test_a_model_of_audio_alone_needs_no_recogniser(
    composed: Compose, tmp_path: Path, recognisers: dict[str, Path]
) -> None:
    path = model(tmp_path / "audio", composed, "fusion=audio_only", "fusion.heads=4")
    with pytest.raises(InputError, match=r"asr=.*reads audio alone"):
        Predictor.load(path, asr=str(recognisers["ctc"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"asr=\./nowhere: no such folder"),
        (
            "lab/never-fetched",
            r"asr=lab/never-fetched: the checkpoint cannot be fetched from the Hugging Face hub.*asr=PATH",
        ),
        ("not a hub id", "asr=not a hub id: the checkpoint cannot be fetched"),
    ],
)
def test_a_recogniser_that_cannot_be_had_is_named(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Transcriber(name, CPU)


def test_what_is_no_recogniser_is_refused(folder: Path, tmp_path: Path, recognisers: dict[str, Path]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json there"):
        Transcriber(str(tmp_path / "empty"), CPU)
    with pytest.raises(
        InputError, match=r"2 weights of Wav2Vec2ForCTC are missing \(lm_head.*never trained to recognise"
    ):
        Transcriber(str(ctc(tmp_path / "headless", head=False)), CPU)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="bert is no speech recogniser"):
        Transcriber(str(tmp_path / "bert"), CPU)
    with pytest.raises(InputError, match=r"a recording of 0\.00 s cannot be transcribed"):
        Transcriber(str(recognisers["ctc"]), CPU)(noise(0.001))
