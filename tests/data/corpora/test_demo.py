"""The demo corpus: its bytes, its shape, and which modality tells which half of an emotion."""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from torchaudio.functional import detect_pitch_frequency

from fourm_ser.config import build
from fourm_ser.data.corpora import demo
from fourm_ser.data.manifest import read_manifest
from fourm_ser.errors import InputError

EMOTIONS = {"anger", "happiness", "sadness", "neutral"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("demo")
    demo.synthesise(made, utterances=200, seed=0)
    return made


@pytest.fixture(scope="module")
def corpus(folder: Path) -> pd.DataFrame:
    """The manifest with `level` (dB) and `pitch` (Hz, median) of every recording."""
    frame = read_manifest(folder / "manifest.csv")
    levels, pitches = [], []
    for path in frame["audio"]:
        samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        loud = samples.unfold(0, 1024, 512).square().mean(1).sqrt()
        levels.append(20 * float(loud[loud > loud.max() / 4].mean().log10()))
        middle = samples[len(samples) // 4 : 3 * len(samples) // 4]  # half of the time
        pitches.append(float(detect_pitch_frequency(middle, 16000, freq_low=60, freq_high=420).median()))
    return frame.assign(level=levels, pitch=pitches)


def gaps(corpus: pd.DataFrame, cue: str, first: set[str]) -> np.ndarray:
    """How far the mean `cue` of the emotions in `first` is above the others', speaker by speaker."""
    means = corpus.assign(first=corpus["emotion"].isin(first)).groupby(["speaker", "first"])[cue].mean().unstack()
    return (means[True] - means[False]).to_numpy()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        demo.synthesise(tmp_path / name, utterances=40, seed=seed)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys()
    assert all(one[name] != three[name] for name in one)


def test_a_fresh_process_gives_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from fourm_ser.data.corpora import demo; demo.synthesise(pathlib.Path(sys.argv[1]), 40)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, env=environment)
    demo.synthesise(tmp_path / "here", 40)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.slow
def test_five_sessions_of_two_speakers_with_voices_of_their_own(corpus: pd.DataFrame) -> None:
    sessions = corpus.groupby("session")["speaker"].unique().map(sorted).to_dict()
    assert sessions == {f"Ses0{number}": [f"Ses0{number}F", f"Ses0{number}M"] for number in range(1, 6)}
    assert set(demo.VOICES) == set(corpus["speaker"])
    assert len(set(demo.VOICES.values())) == 10
    pitch = corpus.groupby("speaker")["pitch"].median()
    assert all(pitch[f"{session}F"] > 1.3 * pitch[f"{session}M"] for session in sessions)


@pytest.mark.parametrize("utterances", [40, 203, 1600])
def test_emotions_are_balanced_in_every_speaker(utterances: int) -> None:
    script = pd.DataFrame(demo._script(utterances, seed=0))
    assert len(script) == utterances
    counts = script.groupby(["speaker", "emotion"]).size().unstack(fill_value=0)
    assert counts.shape == (10, 4)
    assert set(counts.columns) == EMOTIONS
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    assert counts.sum().max() - counts.sum().min() <= 2
    assert counts.sum(axis=1).max() - counts.sum(axis=1).min() <= 1


def test_some_labels_are_wrong() -> None:
    script = demo._script(1600, seed=0)
    wrong = [line for line in script if demo.AFFECT[line.emotion] != (line.aroused, line.negative)]
    assert 0.004 < len(wrong) / len(script) < 0.03


@pytest.mark.slow
def test_no_sentence_occurs_twice(corpus: pd.DataFrame) -> None:
    texts = [line.text for line in demo._script(demo.MOST, seed=0)]
    assert len(set(texts)) == len(texts) == demo.MOST
    assert corpus["text"].is_unique
    assert corpus["id"].is_unique
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) == 3
    assert max(lengths) == 16


def test_sentences_are_whole() -> None:
    for line in demo._script(1600, seed=0):
        assert line.text[0].isupper()
        assert line.text.endswith(".")
        assert not set(line.text) & set("{}|!?")
        assert not re.search(r"\ba [aeiou]", line.text)


def test_the_audio_is_as_promised(corpus: pd.DataFrame) -> None:
    for path, duration in zip(corpus["audio"], corpus["duration"], strict=True):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        samples = soundfile.read(path, dtype="float64")[0]
        assert np.isfinite(samples).all()
        assert 0.02 < np.abs(samples).max() < 0.99
        assert len(samples) / 16000 == pytest.approx(duration)
    assert 0.5 < corpus["duration"].min() < 1.5
    assert 4 < corpus["duration"].max() < 8


def test_the_voice_tells_arousal_in_every_speaker(corpus: pd.DataFrame) -> None:
    assert gaps(corpus, "level", {"anger", "happiness"}).min() > 3
    assert gaps(corpus, "pitch", {"anger", "happiness"}).min() > 3


@pytest.mark.parametrize(("cue", "most"), [("level", 1.5), ("pitch", 8.0)])
def test_the_voice_does_not_tell_valence(corpus: pd.DataFrame, cue: str, most: float) -> None:
    # Within one side of arousal at a time, whose differences would drown those of valence.
    for negative, other in (("anger", "happiness"), ("sadness", "neutral")):
        gap = gaps(corpus[corpus["emotion"].isin({negative, other})], cue, {negative})
        assert abs(gap.mean()) < most


def test_the_words_tell_valence_and_not_arousal() -> None:
    script = pd.DataFrame(demo._script(1600, seed=0))
    session = script["speaker"].str[:5]
    recalls: dict[str, list[float]] = {"valence": [], "arousal": []}
    sides = {"valence": {"anger", "sadness"}, "arousal": {"anger", "happiness"}}
    for held_out, (axis, side) in itertools.product(session.unique(), sides.items()):
        train, test = script[session != held_out], script[session == held_out]
        model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
        guessed = model.fit(train["text"], train["emotion"].isin(side)).predict(test["text"])
        recalls[axis].append(float(recall_score(test["emotion"].isin(side), guessed, average="macro")))
    assert 0.94 < np.mean(recalls["valence"]) < 0.995
    assert 0.45 < np.mean(recalls["arousal"]) < 0.55


@pytest.mark.parametrize("utterances", [-1, 0, 39, demo.MOST + 1])
def test_a_number_of_utterances_out_of_bounds_is_refused(tmp_path: Path, utterances: int) -> None:
    with pytest.raises(InputError, match=r"data\.utterances"):
        demo.synthesise(tmp_path / "demo", utterances)
    assert not (tmp_path / "demo").exists()


def test_a_voice_that_is_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.VOICES, "Ses01F", "nobody")
    with pytest.raises(InputError, match=r"no voice en-us\+nobody"):
        demo.synthesise(tmp_path, utterances=40)
    assert not (tmp_path / "manifest.csv").exists()


def test_missing_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espeakng_loader.get_data_path", lambda: str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="espeak-ng finds no data"):
        demo.synthesise(tmp_path, utterances=40)


@pytest.mark.parametrize(
    ("key", "value"),
    [("utterances", -5), ("utterances", 39), ("utterances", 10_001), ("utterances", "many"), ("utterances", 40.0),
     ("corpus_seed", -1), ("corpus_seed", "abc"), ("max_seconds", -1)],
)  # fmt: skip
def test_a_value_that_a_key_cannot_have_is_refused_before_anything_is_made(
    node: Callable[..., dict[str, Any]], tmp_path: Path, key: str, value: object
) -> None:
    with pytest.raises(InputError, match=rf"^data\.{key}={value}: expected "):
        build({**node("demo"), key: value}, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
