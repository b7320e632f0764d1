"""Speech recognisers in the place of given texts: theirs is the transcript, whatever recordings are beside one."""

import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2ForCTC, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from fourm_ser.errors import InputError
from fourm_ser.prediction.items import Item
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.prediction.recognisers import Whisper
from fourm_ser.prediction.transcriber import Transcriber
from tests.conftest import Compose
from tests.prediction.predictors import LETTERS, RATE, ctc, model, noise, whisper

CPU = torch.device("cpu")
LENGTHS = (0.4, 1.3, 0.7, 1.9)
LANGUAGES = ["en", "de", "am", "haw", "zh", "es", "ko", "no"]
NOISES = [noise(length, place) for place, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def recognisers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("asr")
    return {
        "ctc": ctc(folder / "ctc"),
        "whisper": whisper(folder / "whisper"),
        "english": whisper(folder / "english", ["en"]),
        "languages": whisper(folder / "languages", LANGUAGES),
    }


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


def generated(recordings: Sequence[np.ndarray], recogniser: Path, **options: Any) -> list[str]:
    """What a Whisper writes of each recording alone, by hand: transformers' `generate`, letter by letter."""
    network = WhisperForConditionalGeneration.from_pretrained(recogniser).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(recogniser)
    letters = {place: letter for letter, place in WhisperTokenizer.from_pretrained(recogniser).get_vocab().items()}
    texts = []
    for samples in recordings:
        heard = extractor(samples, sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            tokens = network.generate(heard["input_features"], **options)[0].tolist()
        text = "".join(letters[token] for token in tokens if len(letters.get(token, "")) == 1).replace("Ġ", " ")
        texts.append(" ".join(text.split()))
    return texts


def heard_by(transcriber: Transcriber) -> list[int]:
    """How many recordings its encoder is given in each call, as it is called."""
    assert isinstance(transcriber.recogniser, Whisper)
    heard: list[int] = []
    encoder = transcriber.recogniser.model.get_encoder()
    encoder.register_forward_hook(lambda _, __, output: heard.append(len(output.last_hidden_state)))
    return heard


def test_a_ctc_recogniser_writes_the_likeliest_letters(recognisers: dict[str, Path]) -> None:
    texts = Transcriber(str(recognisers["ctc"]), CPU)(NOISES)
    assert texts == [letters_of(samples, recognisers["ctc"]) for samples in NOISES]
    assert len(set(texts)) == len(texts)
    assert all(texts)


@pytest.mark.parametrize("kind", ["whisper", "english", "languages"])
def test_a_whisper_writes_of_many_recordings_what_it_writes_of_each(recognisers: dict[str, Path], kind: str) -> None:
    transcriber = Transcriber(str(recognisers[kind]), CPU, batch_size=3)
    heard = heard_by(transcriber)
    texts = transcriber(NOISES)
    if kind != "whisper":  # which hears what it wrote times of anew
        assert heard == [3, 1]  # each recording once, be its language detected or not
    task = {"task": "transcribe"} if kind == "languages" else {}
    assert texts == generated(NOISES, recognisers[kind], **task)
    assert all(texts)


def test_a_whisper_that_would_listen_for_ever_is_stopped(tmp_path: Path) -> None:
    transcriber = Transcriber(str(whisper(tmp_path, times=[0])), CPU)
    model = transcriber.recogniser.model  # type: ignore[attr-defined]
    model.generation_config.suppress_tokens = list(range(model.config.vocab_size - 101))  # all but times
    (refused,) = transcriber(NOISES[:1])
    assert "a recording of 0.40 s cannot be transcribed" in str(refused)
    assert "times that do not advance" in str(refused)


def test_a_whisper_s_batch_is_as_long_as_what_it_pads_recordings_to(recognisers: dict[str, Path]) -> None:
    sizes = {
        seconds: Transcriber(str(recognisers["english"]), CPU, batch_seconds=seconds).batch_size
        for seconds in (1.0, 5.0, 128.0)
    }
    assert sizes == {1.0: 1, 5.0: 2, 128.0: 32}  # of two seconds each


def test_a_chosen_language_is_the_one_that_is_heard(recognisers: dict[str, Path]) -> None:
    texts = {}
    for language in ("de", "haw"):
        texts[language] = Transcriber(str(recognisers["languages"]), CPU, language=language)(NOISES[:2])
        options = {"task": "transcribe", "language": language}
        assert texts[language] == generated(NOISES[:2], recognisers["languages"], **options)
    assert texts["de"] != texts["haw"]
    assert Transcriber(str(recognisers["languages"]), CPU, language="German")(NOISES[:2]) == texts["de"]
    english = Transcriber(str(recognisers["english"]), CPU, language="en")(NOISES[:2])
    assert english == Transcriber(str(recognisers["english"]), CPU)(NOISES[:2])


@pytest.mark.parametrize(
    ("kind", "language", "message"),
    [
        ("languages", "martian", r"asr_language=martian: .*Expected a code .* am \(amharic\), de .* and 2 more"),
        ("languages", "fr", "asr_language=fr: the recogniser knows no such language.*or null to detect it"),
        ("english", "german", "asr_language=german: the recogniser knows English alone. Leave it out"),
        ("whisper", "en", r"asr_language=en: .*generation_config\.json names no languages"),
        ("ctc", "de", r"asr_language=de: .*\(wav2vec2\) knows the language that it was trained on alone"),
    ],
)
def test_a_language_that_a_recogniser_does_not_know_is_refused(
    recognisers: dict[str, Path], kind: str, language: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        Transcriber(str(recognisers[kind]), CPU, language=language)
    assert "\n" not in str(refused.value)


def test_a_recording_longer_than_whisper_s_window_is_heard_to_its_end(recognisers: dict[str, Path]) -> None:
    transcriber = Transcriber(str(recognisers["languages"]), CPU, language="de")
    heard = heard_by(transcriber)
    texts = transcriber([NOISES[0], noise(5.0), NOISES[1]])
    assert heard[-1] == 2  # those that fit
    assert len(heard) >= 4  # and of the other two seconds at a time
    assert [texts[0], texts[2]] == transcriber(NOISES[:2])
    assert [texts[1]] == transcriber([noise(5.0)])


class Counting:
    """Writes a recording's number of samples, unless the batch is too large for it, or one has an odd number."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.batches: list[int] = []

    def takes_together(self, samples: np.ndarray) -> bool:
        return True

    def __call__(self, recordings: Sequence[np.ndarray]) -> list[str]:
        self.batches.append(len(recordings))
        if len(recordings) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        if any(len(samples) % 2 for samples in recordings):
            raise ValueError("an odd one\nand more")
        return [f"{len(samples)} [NOISE]" for samples in recordings]


def test_what_cannot_be_heard_takes_no_other_with_it(recognisers: dict[str, Path]) -> None:
    transcriber = Transcriber(str(recognisers["whisper"]), CPU)
    transcriber.recogniser = Counting(8)
    texts = transcriber([np.zeros(length, np.float32) for length in (2, 4, 5, 8, 10, 7)])
    assert [texts[place] for place in (0, 1, 3, 4)] == ["2", "4", "8", "10"]
    for place in (2, 5):
        with pytest.raises(InputError, match=r"a recording of 0\.00 s cannot be transcribed \(an odd one\)"):
            raise texts[place]  # type: ignore[misc]


def test_a_batch_too_large_for_the_memory_is_heard_in_parts(
    recognisers: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    transcriber = Transcriber(str(recognisers["whisper"]), CPU, batch_size=6)
    counting = transcriber.recogniser = Counting(3)
    recordings = [np.zeros(2 * length, np.float32) for length in range(12)]
    with caplog.at_level(logging.WARNING):
        assert transcriber(recordings) == [str(2 * length) for length in range(12)]
    assert caplog.text.count("the recogniser hears at most 3 at once from now on") == 1
    assert counting.batches == [6, 3, 3, 3, 3]


@pytest.mark.parametrize("kind", ["ctc", "languages"])
def test_the_transcript_counts_as_the_text(folder: Path, recognisers: dict[str, Path], kind: str) -> None:
    predictor = Predictor.load(folder, asr=str(recognisers[kind]))
    samples = [noise(length, place) for place, length in enumerate(LENGTHS)]
    heard = predictor(samples)
    assert isinstance(heard, list)
    texts = [result.text for result in heard]
    assert texts == Transcriber(str(recognisers[kind]), CPU)(samples)
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
    path = model(tmp_path / "text", composed, "fusion=text_attention", "fusion.heads=4")
    heard = Predictor.load(path, asr=str(recognisers["ctc"]))(noise(1.0))
    told = Predictor.load(path)(text=letters_of(noise(1.0), recognisers["ctc"]))
    assert heard == told


def test_a_language_is_told_to_the_recogniser_of_a_predictor(folder: Path, recognisers: dict[str, Path]) -> None:
    told = Predictor.load(folder, asr=str(recognisers["languages"]), asr_language="haw")
    results = told.predict_many([*map(Item, NOISES), Item(noise(1.0), "calm"), Item(noise(0.001))])
    texts = [result.text if isinstance(result, Prediction) else str(result) for result in results]
    assert texts[:4] == Transcriber(str(recognisers["languages"]), CPU, language="haw")(NOISES)
    assert texts[4] == "calm"
    with pytest.raises(InputError, match=r"asr_language=de: there is no recogniser\. Add asr="):
        Predictor.load(folder, asr_language="de")


def test_a_model_of_audio_alone_needs_no_recogniser(
    composed: Compose, tmp_path: Path, recognisers: dict[str, Path]
) -> None:
    path = model(tmp_path / "audio", composed, "fusion=audio_attention", "fusion.heads=4")
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
        raise Transcriber(str(recognisers["ctc"]), CPU)([noise(0.001)])[0]  # type: ignore[misc]
