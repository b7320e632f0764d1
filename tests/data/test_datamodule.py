"""A corpus in use: which utterances, which classes, how long, under which keys, in which batches."""

import logging
import shutil
from collections import Counter
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fourm_ser.data.batch import Batch, Raw, Stored
from fourm_ser.data.corpora.manifest import ManifestData
from fourm_ser.encoders.base import Inputs, Sequence, pad
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError

RATE = 16_000
EMOTIONS = ["sadness", "excitement", "anger", "neutral"]  # as they come in the manifest


class Make(Protocol):
    """Builds the data of a manifest, with the config's defaults but for the changes, and sets them up."""

    def __call__(self, frame: pd.DataFrame | None = None, **changes: Any) -> ManifestData: ...


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Three sessions of two speakers who say each of four emotions twice, but for one sadness in the last session.

    Utterances are noise of their own from 0.1 s to 0.57 s.
    """
    folder = tmp_path_factory.mktemp("corpus")
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


@pytest.fixture
def make(tmp_path: Path, recorded: pd.DataFrame) -> Make:
    def build(frame: pd.DataFrame | None = None, **changes: Any) -> ManifestData:
        path = tmp_path / "manifest.csv"
        (recorded if frame is None else frame).to_csv(path, index=False)
        protocol: dict[str, Any] = {
            "audio_root": None,
            "emotions": None,
            "label_map": {},
            "drop_other": False,
            "split": "session",
            "fold": 0,
            "fractions": [0.8, 0.1, 0.1],
            "stratify": True,
            "validation": "session",
            "validation_fraction": 0.2,
            "split_seed": 0,
            "min_seconds": None,
            "max_seconds": 30.0,
            "too_long": "crop",
            "workers": 0,
            "pin_memory": False,
            "seed": 0,
        }
        data = ManifestData(str(path), cache=tmp_path / "cache", **{**protocol, **changes})
        data.prepare_data()
        data.setup("fit")
        return data

    return build


class Samples:
    """A front end that hands samples on."""

    def __call__(self, raw: np.ndarray) -> Inputs:
        return {"samples": torch.from_numpy(raw)}

    def collate(self, items: Items[Inputs]) -> Inputs:
        rows: list[Tensor] = [item["samples"] for item in items]
        return {"samples": pad(rows), "lengths": torch.tensor([len(row) for row in rows])}

    def describe(self) -> dict[str, Any]:
        return {}


class Letters(Samples):
    """A front end of letters as numbers."""

    def __call__(self, raw: Any) -> Inputs:
        return {"samples": torch.tensor([ord(letter) for letter in raw])}


def serve(data: ManifestData, batch_size: int = 4) -> ManifestData:
    """Serve both modalities raw."""
    readers = data.readers()
    sources = {"text": Raw(readers["text"], Letters()), "audio": Raw(readers["audio"], Samples())}
    data.serve(sources, batch_size)
    return data


def row_of(data: ManifestData, key: str) -> int:
    return data.frame["id"].tolist().index(key)


def audio_of(data: ManifestData, key: str) -> np.ndarray:
    samples = data.readers()["audio"](row_of(data, key))
    assert isinstance(samples, np.ndarray)
    return samples


def key_of(data: ManifestData, key: str, modality: str = "audio") -> str:
    return data.keys()[modality][row_of(data, key)]


def rows_of(loader: DataLoader[Batch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in loader]


# Emotions


def test_all_emotions_in_canonical_order_are_the_classes(make: Make, recorded: pd.DataFrame) -> None:
    data = make()
    assert data.emotions == ["anger", "sadness", "neutral", "excitement"]
    assert [data.emotions[label] for label in data.label] == recorded["emotion"].tolist()
    assert data.label.dtype == np.int64


def test_chosen_emotions_are_the_classes_in_the_order_of_choice(make: Make, recorded: pd.DataFrame) -> None:
    chosen = ["neutral", "excitement", "sadness", "anger"]
    data = make(emotions=chosen)
    assert data.emotions == chosen
    assert data.label.tolist() == [chosen.index(emotion) for emotion in recorded["emotion"]]


def test_other_emotions_are_refused_with_their_counts(make: Make) -> None:
    with pytest.raises(InputError) as caught:
        make(emotions=["anger", "neutral"])
    message = str(caught.value)
    assert "23 of 47 utterances" in message
    assert "11 sadness, 12 excitement" in message
    assert "drop_other=true" in message


def test_other_emotions_are_left_out_where_that_is_asked_for(make: Make, recorded: pd.DataFrame) -> None:
    data = make(emotions=["neutral", "anger"], drop_other=True)
    kept = recorded[recorded["emotion"].isin(["neutral", "anger"])]
    assert data.frame["id"].tolist() == kept["id"].tolist()
    assert data.label.tolist() == [int(emotion == "anger") for emotion in kept["emotion"]]
    assert sorted(np.concatenate(data.split).tolist()) == list(range(len(kept)))


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
    data = make(label_map=mapped, emotions=["happiness", "anger", "neutral"])
    expected = [mapped.get(emotion, emotion) for emotion in recorded["emotion"]]
    assert [data.emotions[label] for label in data.label] == expected
    assert make(label_map=mapped).emotions == ["anger", "happiness", "neutral"]


def test_label_map_exchanges_two_emotions(make: Make, recorded: pd.DataFrame) -> None:
    data = make(label_map={"anger": "neutral", "neutral": "anger"})
    changed = {"anger": "neutral", "neutral": "anger", "sadness": "sadness", "excitement": "excitement"}
    assert [data.emotions[label] for label in data.label] == [changed[emotion] for emotion in recorded["emotion"]]


@pytest.mark.parametrize("emotions", [["anger"], [], ["anger", "neutral", "anger"]])
def test_a_choice_of_emotions_that_is_none_is_refused(make: Make, emotions: list[str]) -> None:
    with pytest.raises(InputError, match=r"data\.emotions="):
        make(emotions=emotions, drop_other=True)


def test_counts_are_those_of_the_training_side(make: Make, recorded: pd.DataFrame) -> None:
    for fold in range(3):
        data = make(fold=fold)
        # Session `fold` is tested, the next one validates.
        trained = recorded[recorded["session"] == (fold + 2) % 3 + 1]
        assert data.frame["id"].iloc[data.split.train].tolist() == trained["id"].tolist()
        counted = Counter(trained["emotion"])
        assert data.counts == [counted[emotion] for emotion in data.emotions]
    assert make(fold=0).counts != make(fold=1).counts


# Lengths


def test_a_length_is_the_recordings_or_the_segments(make: Make, recorded: pd.DataFrame) -> None:
    segments = recorded.assign(start="", end="")
    segments.loc[0, ["start", "end"]] = ["0.02", "0.07"]
    segments.loc[1, "start"] = "0.03"
    segments.loc[2, "end"] = "0.04"
    segments.loc[3, "end"] = "99"
    data = make(segments)
    whole = [soundfile.info(path).frames / RATE for path in recorded["audio"]]
    expected = [0.05, whole[1] - 0.03, 0.04, *whole[3:]]
    np.testing.assert_allclose(data.frame["seconds"], expected, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(data.lengths()["audio"], data.frame["seconds"])
    for row, key in enumerate(data.frame["id"]):
        assert len(audio_of(data, key)) == round(expected[row] * RATE)
    np.testing.assert_array_equal(
        audio_of(data, "u00"), soundfile.read(recorded["audio"][0], dtype="float32")[0][320:1120]
    )


def test_shorter_utterances_than_min_seconds_are_left_out(make: Make, recorded: pd.DataFrame) -> None:
    segments = recorded.assign(start="", end="")
    segments.loc[46, ["start", "end"]] = ["0.0", "0.19"]
    data = make(segments, min_seconds=0.2)
    # Utterance 10 lasts 0.2 s; the last, a segment, does not.
    assert data.frame["id"].tolist() == recorded["id"].tolist()[10:46]
    assert data.frame.index.tolist() == list(range(36))
    assert [data.emotions[label] for label in data.label] == recorded["emotion"].tolist()[10:46]
    assert sorted(np.concatenate(data.split).tolist()) == list(range(36))


@pytest.mark.parametrize("split", ["random", "speaker", "session", "official"])
def test_min_seconds_that_leaves_nothing_is_refused(make: Make, split: str) -> None:
    with pytest.raises(InputError):
        make(min_seconds=60.0, split=split)


def test_longer_utterances_than_max_seconds_are_cropped(make: Make, recorded: pd.DataFrame) -> None:
    data = serve(make(max_seconds=0.3))
    whole = [soundfile.read(path, dtype="float32")[0] for path in recorded["audio"]]
    assert data.frame["seconds"].tolist() == [min(len(samples) / RATE, 0.3) for samples in whole]
    lengths = {}
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert isinstance(batch.audio, dict)
            for row, length, samples in zip(batch.rows, batch.audio["lengths"], batch.audio["samples"], strict=True):
                lengths[int(row)] = int(length)
                np.testing.assert_array_equal(samples[:length], whole[row][:4800])
    assert [lengths[row] for row in range(47)] == [min(len(samples), 4800) for samples in whole]
    assert max(lengths.values()) == 4800


def test_a_segment_is_cropped_from_its_own_start(make: Make, recorded: pd.DataFrame) -> None:
    segments = recorded.assign(start="")
    segments.loc[46, "start"] = "0.1"
    samples = audio_of(make(segments, max_seconds=0.2), "u47")
    np.testing.assert_array_equal(samples, soundfile.read(recorded["audio"][46], dtype="float32")[0][1600:4800])


def test_a_recording_of_another_rate_is_cropped_too(make: Make, recorded: pd.DataFrame, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "other.wav", np.full((44_100, 2), 0.1), 44_100)
    changed = recorded.copy()
    changed.loc[0, "audio"] = "other.wav"
    data = make(changed, max_seconds=0.25)
    assert len(audio_of(data, "u00")) == 4000
    assert len(audio_of(make(changed, max_seconds=None), "u00")) == RATE


def test_longer_utterances_are_refused_where_that_is_asked_for(make: Make) -> None:
    with pytest.raises(InputError) as caught:
        make(max_seconds=0.5, too_long="refuse")
    # Utterances 41 to 47 last 0.51 s to 0.57 s; 40 is missing.
    assert "7 utterances are longer than data.max_seconds=0.5" in str(caught.value)
    assert "row 42 (id u41, 0.51 s)" in str(caught.value)
    assert len(make(max_seconds=0.58, too_long="refuse").frame) == 47


def test_no_max_seconds_allows_any_length(make: Make, recorded: pd.DataFrame) -> None:
    data = make(max_seconds=None, too_long="refuse")
    assert [len(audio_of(data, key)) for key in recorded["id"]] == [soundfile.info(p).frames for p in recorded["audio"]]


def test_a_too_long_that_is_not_known_is_refused(make: Make) -> None:
    with pytest.raises(InputError, match=r"data\.too_long=drop: expected crop or refuse"):
        make(too_long="drop")


def test_a_segment_outside_its_recording_is_named_with_its_row(make: Make, recorded: pd.DataFrame) -> None:
    segments = recorded.assign(start="")
    segments.loc[[3, 5], "start"] = "0.9"
    with pytest.raises(InputError) as caught:
        make(segments)
    assert "row 5 (id u03)" in str(caught.value)
    assert recorded["audio"][3] in str(caught.value)
    assert "2 such rows" in str(caught.value)


def test_a_segment_too_short_for_a_sample_is_refused_before_training(make: Make, recorded: pd.DataFrame) -> None:
    segments = recorded.assign(start="", end="")
    segments.loc[3, ["start", "end"]] = ["0.05", "0.050001"]
    with pytest.raises(InputError, match="u03"):
        make(segments)


def test_bad_recordings_are_refused(make: Make, recorded: pd.DataFrame) -> None:
    changed = recorded.copy()
    changed.loc[[1, 7], "audio"] = "nowhere.wav"
    with pytest.raises(InputError, match=r"2 of 47 recordings cannot be used: row 3 \(id u01\)"):
        make(changed)


def test_fractions_other_than_three_are_refused(make: Make) -> None:
    for fractions in ([0.8, 0.2], [0.8, 0.1, 0.1, 0.0]):
        with pytest.raises(InputError, match=r"data\.fractions"):
            make(split="random", fractions=fractions)


# Transcripts


def test_transcripts_are_cleaned_and_an_empty_one_stays(make: Make, recorded: pd.DataFrame) -> None:
    texts = ["", " [LAUGHTER] <SIGH>", "Oh  [SIGH] no", *recorded["text"][3:]]
    changed = recorded.assign(text=texts)
    data = serve(make(changed))
    read = data.readers()["text"]
    assert len(data.frame) == 47
    assert [read(row) for row in range(4)] == ["", "", "Oh no", recorded["text"][3]]
    assert key_of(data, "u00", "text") == key_of(data, "u01", "text") != key_of(data, "u02", "text")
    assert (data.lengths()["text"] > 0).all()
    read_rows = [row for batch in rows_of(data.test_dataloader()) for row in batch]
    assert {0, 1, 2} <= set(read_rows)


# Keys


def test_the_same_content_has_the_same_key(make: Make, recorded: pd.DataFrame, tmp_path: Path) -> None:
    shutil.copy(recorded["audio"][0], tmp_path / "copy.wav")
    changed = recorded.copy()
    changed.loc[9, "audio"] = "copy.wav"
    changed.loc[9, "text"] = recorded["text"][4]
    keys = make(changed).keys()
    assert keys["audio"][9] == keys["audio"][0]
    assert keys["text"][9] == keys["text"][4]
    assert len(set(keys["audio"])) == len(set(keys["text"])) == 46
    assert set(keys["audio"]).isdisjoint(keys["text"])


def test_keys_depend_neither_on_rows_nor_on_the_protocol(make: Make, recorded: pd.DataFrame) -> None:
    first = dict(zip(recorded["id"], zip(*make().keys().values(), strict=True), strict=True))
    shuffled = recorded.sample(frac=1, random_state=0)
    for other in (
        make(shuffled),
        make(emotions=["neutral", "anger"], drop_other=True),
        make(split="random", split_seed=3, seed=4, min_seconds=0.2),
    ):
        keys = zip(*other.keys().values(), strict=True)
        assert {key: first[key] for key in other.frame["id"]} == dict(zip(other.frame["id"], keys, strict=True))


def test_a_changed_recording_has_another_key(make: Make, recorded: pd.DataFrame, tmp_path: Path) -> None:
    shutil.copy(recorded["audio"][0], tmp_path / "mine.wav")
    changed = recorded.copy()
    changed.loc[0, "audio"] = "mine.wav"
    before = make(changed).keys()
    samples = soundfile.read(recorded["audio"][0], dtype="int16")[0]
    samples[-1] += 1
    soundfile.write(tmp_path / "mine.wav", np.append(samples, np.int16(0)), RATE, subtype="PCM_16")
    after = make(changed).keys()
    assert after["audio"][0] != before["audio"][0]
    assert after["audio"][1:] == before["audio"][1:]
    assert after["text"] == before["text"]


def test_a_changed_transcript_has_another_key(make: Make, recorded: pd.DataFrame) -> None:
    changed = recorded.copy()
    changed.loc[5, "text"] = "Really?"
    before, after = make().keys(), make(changed).keys()
    assert [place for place in range(47) if before["text"][place] != after["text"][place]] == [5]
    assert before["audio"] == after["audio"]


def test_segment_and_crop_are_part_of_the_key(make: Make, recorded: pd.DataFrame) -> None:
    one = recorded["audio"][46]
    segments = recorded.assign(start="", end="", audio=[one] * 47)
    segments.loc[1, "start"] = "0.1"
    segments.loc[2, "end"] = "0.3"
    segments.loc[3, ["start", "end"]] = ["0.1", "0.3"]
    segments.loc[4, ["start", "end"]] = ["0.1", "0.30001"]
    keys = make(segments).keys()["audio"]
    assert len(set(keys)) == 5
    assert keys[0] == keys[5] == keys[46]
    cropped = [key_of(make(max_seconds=most), "u47") for most in (30.0, 0.3, 0.2)]
    assert len(set(cropped)) == 3
    assert key_of(make(max_seconds=0.3), "u47") == cropped[1]


# Loaders


def assert_right(batch: Batch, data: ManifestData, recorded: pd.DataFrame) -> None:
    """Labels, samples and letters are those of the batch's rows, found by the manifest."""
    assert isinstance(batch.audio, dict)
    assert isinstance(batch.text, dict)
    for place, row in enumerate(batch.rows.tolist()):
        line = recorded.iloc[row]
        assert data.emotions[int(batch.labels[place])] == line["emotion"]
        expected = soundfile.read(line["audio"], dtype="float32")[0]
        assert int(batch.audio["lengths"][place]) == len(expected)
        np.testing.assert_array_equal(batch.audio["samples"][place, : len(expected)], expected)
        assert not batch.audio["samples"][place, len(expected) :].any()
        letters = batch.text["samples"][place, : int(batch.text["lengths"][place])]
        assert "".join(map(chr, letters)) == line["text"]


