"""A corpus under a protocol: which utterances and classes, what is left out and why, and what is written of it."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pytest
import soundfile

from fourm_ser.data.content import digest_of
from fourm_ser.data.corpora.manifest import ManifestCorpus
from fourm_ser.data.corpus import BAD_RECORDING, OUTSIDE
from fourm_ser.data.levels import SILENCE
from fourm_ser.data.manifest import read_manifest
from fourm_ser.data.readers import AudioReader
from fourm_ser.data.recordings import SILENT
from fourm_ser.data.release import LeftOut
from fourm_ser.data.splits import write_split
from fourm_ser.errors import InputError

RATE = 16_000
EMOTIONS = ["sadness", "excitement", "anger", "neutral"]  # as they come in the manifest
CANONICAL = ["anger", "sadness", "neutral", "excitement"]


class Make(Protocol):
    """Builds the corpus of a manifest, with the config's defaults but for the changes, and sets it up."""

    def __call__(self, frame: pd.DataFrame | None = None, **changes: Any) -> ManifestCorpus: ...


def record(folder: Path) -> pd.DataFrame:
    """Three sessions of two speakers who say each of four emotions twice, but for one sadness in the last session.

    Utterances are noise of their own from 0.1 s to 0.57 s.
    """
    generator = np.random.default_rng(0)
    made = []
    for place in range(48):
        session, speaker, emotion = place // 16 + 1, "FM"[place // 8 % 2], EMOTIONS[place % 4]
        if place == 40:
            continue  # so that the sides differ
        path = folder / f"{place}.wav"
        soundfile.write(path, generator.uniform(-0.5, 0.5, 1600 + 160 * place), RATE, subtype="PCM_16")
        made.append((f"u{place:02}", str(path), f"This is {'very ' * (place % 5)}{place}.", emotion, session, speaker))
    frame = pd.DataFrame(made, columns=["id", "audio", "text", "emotion", "session", "speaker"])
    frame["speaker"] = [
        f"{session}{speaker}" for session, speaker in zip(frame["session"], frame["speaker"], strict=True)
    ]
    return frame


DEFAULTS: dict[str, Any] = {
    "audio_root": None,
    "emotions": None,
    "label_map": {},
    "drop_other": False,
    "language": None,
    "split": "session",
    "split_file": None,
    "fold": 0,
    "fractions": [0.8, 0.1, 0.1],
    "stratify": True,
    "validation": "session",
    "validation_fraction": 0.2,
    "split_seed": 0,
    "min_seconds": None,
    "max_seconds": 30.0,
    "too_long": "crop",
    "strict": True,
    "sampler": "shuffle",
    "workers": 0,
    "clean": "tags",
    "verify": "quick",
}


