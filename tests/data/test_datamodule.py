"""A corpus, served: how long utterances are, under which keys, in which batches."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fourm_ser.data.batch import Batch, Raw, Stored
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.data.decoding import extract_audio
from fourm_ser.encoders.base import Features, Inputs, pad
from fourm_ser.encoders.store import FeatureStore
from tests.data.test_corpus import RATE, manifest_corpus, record


class Make(Protocol):
    """Builds the data of a manifest, with the config's defaults but for the changes, and sets them up."""

    def __call__(self, frame: pd.DataFrame | None = None, seed: int = 0, **changes: Any) -> EmotionDataModule: ...


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return record(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def make(tmp_path: Path, recorded: pd.DataFrame) -> Make:
    def build(frame: pd.DataFrame | None = None, seed: int = 0, **changes: Any) -> EmotionDataModule:
        path = tmp_path / "manifest.csv"
        (recorded if frame is None else frame).to_csv(path, index=False)
        corpus = manifest_corpus(path, tmp_path / "cache", **changes)
        data = EmotionDataModule(corpus, pin_memory=False, seed=seed)
        data.prepare_data()
        data.setup("fit")
        return data

    return build


class Samples:
    """A front end that hands samples on."""

    def __call__(self, raw: np.ndarray) -> Inputs:
        return {"samples": torch.from_numpy(raw)}

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        rows: list[Tensor] = [item["samples"] for item in items]
        return {"samples": pad(rows), "lengths": torch.tensor([len(row) for row in rows])}

    def describe(self) -> dict[str, Any]:
        return {}


class Letters(Samples):
    """A front end of letters as numbers."""

    def __call__(self, raw: Any) -> Inputs:
        return {"samples": torch.tensor([ord(letter) for letter in raw])}


def serve(data: EmotionDataModule, batch_size: int = 4) -> EmotionDataModule:
    """Serve both modalities raw."""
    readers = data.readers()
    sources = {"text": Raw(readers["text"], Letters()), "audio": Raw(readers["audio"], Samples())}
    data.serve(sources, batch_size)
    return data


def row_of(data: EmotionDataModule, key: str) -> int:
    return data.corpus.frame["id"].tolist().index(key)


def audio_of(data: EmotionDataModule, key: str) -> np.ndarray:
    samples = data.readers()["audio"](row_of(data, key))
    assert isinstance(samples, np.ndarray)
    return samples


def key_of(data: EmotionDataModule, key: str, modality: str = "audio") -> str:
    return data.keys()[modality][row_of(data, key)]


def rows_of(loader: DataLoader[Batch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in loader]


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
    np.testing.assert_allclose(data.corpus.frame["seconds"], expected, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(data.lengths()["audio"], data.corpus.frame["seconds"])
    for row, key in enumerate(data.corpus.frame["id"]):
        assert len(audio_of(data, key)) == round(expected[row] * RATE)
    np.testing.assert_array_equal(
        audio_of(data, "u00"), soundfile.read(recorded["audio"][0], dtype="float32")[0][320:1120]
    )


def test_longer_utterances_than_max_seconds_are_cropped(make: Make, recorded: pd.DataFrame) -> None:
    data = serve(make(max_seconds=0.3))
    whole = [soundfile.read(path, dtype="float32")[0] for path in recorded["audio"]]
    assert data.corpus.frame["seconds"].tolist() == [min(len(samples) / RATE, 0.3) for samples in whole]
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


def test_a_videos_sound_is_read_and_cropped(make: Make, recorded: pd.DataFrame, tmp_path: Path) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        track = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux([*track.encode(frame), *track.encode()])
    extract_audio(tmp_path / "film.mp4", tmp_path / "film.flac")
    expected = soundfile.read(tmp_path / "film.flac", dtype="float32")[0]
    changed = recorded.copy()
    changed.loc[0, "audio"] = "film.mp4"
    data = make(changed, max_seconds=None)
    np.testing.assert_array_equal(audio_of(data, "u00"), expected)
    assert data.corpus.frame["seconds"][0] == len(expected) / RATE
    assert data.corpus.frame["audio"][0] == str(tmp_path.resolve() / "film.mp4")
    np.testing.assert_array_equal(audio_of(make(changed, max_seconds=0.5), "u00"), expected[:8000])


def test_no_max_seconds_allows_any_length(make: Make, recorded: pd.DataFrame) -> None:
    data = make(max_seconds=None, too_long="refuse")
    assert [len(audio_of(data, key)) for key in recorded["id"]] == [soundfile.info(p).frames for p in recorded["audio"]]


# Transcripts


def test_transcripts_are_cleaned_and_an_empty_one_stays(make: Make, recorded: pd.DataFrame) -> None:
    texts = ["", " [LAUGHTER] <SIGH>", "Oh  [SIGH] no", *recorded["text"][3:]]
    changed = recorded.assign(text=texts)
    data = serve(make(changed))
    read = data.readers()["text"]
    assert len(data.corpus.frame) == 47
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
        ids = other.corpus.frame["id"].tolist()
        keys = zip(*other.keys().values(), strict=True)
        assert {key: first[key] for key in ids} == dict(zip(ids, keys, strict=True))


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
    keys = make(segments, strict=False).keys()["audio"]  # one recording is on all sides
    assert len(set(keys)) == 5
    assert keys[0] == keys[5] == keys[46]
    cropped = [key_of(make(max_seconds=most), "u47") for most in (30.0, 0.3, 0.2)]
    assert len(set(cropped)) == 3
    assert key_of(make(max_seconds=0.3), "u47") == cropped[1]


# Loaders


def assert_right(batch: Batch, data: EmotionDataModule, recorded: pd.DataFrame) -> None:
    """Labels, samples and letters are those of the batch's rows, found by the manifest."""
    assert isinstance(batch.audio, dict)
    assert isinstance(batch.text, dict)
    for place, row in enumerate(batch.rows.tolist()):
        line = recorded.iloc[row]
        assert data.corpus.emotions[int(batch.labels[place])] == line["emotion"]
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
        ({"text": text, "audio": Raw(data.readers()["audio"], Samples())}, data.corpus.frame["seconds"].to_numpy()),
    ):
        data.serve(sources, 4)
        flat = [row for batch in rows_of(data.test_dataloader()) for row in batch]
        assert len(set(flat)) == len(flat) == 16
        assert (np.diff(lengths[flat]) >= 0).all()


def test_stored_features_are_read_in_the_training_process(make: Make, tmp_path: Path) -> None:
    data = make(workers=2)
    keys = data.keys()["audio"]
    store = FeatureStore(root=tmp_path, name="encoder", fingerprint="fingerprint", made_by={})
    store.write({key: np.full((row + 1, 2), row, dtype=np.float32) for row, key in enumerate(keys)})
    data.serve({"audio": Stored(store, keys)}, 4)
    loader = data.train_dataloader()
    assert loader.num_workers == 0
    for packed in loader:
        batch = packed.to(torch.device("cpu"))
        assert batch.text is None
        assert isinstance(batch.audio, Features)
        assert batch.audio.mask.sum(dim=1).tolist() == [row + 1 for row in batch.rows.tolist()]
        assert batch.audio.features[:, 0, 0].tolist() == batch.rows.tolist()
        assert batch.labels.tolist() == data.corpus.label[batch.rows].tolist()
    store.close()


def test_a_second_setup_does_nothing(make: Make) -> None:
    data = make()
    frame, split = data.corpus.frame, data.corpus.split
    Path(data.corpus.source).unlink()
    data.prepare_data()
    data.setup("test")
    assert data.corpus.frame is frame
    assert data.corpus.split is split


def test_balanced_training_has_every_class_equally_often_and_other_sides_stay_whole(
    make: Make, recorded: pd.DataFrame
) -> None:
    few = recorded.drop(index=[row for row in range(16, 32) if recorded["emotion"][row] == "anger"][1:])
    plain, data = serve(make(few, fold=2)), serve(make(few, fold=2, sampler="balanced"))
    order = rows_of(data.train_dataloader())
    felt = [data.corpus.label[row] for batch in order for row in batch]
    times = np.bincount(felt)
    assert len(times) == 4
    assert max(times) - min(times) <= 1
    assert max(plain.corpus.counts) - min(plain.corpus.counts) > 1
    assert len(order) == len(rows_of(plain.train_dataloader()))
    assert {row for batch in order for row in batch} <= set(data.corpus.split.train.tolist())
    assert rows_of(data.val_dataloader()) == rows_of(plain.val_dataloader())
    assert rows_of(data.test_dataloader()) == rows_of(plain.test_dataloader())
    for batch in data.train_dataloader():
        assert_right(batch, data, few.reset_index(drop=True))