def test_loaders_give_each_side_with_its_labels(make: Make, recorded: pd.DataFrame) -> None:
    data = serve(make(fold=1))
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    for session, loader in zip((1, 3, 2), loaders, strict=True):
        seen = []
        for batch in loader:
            assert 1 <= len(batch.rows) <= 4
            assert_right(batch, data, recorded)
            seen += batch.rows.tolist()
        assert sorted(seen) == np.flatnonzero(recorded["session"] == session).tolist()


def test_workers_read_the_same_batches(make: Make, recorded: pd.DataFrame) -> None:
    alone, helped = serve(make()), serve(make(workers=2))
    loader = helped.train_dataloader()
    assert loader.num_workers == 2
    batches = list(loader)
    assert [batch.rows.tolist() for batch in batches] == rows_of(alone.train_dataloader())
    for batch in batches:
        assert_right(batch, helped, recorded)


def test_only_training_is_shuffled_and_by_the_seed(make: Make) -> None:
    one, same, other = serve(make()), serve(make()), serve(make(seed=1))
    assert rows_of(one.train_dataloader()) == rows_of(same.train_dataloader())
    assert rows_of(one.train_dataloader()) != rows_of(other.train_dataloader())
    assert rows_of(one.val_dataloader()) == rows_of(other.val_dataloader())
    assert rows_of(one.test_dataloader()) == rows_of(other.test_dataloader())