def manifest_corpus(path: Path, cache: Path, **changes: Any) -> ManifestCorpus:
    """The corpus of a manifest, with the config's defaults but for the changes."""
    return ManifestCorpus(str(path), cache=cache, **{**DEFAULTS, **changes})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return record(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def make(tmp_path: Path, recorded: pd.DataFrame) -> Make:
    def build(frame: pd.DataFrame | None = None, **changes: Any) -> ManifestCorpus:
        path = tmp_path / "manifest.csv"
        (recorded if frame is None else frame).to_csv(path, index=False)
        corpus = manifest_corpus(path, tmp_path / "cache", **changes)
        corpus.setup()
        return corpus

    return build


# Emotions


def test_all_emotions_in_canonical_order_are_the_classes(make: Make, recorded: pd.DataFrame) -> None:
    corpus = make()
    assert corpus.emotions == CANONICAL
    assert [corpus.emotions[label] for label in corpus.label] == recorded["emotion"].tolist()
    assert corpus.label.dtype == np.int64


def test_chosen_emotions_are_the_classes_in_the_order_of_choice(make: Make, recorded: pd.DataFrame) -> None:
    chosen = ["neutral", "excitement", "sadness", "anger"]
    corpus = make(emotions=chosen)
    assert corpus.emotions == chosen
    assert corpus.label.tolist() == [chosen.index(emotion) for emotion in recorded["emotion"]]


def test_other_emotions_are_refused_with_their_counts(make: Make) -> None:
    with pytest.raises(InputError) as caught:
        make(emotions=["anger", "neutral"])
    message = str(caught.value)
    assert "23 of 47 utterances" in message
    assert "11 sadness, 12 excitement" in message
    assert "drop_other=true" in message


def test_other_emotions_are_left_out_where_that_is_asked_for(make: Make, recorded: pd.DataFrame) -> None:
    corpus = make(emotions=["neutral", "anger"], drop_other=True)
    kept = recorded[recorded["emotion"].isin(["neutral", "anger"])]
    assert corpus.frame["id"].tolist() == kept["id"].tolist()
    assert corpus.label.tolist() == [int(emotion == "anger") for emotion in kept["emotion"]]
    assert sorted(np.concatenate(corpus.split).tolist()) == list(range(len(kept)))


def test_recordings_that_are_left_out_need_not_be_there(make: Make, recorded: pd.DataFrame) -> None:
    gone = recorded.copy()
    gone.loc[gone["emotion"] == "sadness", "audio"] = "nowhere.wav"
    assert len(make(gone, emotions=["neutral", "anger", "excitement"], drop_other=True).frame) == 36


def test_an_emotion_that_the_corpus_lacks_is_refused(make: Make) -> None:
    with pytest.raises(InputError) as caught:
        make(emotions=["anger", "happiness", "fear"], drop_other=True)
    assert "no utterance of happiness, fear." in str(caught.value)
    assert "12 anger, 11 sadness, 12 neutral, 12 excitement" in str(caught.value)


def test_label_map_folds_emotions_before_the_choice(make: Make, recorded: pd.DataFrame) -> None:
    mapped = {"excitement": "happiness", "sadness": "neutral"}
    corpus = make(label_map=mapped, emotions=["happiness", "anger", "neutral"])
    expected = [mapped.get(emotion, emotion) for emotion in recorded["emotion"]]
    assert [corpus.emotions[label] for label in corpus.label] == expected
    assert make(label_map=mapped).emotions == ["anger", "happiness", "neutral"]


def test_label_map_exchanges_two_emotions(make: Make, recorded: pd.DataFrame) -> None:
    corpus = make(label_map={"anger": "neutral", "neutral": "anger"})
    changed = {"anger": "neutral", "neutral": "anger", "sadness": "sadness", "excitement": "excitement"}
    assert [corpus.emotions[label] for label in corpus.label] == [changed[emotion] for emotion in recorded["emotion"]]


def test_counts_are_those_of_the_training_side(make: Make, recorded: pd.DataFrame) -> None:
    for fold in range(3):
        corpus = make(fold=fold)
        # Session `fold` is tested, the next one validates.
        trained = recorded[recorded["session"] == (fold + 2) % 3 + 1]
        assert corpus.frame["id"].iloc[corpus.split.train].tolist() == trained["id"].tolist()
        counted = Counter(trained["emotion"])
        assert corpus.counts == [counted[emotion] for emotion in corpus.emotions]
    assert make(fold=0).counts != make(fold=1).counts


# Lengths


def test_shorter_utterances_than_min_seconds_are_left_out(make: Make, recorded: pd.DataFrame) -> None:
    segments = recorded.assign(start="", end="")
    segments.loc[46, ["start", "end"]] = ["0.0", "0.19"]
    corpus = make(segments, min_seconds=0.2)
    # Utterance 10 lasts 0.2 s; the last, a segment, does not.
    assert corpus.frame["id"].tolist() == recorded["id"].tolist()[10:46]
    assert corpus.frame.index.tolist() == list(range(36))
    assert [corpus.emotions[label] for label in corpus.label] == recorded["emotion"].tolist()[10:46]
    assert sorted(np.concatenate(corpus.split).tolist()) == list(range(36))


def test_min_seconds_that_leaves_nothing_is_refused(make: Make) -> None:
    with pytest.raises(InputError, match=r"no utterance of anger, .* is left\. Left out: .*shorter than data\.min_sec"):
        make(min_seconds=60.0)


def test_longer_utterances_are_refused_where_that_is_asked_for(make: Make) -> None:
    with pytest.raises(InputError) as caught:
        make(max_seconds=0.5, too_long="refuse")
    # Utterances 41 to 47 last 0.51 s to 0.57 s; 40 is missing.
    assert "7 utterances are longer than data.max_seconds=0.5" in str(caught.value)
    assert "u41 (row 42, 0.51 s)" in str(caught.value)
    assert len(make(max_seconds=0.58, too_long="refuse").frame) == 47


def test_a_segment_outside_its_recording_is_named_with_its_row(make: Make, recorded: pd.DataFrame) -> None:
    segments = recorded.assign(start="")
    segments.loc[[3, 5], "start"] = "0.9"
    with pytest.raises(InputError) as caught:
        make(segments)
    assert "2 x segment outside its recording, the first is u03 (row 5:" in str(caught.value)
    assert f"0.9 s of a recording of {soundfile.info(recorded['audio'][3]).duration:.3f} s" in str(caught.value)


def test_a_segment_too_short_for_a_sample_is_refused_before_training(make: Make, recorded: pd.DataFrame) -> None:
    segments = recorded.assign(start="", end="")
    segments.loc[3, ["start", "end"]] = ["0.05", "0.050001"]
    with pytest.raises(InputError, match="u03"):
        make(segments)


def test_bad_recordings_are_refused(make: Make, recorded: pd.DataFrame) -> None:
    changed = recorded.copy()
    changed.loc[[1, 7], "audio"] = "nowhere.wav"
    named = r"2 x recording that cannot be used, the first is u01 \(row 3: .*nowhere\.wav"
    with pytest.raises(InputError, match=named):
        make(changed)


def test_a_second_setup_does_nothing(make: Make) -> None:
    corpus = make()
    frame, split = corpus.frame, corpus.split
    corpus.manifest.unlink()
    corpus.setup()
    assert corpus.frame is frame
    assert corpus.split is split


def test_a_result_that_is_not_speaker_independent_is_warned_of(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make()
        assert "speaker-independent" not in caplog.text
        make(split="random", fractions=[0.5, 0.25, 0.25])
    assert "not speaker-independent" in caplog.text


def test_audio_is_looked_for_under_the_audio_root(make: Make, recorded: pd.DataFrame) -> None:
    changed = recorded.assign(audio=[Path(path).name for path in recorded["audio"]])
    with pytest.raises(InputError, match="47 x recording that cannot be used"):
        make(changed)
    corpus = make(changed, audio_root=str(Path(recorded["audio"][0]).parent))
    assert corpus.frame["audio"].tolist() == [str(Path(path).resolve()) for path in recorded["audio"]]


# What is left out


@pytest.fixture
def faulty(tmp_path: Path, recorded: pd.DataFrame) -> pd.DataFrame:
    """The manifest with six recordings that are missing, torn, empty or no audio, and a segment outside its own."""
    content = Path(recorded["audio"][2]).read_bytes()
    (tmp_path / "torn.wav").write_bytes(content[:-200])
    (tmp_path / "text.wav").write_text("No sound, only words.")
    (tmp_path / "nothing.wav").write_bytes(b"")
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), RATE)
    changed = recorded.assign(start="")
    audio = {1: "gone.wav", 2: "torn.wav", 3: "text.wav", 4: "nothing.wav", 5: "silent.wav", 6: "gone.wav"}
    for row, name in audio.items():
        changed.loc[row, "audio"] = name
    changed.loc[7, "start"] = "9.5"
    return changed


def test_strict_names_each_reason_with_its_count_and_first_place(make: Make, faulty: pd.DataFrame) -> None:
    with pytest.raises(InputError) as caught:
        make(faulty)
    message = str(caught.value)
    assert "7 faults" in message
    assert f"6 x {BAD_RECORDING}, the first is u01 (row 3: " in message
    assert "gone.wav: no such recording" in message
    assert f"1 x {OUTSIDE}, the first is u07 (row 9: " in message
    assert "u02" not in message
    assert "data.strict=false" in message


def test_what_cannot_be_used_is_left_out_and_counted(
    make: Make, faulty: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        corpus = make(faulty, strict=False)
    bad = [f"u{row:02}" for row in range(1, 8)]
    assert [item.id for item in corpus.left_out] == bad
    assert [item.reason for item in corpus.left_out] == [BAD_RECORDING] * 6 + [OUTSIDE]
    assert all(item.fault for item in corpus.left_out)
    said = ["no such", "truncated", "cannot be decoded", "cannot be decoded", "no samples", "gone.wav", "9.5 s"]
    for row, (item, words) in enumerate(zip(corpus.left_out, said, strict=True), start=3):
        assert item.where.startswith(f"row {row}: ")
        assert words in item.where
    assert corpus.frame["id"].tolist() == [key for key in faulty["id"] if key not in bad]
    assert f"left out 6: {BAD_RECORDING}" in caplog.text
    assert f"left out 1: {OUTSIDE}" in caplog.text
    assert sorted(np.concatenate(corpus.split).tolist()) == list(range(40))
    # What stays is what it would be without the others.
    alone = make(faulty.drop(index=range(1, 8)))
    columns = [column for column in alone.frame.columns if column != "where"]
    pd.testing.assert_frame_equal(corpus.frame[columns], alone.frame[columns], check_exact=True)
    assert corpus.label.tolist() == alone.label.tolist()


@pytest.fixture
def levels(recorded: pd.DataFrame, tmp_path: Path) -> pd.DataFrame:
    """The manifest with recordings in which nothing is heard, or not for long enough, and with unusual ones."""
    changed = recorded.copy()
    rate, hum = RATE, 0.3 * np.sin(np.arange(RATE))
    late = np.concatenate([np.zeros(rate), hum])  # from 1 s on
    sounds = {
        1: np.zeros(rate),
        2: np.stack([hum, -hum], axis=1),
        3: late,  # up to 1 s
        4: late,  # from 0.5 s on
        5: late,
        6: np.clip(8 * hum, -1, 1),
        7: 4.5 * hum,
        8: 32768 * hum,
    }
    for row, samples in sounds.items():
        path = tmp_path / f"level{row}.wav"
        soundfile.write(path, samples, rate, subtype="FLOAT")
        changed.loc[row, "audio"] = str(path)
    return changed.assign(start="", end="").assign(
        end=lambda frame: frame["end"].mask(frame.index == 3, "1.0"),
        start=lambda frame: frame["start"].mask(frame.index == 4, "0.5"),
    )


def test_where_nothing_is_heard_is_a_fault(make: Make, levels: pd.DataFrame) -> None:
    with pytest.raises(InputError) as caught:
        make(levels)
    assert "4 faults" in str(caught.value)
    assert f"1 x {BAD_RECORDING}, the first is u08 (row 10: {levels['audio'][8]}: samples reach 9830" in str(
        caught.value
    )
    assert "divide by 32768" in str(caught.value)
    assert f"3 x {SILENT}, the first is u01 (row 3: {levels['audio'][1]}: silent: no sample" in str(caught.value)
    corpus = make(levels, strict=False)
    assert [(item.id, item.reason, item.fault) for item in corpus.left_out] == [
        ("u08", BAD_RECORDING, True),
        *((key, SILENT, True) for key in ("u01", "u02", "u03")),
    ]
    assert "silent from 0 s to 1 s" in corpus.left_out[-1].where
    assert {"u04", "u05", "u06", "u07"} <= set(corpus.frame["id"])


def test_silence_is_judged_on_what_is_used(make: Make, levels: pd.DataFrame) -> None:
    corpus = make(levels, strict=False, max_seconds=0.8)
    silent = [item for item in corpus.left_out if item.reason == SILENT]
    assert [item.id for item in silent] == ["u01", "u02", "u03", "u05"]
    assert "silent from 0 s to 0.8 s" in silent[-1].where
    # What is left reads as something is heard, and what is left out as nothing is.
    read = AudioReader(corpus.frame, 0.8)
    assert min(np.abs(read(row)).max() for row in range(len(corpus.frame))) >= SILENCE


def test_unusual_levels_are_counted_and_used(
    make: Make, levels: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        corpus = make(levels, strict=False)
    assert "data: 1 clipped, such as u06" in caplog.text
    assert "data: 1 over full scale, such as u07" in caplog.text
    summary = json.loads((corpus.prepare() / "summary.json").read_text())
    assert summary["levels"] == {
        "clipped": {"count": 1, "first": ["u06"]},
        "over full scale": {"count": 1, "first": ["u07"]},
    }


def test_how_thoroughly_recordings_are_verified_is_a_choice(make: Make) -> None:
    assert make(verify="full").frame["digest"].tolist() == make().frame["digest"].tolist()


def test_an_emotion_whose_recordings_are_all_bad_is_refused(make: Make, recorded: pd.DataFrame) -> None:
    changed = recorded.copy()
    changed.loc[changed["emotion"] == "anger", "audio"] = "nowhere.wav"
    with pytest.raises(InputError) as caught:
        make(changed, strict=False)
    assert "no utterance of anger is left" in str(caught.value)
    assert f"12 x {BAD_RECORDING}" in str(caught.value)


def test_what_was_not_asked_for_is_counted_and_no_fault(make: Make, recorded: pd.DataFrame) -> None:
    spoken = recorded.assign(language=["en"] * 40 + ["de"] * 4 + ["zh"] * 3)
    corpus = make(
        spoken, emotions=["anger", "neutral"], drop_other=True, language="en", min_seconds=0.2, validation="random"
    )
    assert not any(item.fault for item in corpus.left_out)
    english = spoken[spoken["language"] == "en"]
    chosen = english[english["emotion"].isin(["anger", "neutral"])]
    seconds = [soundfile.info(path).duration for path in chosen["audio"]]
    counts = Counter(item.reason for item in corpus.left_out)
    assert counts == {
        "language de is not data.language": 4,
        "language zh is not data.language": 3,
        "emotion sadness is not in data.emotions": (english["emotion"] == "sadness").sum(),
        "emotion excitement is not in data.emotions": (english["emotion"] == "excitement").sum(),
        "shorter than data.min_seconds=0.2": sum(length < 0.2 for length in seconds),
    }
    kept = [key for key, length in zip(chosen["id"], seconds, strict=True) if length >= 0.2]
    assert corpus.frame["id"].tolist() == kept
    assert sorted([*kept, *(item.id for item in corpus.left_out)]) == recorded["id"].tolist()
    rows = {key: row for row, key in enumerate(recorded["id"], start=2)}
    assert all(item.where == f"row {rows[item.id]}" for item in corpus.left_out)


def test_a_label_map_that_names_no_emotion_is_refused(make: Make) -> None:
    with pytest.raises(InputError) as caught:
        make(label_map={"excitement": "happiness", "angry": "anger"})
    assert "has no emotion angry to fold" in str(caught.value)
    assert "12 anger, 11 sadness, 12 neutral, 12 excitement" in str(caught.value)


def test_a_label_map_may_name_what_other_corpora_have(make: Make) -> None:
    # One map serves a corpus with fear and one without it; corpora may have names of their own, too.
    assert make(label_map={"fear": "anger"}).emotions == CANONICAL
    named = {"anger": "rage", "neutral": "calm"}
    assert make(label_map=named).emotions == ["sadness", "excitement", "calm", "rage"]


# Languages


def test_only_the_chosen_language_is_used(make: Make, recorded: pd.DataFrame) -> None:
    spoken = recorded.assign(language=["en", "zh"] * 23 + ["en"])
    for language in ("en", "zh"):
        corpus = make(spoken, language=language)
        kept = spoken[spoken["language"] == language]
        assert corpus.frame["id"].tolist() == kept["id"].tolist()
        assert len(corpus.left_out) == 47 - len(kept)
        assert set(corpus.emotions) == set(kept["emotion"])


def test_every_language_is_used_where_none_or_all_is_chosen(make: Make, recorded: pd.DataFrame) -> None:
    spoken = recorded.assign(language=["en", "zh", ""] * 15 + ["en", "zh"])
    for language in (None, "all"):
        corpus = make(spoken, language=language)
        assert corpus.frame["id"].tolist() == recorded["id"].tolist()
        assert corpus.frame["language"].tolist() == spoken["language"].tolist()
        assert corpus.left_out == []


def test_a_row_without_a_language_is_taken_to_be_of_the_chosen_one(make: Make, recorded: pd.DataFrame) -> None:
    spoken = recorded.assign(language=["", "en", "de"] * 15 + ["", "en"])
    corpus = make(spoken, language="en")
    assert corpus.frame["id"].tolist() == spoken.loc[spoken["language"] != "de", "id"].tolist()
    assert set(corpus.frame["language"]) == {"en"}
    assert make(recorded, language="en").frame["id"].tolist() == recorded["id"].tolist()


def test_a_language_that_nobody_speaks_is_refused(make: Make, recorded: pd.DataFrame) -> None:
    with pytest.raises(InputError):
        make(recorded.assign(language="en"), language="de")
    with pytest.raises(InputError, match="no utterance of anger"):
        make(recorded.assign(language="en"), language="de", emotions=["anger", "neutral"], drop_other=True)


# What is written


def load(path: Path, cache: Path, **changes: Any) -> ManifestCorpus:
    corpus = manifest_corpus(path, cache, **changes)
    corpus.load()
    return corpus


@pytest.fixture
def table(tmp_path: Path, recorded: pd.DataFrame) -> Path:
    """A manifest beside its recordings, in another folder than they are named by; with segments and odd texts."""
    folder = tmp_path / "corpus"
    (folder / "wav").mkdir(parents=True)
    frame = recorded.assign(start="", end="", language=["en"] * 46 + [""], note="not read")
    for place, path in enumerate(recorded["audio"]):
        (folder / "wav" / f"{place:02}.wav").hardlink_to(path)
    frame["audio"] = [f"wav/{place:02}.wav" for place in range(47)]
    frame.loc[20, ["start", "end"]] = ["0.0312345678901", "0.1"]
    frame.loc[21, "start"] = "0.05"
    texts = ["", ' He said  "no",\ntwice. [SIGH]', "NA", "Ça, où? 你好 🙂", "null", "a, b"]
    frame.loc[range(6), "text"] = texts
    frame.to_csv(folder / "mine.csv", index=False)
    return folder / "mine.csv"


CHOICES: dict[str, Any] = {
    "emotions": ["neutral", "happiness", "anger"],
    "label_map": {"excitement": "happiness"},
    "drop_other": True,
    "language": "en",
    "min_seconds": 0.12,
    "max_seconds": 0.4,
}


def test_a_written_manifest_is_the_frame(tmp_path: Path, table: Path) -> None:
    corpus = manifest_corpus(table, tmp_path / "cache", **CHOICES)
    folder = corpus.prepare()
    read = read_manifest(folder / "manifest.csv", corpus.audio_root)
    assert len(read) > 20
    for column in ("id", "audio", "text", "emotion", "speaker", "session", "language"):
        assert read[column].tolist() == corpus.frame[column].tolist()
    for column in ("start", "end", "duration"):
        np.testing.assert_array_equal(read[column], corpus.frame[column])
    assert all(Path(audio).is_file() for audio in read["audio"])
    written = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    assert set(written["audio"]) <= {f"wav/{place:02}.wav" for place in range(47)}


def test_a_corpus_out_of_a_written_manifest_is_the_same(tmp_path: Path, table: Path) -> None:
    first = manifest_corpus(table, tmp_path / "cache", **CHOICES)
    folder = first.prepare()
    again = load(
        folder / "manifest.csv",
        tmp_path / "cache",
        audio_root=str(table.parent),
        emotions=CHOICES["emotions"],
        max_seconds=CHOICES["max_seconds"],
    )
    columns = [column for column in first.frame.columns if column != "where"]
    pd.testing.assert_frame_equal(again.frame[columns], first.frame[columns], check_exact=True)
    assert again.emotions == first.emotions
    assert again.left_out == []
    for corpus in (first, again):
        corpus.setup()
    assert [side.tolist() for side in again.split] == [side.tolist() for side in first.split]
    assert again.label.tolist() == first.label.tolist()


def test_what_is_left_out_is_written_beside_the_manifest(tmp_path: Path, make: Make, faulty: pd.DataFrame) -> None:
    corpus = make(faulty, strict=False, min_seconds=0.2)
    written = pd.read_csv(corpus.prepare() / "left_out.csv")
    assert [LeftOut(*row) for row in written.itertuples(index=False)] == corpus.left_out
    assert len(written) == 7 + 3  # of the shorter ones, u00, u08 and u09 are no faults
    assert manifest_corpus(tmp_path / "manifest.csv", tmp_path / "cache", strict=False).prepare().is_dir()


def test_a_summary_counts_what_there_is_and_what_is_left_out(make: Make, faulty: pd.DataFrame) -> None:
    spoken = faulty.assign(language=["en"] * 30 + ["de"] * 17)
    corpus = make(spoken, strict=False, min_seconds=0.2, split="speaker")
    summary = json.loads((corpus.prepare() / "summary.json").read_text(encoding="utf-8"))
    frame = spoken[10:]
    seconds = np.array([soundfile.info(path).duration for path in frame["audio"]])
    assert summary["corpus"] == "manifest"
    assert summary["source"] == corpus.source
    assert (summary["min_seconds"], summary["language"], summary["emotions"]) == (
        0.2,
        None,
        {emotion: (frame["emotion"] == emotion).sum() for emotion in CANONICAL},
    )
    assert summary["utterances"] == len(frame) == 37
    assert summary["hours"] == pytest.approx(seconds.sum() / 3600, abs=5e-5)
    assert (summary["seconds"]["p0"], summary["seconds"]["p50"], summary["seconds"]["p100"]) == pytest.approx(
        (seconds.min(), np.median(seconds), seconds.max()), abs=5e-4
    )
    for column in ("session", "speaker", "language"):
        counted = Counter(zip(frame[column].astype(str), frame["emotion"], strict=True))
        assert summary[f"by_{column}"] == {
            name: {emotion: counted[name, emotion] for emotion in CANONICAL}
            for name in sorted(set(frame[column].astype(str)))
        }
    assert "by_split" not in summary  # the manifest has none
    left_out = summary["left_out"]
    short = "shorter than data.min_seconds=0.2"
    assert {reason: (entry["count"], entry["fault"]) for reason, entry in left_out.items()} == {
        BAD_RECORDING: (6, True),
        OUTSIDE: (1, True),
        short: (3, False),
    }
    assert left_out[short]["first"] == ["u00 (row 2)", "u08 (row 10)", "u09 (row 11)"]
    assert left_out[BAD_RECORDING]["first"][0].startswith("u01 (row 3: ")


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_choices_go_to_the_same_folder_and_others_to_others(tmp_path: Path, table: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"min_seconds": 0.2},
        {"emotions": ["neutral", "anger"], "drop_other": True},
        {"label_map": {"anger": "neutral"}},
        {"language": "en"},
    ]
    folders = [manifest_corpus(table, tmp_path / "cache", **change).prepare() for change in changes]
    assert len(set(folders)) == len(folders)
    before = [read_files(folder) for folder in folders]
    assert all(sorted(files) == ["left_out.csv", "manifest.csv", "summary.json"] for files in before)
    again = [manifest_corpus(table, tmp_path / "cache", **change).prepare() for change in reversed(changes)]
    assert again[::-1] == folders
    assert [read_files(folder) for folder in folders] == before
    # What says how utterances are used does not choose them.
    uses: list[dict[str, Any]] = [{"split": "speaker", "fold": 3}, {"max_seconds": 0.3}, {"language": "all"}]
    for use in uses:
        assert manifest_corpus(table, tmp_path / "cache", **use).prepare() == folders[0]
    assert read_files(folders[0]) == before[0]
    copy = table.with_name("copy.csv")
    copy.write_bytes(table.read_bytes())
    assert manifest_corpus(copy, tmp_path / "cache").prepare() not in folders


class CrashError(Exception):
    pass


def crash_while_writing(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what writes a file of this name write half a line and stop, as on a full disk."""

    def crashing(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
            target = self if isinstance(self, Path) else arguments[0]
            if f".{stem}." in target.name:
                target.write_bytes(b"half a li")
                raise CrashError
            return write(self, *arguments, **named)

        return wrapped

    monkeypatch.setattr(pd.DataFrame, "to_csv", crashing(pd.DataFrame.to_csv))
    monkeypatch.setattr(Path, "write_text", crashing(Path.write_text))


@pytest.mark.parametrize("stem", ["manifest", "left_out", "summary"])
def test_a_crash_while_writing_leaves_every_file_whole(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, stem: str
) -> None:
    folder = manifest_corpus(table, tmp_path / "cache", strict=False).prepare()
    old = read_files(folder)
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(lines[:-3]), encoding="utf-8")
    (table.parent / "wav" / "46.wav").unlink()
    (table.parent / "wav" / "30.wav").unlink()
    with monkeypatch.context() as broken:
        crash_while_writing(stem, broken)
        with pytest.raises(CrashError):
            manifest_corpus(table, tmp_path / "cache", strict=False).prepare()
    crashed = read_files(folder)
    assert manifest_corpus(table, tmp_path / "cache", strict=False).prepare() == folder
    new = read_files(folder)
    assert all(new[name] != old[name] for name in old)
    assert set(crashed) == set(old)
    assert all(crashed[name] in (old[name], new[name]) for name in old)
    assert crashed[next(name for name in old if name.startswith(stem))] in old.values()


# What changes between two runs


def test_what_changes_in_a_corpus_is_seen_the_next_time(tmp_path: Path, table: Path, recorded: pd.DataFrame) -> None:
    def prepared(**changes: Any) -> pd.DataFrame:
        corpus = manifest_corpus(table, tmp_path / "cache", **changes)
        folder = corpus.prepare()
        assert read_manifest(folder / "manifest.csv", corpus.audio_root)["id"].tolist() == corpus.frame["id"].tolist()
        return corpus.frame.set_index("id")

    first = prepared()
    assert len(first) == 47
    pd.testing.assert_frame_equal(prepared(), first)

    changed = table.parent / "wav" / "10.wav"
    changed.unlink()  # else its other name would change with it
    soundfile.write(changed, np.full(4321, 0.25), RATE, subtype="PCM_16")
    second = prepared()
    assert second.loc["u10", "seconds"] == 4321 / RATE
    assert second.index[second["digest"] != first["digest"]].tolist() == ["u10"]

    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    frame.loc[30, "text"], frame.loc[31, "emotion"], frame.loc[32, "speaker"] = "Other words.", "anger", "another"
    frame.drop(index=33).to_csv(table, index=False)
    third = prepared()
    assert [*third.loc[["u30", "u31", "u32"], ["text", "emotion", "speaker"]].to_numpy().diagonal()] == [
        "Other words.",
        "anger",
        "another",
    ]
    assert third.index.tolist() == [key for key in first.index if key != "u33"]

    frame.to_csv(table, index=False)
    (table.parent / "wav" / "20.wav").unlink()
    with pytest.raises(InputError, match="u20"):
        prepared()
    fourth = prepared(strict=False)
    assert fourth.index.tolist() == [key for key in first.index if key != "u20"]

    (table.parent / "wav" / "20.wav").hardlink_to(recorded["audio"][20])
    pd.testing.assert_frame_equal(prepared().loc[["u20"]], first.loc[["u20"]])


# Split files


def sides_of(corpus: ManifestCorpus) -> dict[str, str]:
    """The side of each utterance, by its id."""
    ids = corpus.frame["id"].to_numpy()
    return {key: side for side, rows in corpus.split._asdict().items() for key in ids[rows]}


def split_file(path: Path, sides: Mapping[str, str]) -> Path:
    path.write_text("\n".join(["id,split", *(f"{key},{side}" for key, side in sides.items()), ""]), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "protocol",
    [{"split": "random", "split_seed": 5}, {"split": "speaker", "fold": 2, "validation": "speakers"}, {"fold": 1}],
)
def test_a_split_file_repeats_a_split_to_the_utterance(
    make: Make, tmp_path: Path, recorded: pd.DataFrame, protocol: dict[str, Any]
) -> None:
    first = make(**protocol)
    write_split(first.frame, first.split, tmp_path / "split.csv")
    shuffled = recorded.sample(frac=1, random_state=0)
    again = make(shuffled, split="session", split_file=str(tmp_path / "split.csv"))
    assert sides_of(again) == sides_of(first)
    assert again.frame["id"].tolist() == shuffled["id"].tolist()
    assert again.left_out == []
    record = again.protocol_record()
    assert (record["split"], record["validation"]) == ("file", "file")
    assert record["speaker_independent"] is first.protocol_record()["speaker_independent"]


def test_utterances_that_a_split_file_does_not_name_are_left_out(
    make: Make, tmp_path: Path, recorded: pd.DataFrame
) -> None:
    ids = recorded["id"].tolist()
    sides = dict.fromkeys(ids[:20], "train") | dict.fromkeys(ids[25:30], "dev") | dict.fromkeys(ids[33:], "test")
    corpus = make(split_file=str(split_file(tmp_path / "few.csv", sides)))
    assert sides_of(corpus) == {key: {"dev": "val"}.get(side, side) for key, side in sides.items()}
    assert corpus.frame["id"].tolist() == [*sides]
    assert corpus.frame.index.tolist() == list(range(len(sides)))
    assert [corpus.emotions[label] for label in corpus.label] == corpus.frame["emotion"].tolist()
    assert [item.id for item in corpus.left_out] == ids[20:25] + ids[30:33]
    assert {(item.reason, item.fault) for item in corpus.left_out} == {("not in few.csv", False)}


def test_a_split_file_without_validation_draws_it_from_the_training_speakers(
    make: Make, tmp_path: Path, recorded: pd.DataFrame
) -> None:
    sides = {
        key: "test" if session == 2 else "train"
        for key, session in zip(recorded["id"], recorded["session"], strict=True)
    }
    corpus = make(split_file=str(split_file(tmp_path / "two.csv", sides)), validation="speakers")
    speakers = corpus.frame["speaker"].to_numpy()
    train, val, test = (set(speakers[side]) for side in corpus.split)
    assert test == {"2F", "2M"}
    assert train | val == {"1F", "1M", "3F", "3M"}
    assert len(val) == 1
    assert not train & val
    record = corpus.protocol_record()
    assert (record["split"], record["validation"], record["speaker_independent"]) == ("file", "speakers", True)


def test_a_split_file_that_names_what_is_not_used_is_refused_with_the_reasons(
    make: Make, tmp_path: Path, recorded: pd.DataFrame
) -> None:
    spoken = recorded.assign(language=["de"] + ["en"] * 46)
    ids = spoken["id"].tolist()
    sides = dict.fromkeys(ids[:20], "train") | dict.fromkeys(ids[20:30], "val") | dict.fromkeys(ids[30:], "test")
    path = str(split_file(tmp_path / "all.csv", {"nobody": "test", **sides}))
    chosen = {"emotions": ["excitement", "anger", "neutral"], "drop_other": True, "language": "en", "min_seconds": 0.12}
    with pytest.raises(InputError) as caught:
        make(spoken, split_file=path, **chosen)
    message = str(caught.value)
    # u01 lasts 0.11 s; of the others, 10 more are sad.
    assert "13 of its 48 utterances" in message
    assert "nobody (not in the corpus)" in message
    assert "u00 (language de is not data.language)" in message
    assert "u01 (shorter than data.min_seconds=0.12)" in message
    assert "u04 (emotion sadness is not in data.emotions)" in message
    assert message.count("(") == 6  # five, and what to do
    assert "8 more" in message


def test_a_split_file_has_no_folds(make: Make, tmp_path: Path, recorded: pd.DataFrame) -> None:
    sides = dict(zip(recorded["id"], ["train", "train", "val", "test"] * 12, strict=False))
    path = str(split_file(tmp_path / "split.csv", sides))
    assert sides_of(make(split_file=path)) == sides
    with pytest.raises(InputError, match=r"data\.fold=1"):
        make(split_file=path, fold=1)


@pytest.mark.parametrize("absent", ["train", "test"])
def test_a_split_file_without_a_side_is_refused(
    make: Make, tmp_path: Path, recorded: pd.DataFrame, absent: str
) -> None:
    sides = dict(zip(recorded["id"], ["train", "val", "test"] * 16, strict=False))
    left = {key: side for key, side in sides.items() if side != absent}
    with pytest.raises(InputError, match=f"{absent} side is empty"):
        make(split_file=str(split_file(tmp_path / "split.csv", left)))


def test_a_record_says_how_a_corpus_was_split(make: Make) -> None:
    corpus = make(fold=2)
    assert corpus.protocol_record() == {
        "corpus": "manifest",
        "corpus_hash": digest_of(corpus.content),
        "shared_recordings": 0,
        "double_names": 0,
        "speaker_independent": True,
        "split": "session",
        "fold": 2,
        "validation": "session",
    }
    record = make(split="random").protocol_record()
    assert (record["split"], record["validation"], record["speaker_independent"]) == ("random", "random", False)


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_folder_whose_name_is_no_utf_8_is_as_good_as_another(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    manifest = record(plain)
    manifest["audio"] = [Path(audio).name for audio in manifest["audio"]]
    manifest.loc[2, "audio"] = "gone.wav"
    soundfile.write(plain / manifest["audio"][3], np.zeros(800), RATE)
    manifest.to_csv(plain / "manifest.csv", index=False)
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    plain.rename(folder)
    for _ in range(2):  # the second time by what is remembered
        corpus = manifest_corpus(folder / "manifest.csv", tmp_path / "cache", strict=False)
        corpus.setup()
        written = corpus.prepare()
        assert len(AudioReader(corpus.frame, None)(0)) == 1600
    assert json.loads((written / "summary.json").read_text())["source"] == str(folder / "manifest.csv")
    assert (written / "left_out.csv").read_text().count(r"caf\xe9") == 2


# Keys


def test_a_value_that_a_key_cannot_have_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    def refused(key: str, value: Any) -> None:
        with pytest.raises(InputError) as caught:
            manifest_corpus(tmp_path / "nowhere.csv", tmp_path / "cache", **{key: value})
        assert str(caught.value).startswith(f"data.{key}")
        assert "\n" not in str(caught.value)

    wrong: dict[str, list[Any]] = {
        "emotions": ["anger", [True, "anger"], ["anger"], [], ["anger", "neutral", "anger"]],
        "label_map": ["anger"],
        "drop_other": ["yes"],
        "language": [False, ""],
        "split": ["sentence"],
        "split_file": [3],
        "fold": [-1],
        "fractions": [[1, 2, 3]],
        "stratify": ["no"],
        "validation": ["none"],
        "validation_fraction": [2],
        "split_seed": ["abc"],
        "min_seconds": ["abc", -0.1, float("nan")],
        "max_seconds": [-1, 0, float("inf"), [30]],
        "too_long": ["drop"],
        "strict": ["false"],
        "sampler": ["weighted"],
        "verify": ["often"],
        "workers": [-1, "all", 1.5],
        "clean": ["tag", ["("]],
        "audio_root": [3],
        "delimiter": ["colon"],
    }
    for key, values in wrong.items():
        for value in values:
            refused(key, value)


# Names in several spellings, and transcripts


@pytest.mark.parametrize(
    ("column", "spelt"),
    [
        ("emotion", str.title),
        ("speaker", str.lower),
        ("session", "0{}".format),
        ("id", str.upper),
        ("language", str.upper),
    ],
)
def test_one_name_in_two_spellings_is_an_error_or_told(
    make: Make, recorded: pd.DataFrame, caplog: pytest.LogCaptureFixture, column: str, spelt: Callable[[str], str]
) -> None:
    changed = recorded.assign(language="en").astype({"session": str})
    odd = spelt(str(changed[column].iloc[0 if column == "id" else 46]))
    changed.loc[46, column] = odd
    with pytest.raises(InputError, match=f"probably the same name in several spellings: {column} '.*data.strict=false"):
        make(changed)
    with caplog.at_level(logging.WARNING):
        corpus = make(changed, strict=False, split="random", fractions=[0.6, 0.2, 0.2], stratify=False)
    assert f"several spellings: {column} " in caplog.text
    (double,) = json.loads((corpus.prepare() / "summary.json").read_text(encoding="utf-8"))["doubles"]
    assert double["column"] == column
    assert double["values"][odd] == 1
    assert sum(double["values"].values()) == (changed[column].isin(double["values"])).sum()
    assert len(double["first"]) == len(double["values"]) == 2


def test_labels_in_two_spellings_are_mended_by_the_label_map(make: Make, recorded: pd.DataFrame) -> None:
    changed = recorded.assign(emotion=[e.title() if n % 2 else e for n, e in enumerate(recorded["emotion"])])
    corpus = make(
        changed,
        label_map={emotion.title(): emotion for emotion in EMOTIONS if emotion.title() in set(changed["emotion"])},
    )
    assert corpus.emotions == CANONICAL
    assert corpus.doubles == []


def test_names_with_blanks_around_them_and_in_two_forms_are_one(make: Make, recorded: pd.DataFrame) -> None:
    plain = recorded.assign(speaker=[f"né {name}" for name in recorded["speaker"]])
    changed = plain.assign(
        speaker=[f" ne\u0301 {name[3:]}\u00a0" if n % 2 else name for n, name in enumerate(plain["speaker"])],
        emotion=[f"{emotion} " if n % 3 else emotion for n, emotion in enumerate(plain["emotion"])],
    )
    expected, found = make(plain).frame, make(changed).frame
    pd.testing.assert_frame_equal(found, expected)


def test_labels_may_be_numbers_and_words_that_yaml_reads_otherwise(make: Make, recorded: pd.DataFrame) -> None:
    names = dict(zip(EMOTIONS, ["10", "2", "null", "yes"], strict=True))
    changed = recorded.assign(emotion=recorded["emotion"].map(names))
    corpus = make(changed, emotions=[10, 2, "null", "yes"])
    assert corpus.emotions == ["10", "2", "null", "yes"]
    written = read_manifest(corpus.prepare() / "manifest.csv", corpus.audio_root)
    assert written["emotion"].tolist() == changed["emotion"].tolist()
    assert make(changed).emotions == ["2", "10", "null", "yes"]
    assert make(changed, label_map={10: "anger", 2: "calm"}).emotions == ["anger", "calm", "null", "yes"]


def test_a_corpus_without_choice_refuses_a_class_that_tables_could_not_hold(make: Make, recorded: pd.DataFrame) -> None:
    changed = recorded.replace({"emotion": {"anger": "text"}})
    with pytest.raises(InputError, match=r"the class text has the name of something else.*data\.label_map"):
        make(changed)
    assert "anger" in make(changed, label_map={"text": "anger"}).emotions


def test_what_is_taken_out_of_transcripts_is_counted(make: Make, recorded: pd.DataFrame) -> None:
    changed = recorded.copy()
    changed.loc[:3, "text"] = ["[LAUGHTER] no [so] <3", "[SIGH][LAUGHTER]", "well  [x]", "[LAUGHTER]"]

    def summary(**changes: Any) -> Any:
        return json.loads((make(changed, **changes).prepare() / "summary.json").read_text(encoding="utf-8"))

    found = summary()
    assert found["clean"] == "tags"
    assert found["cleaned"] == {
        "transcripts": 3,
        "tags": {"[LAUGHTER]": 3, "[SIGH]": 1},
        "first": ["u00", "u01", "u03"],
    }
    assert make(changed).frame["text"].tolist()[:4] == ["no [so] <3", "", "well [x]", ""]
    # What is not used does not count.
    assert summary(emotions=["anger", "neutral"], drop_other=True)["cleaned"]["transcripts"] == 1
    assert summary(clean="none")["cleaned"] == {"transcripts": 0, "tags": {}, "first": []}
    assert make(changed, clean="none").frame["text"].tolist()[0] == "[LAUGHTER] no [so] <3"
    assert summary(clean=[r"\[[a-z]+\]"])["cleaned"]["tags"] == {"[so]": 1, "[x]": 1}


def test_a_record_of_before_names_no_rule_and_means_all_brackets(tmp_path: Path, recorded: pd.DataFrame) -> None:
    recorded.assign(text="a [so] <3 b> c").to_csv(tmp_path / "m.csv", index=False)
    corpus = manifest_corpus(tmp_path / "m.csv", tmp_path / "cache")
    arguments = {key: value for key, value in DEFAULTS.items() if key != "clean"}
    before = ManifestCorpus(str(tmp_path / "m.csv"), cache=tmp_path / "cache", **arguments)
    for one, text in ((corpus, "a [so] <3 b> c"), (before, "a c")):
        one.load()
        assert set(one.frame["text"]) == {text}