def test_loaders_leave_the_global_random_state_alone(make: Make) -> None:
    data = serve(make())
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    for loader in (data.train_dataloader(), data.val_dataloader()):
        rows_of(loader)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


def test_batches_are_of_like_length_in_what_is_read(make: Make, recorded: pd.DataFrame) -> None:
    data = make()
    text = Raw(data.readers()["text"], Letters())
    for sources, lengths in (
        ({"text": text}, recorded["text"].str.len().to_numpy()),
        ({"text": text, "audio": Raw(data.readers()["audio"], Samples())}, data.frame["seconds"].to_numpy()),
    ):
        data.serve(sources, 4)
        flat = [row for batch in rows_of(data.test_dataloader()) for row in batch]
        assert len(set(flat)) == len(flat) == 16
        assert (np.diff(lengths[flat]) >= 0).all()


def test_stored_features_are_read_in_the_training_process(make: Make, tmp_path: Path) -> None:
    data = make(workers=2)
    keys = data.keys()["audio"]
    store = FeatureStore(tmp_path, "encoder", "fingerprint", {})
    store.write({key: np.full((row + 1, 2), row, dtype=np.float32) for row, key in enumerate(keys)})
    data.serve({"audio": Stored(store, keys)}, 4)
    loader = data.train_dataloader()
    assert loader.num_workers == 0
    for batch in loader:
        assert batch.text is None
        assert isinstance(batch.audio, Sequence)
        assert batch.audio.mask.sum(dim=1).tolist() == [row + 1 for row in batch.rows.tolist()]
        assert batch.audio.features[:, 0, 0].tolist() == batch.rows.tolist()
        assert batch.labels.tolist() == data.label[batch.rows].tolist()
    store.close()


def test_a_second_setup_does_nothing(make: Make) -> None:
    data = make()
    frame, split = data.frame, data.split
    data.manifest.unlink()
    data.setup("test")
    assert data.frame is frame
    assert data.split is split


def test_a_result_that_is_not_speaker_independent_is_warned_of(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make()
        assert "speaker-independent" not in caplog.text
        make(split="random", fractions=[0.5, 0.25, 0.25])
    assert "not speaker-independent" in caplog.text


def test_audio_is_looked_for_under_the_audio_root(make: Make, recorded: pd.DataFrame) -> None:
    changed = recorded.assign(audio=[Path(path).name for path in recorded["audio"]])
    with pytest.raises(InputError, match="47 of 47"):
        make(changed)
    data = make(changed, audio_root=str(Path(recorded["audio"][0]).parent))
    assert data.frame["audio"].tolist() == [str(Path(path).resolve()) for path in recorded["audio"]]
