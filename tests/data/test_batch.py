"""Batches: what is stored and what is raw, padded, with its rows and labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fourm_ser.data.batch import Raw, Stored, Summarised, Utterances
from fourm_ser.encoders.base import Features, Inputs, moved
from fourm_ser.encoders.store import FeatureStore


class Numbers:
    """A source of a number a row: the row's."""

    def load(self, index: int, turn: int = 0) -> int:
        return index

    def collate(self, items: Sequence[int]) -> Inputs:
        return {"numbers": torch.tensor(items)}


@pytest.fixture
def features() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        key: generator.normal(size=(length, 3)).astype(np.float32) for key, length in (("a", 4), ("b", 1), ("c", 6))
    }


def test_stored_features_are_padded_and_masked(tmp_path: Path, features: dict[str, np.ndarray]) -> None:
    store = FeatureStore(root=tmp_path, name="encoder", fingerprint="fingerprint", made_by={})
    store.write({"a": features["a"]})
    store.write({"b": features["b"], "c": features["c"]})
    keys = ["b", "a", "c", "a"]  # by position; two utterances may have the same content
    source = Stored(store, keys)
    packed = source.collate([source.load(index) for index in (3, 0, 2, 1)])
    batch = moved(packed, torch.device("cpu"))
    assert isinstance(batch, Features)
    assert batch.features.shape == (4, 6, 3)
    assert batch.features.dtype == torch.float32
    assert batch.mask.dtype == torch.bool
    for place, key in enumerate(["a", "b", "c", "a"]):
        length = len(features[key])
        assert batch.mask[place].tolist() == [True] * length + [False] * (6 - length)
        np.testing.assert_array_equal(batch.features[place, :length], features[key])
        assert not batch.features[place, length:].any()
    store.close()


def test_what_a_fusion_reads_of_stored_features_is_reckoned_once_and_by_each_utterance_alone(
    tmp_path: Path, features: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(root=tmp_path, name="encoder", fingerprint="fingerprint", made_by={})
    store.write(features)
    keys, asked = ["b", "a", "c", "a"], list[tuple[int, ...]]()

    def summary(sequence: Features) -> Tensor:
        asked.append(tuple(sequence.features.shape))
        return torch.cat([sequence.features.sum(1), sequence.mask.sum(1, keepdim=True)], 1)

    source = Summarised(Stored(store, keys), summary)
    for turn, rows in enumerate([(3, 0), (2, 1, 0)]):
        batch = source.collate([source.load(row, turn) for row in rows])
        assert moved(batch, torch.device("cpu")) == batch
        assert batch.mask.tolist() == [[True]] * len(rows)
        for place, row in enumerate(rows):
            own = features[keys[row]]
            np.testing.assert_allclose(batch.features[place, 0], [*own.sum(0), len(own)], atol=1e-5)
    assert asked == [(1, 4, 3), (1, 1, 3), (1, 6, 3)]
    monkeypatch.setattr("fourm_ser.data.batch.KEPT", 2 * 4 * 4)  # two utterances' worth
    few = Summarised(Stored(store, keys), summary)
    for _ in range(2):
        torch.testing.assert_close(few.collate(keys).features[1:], batch.features[[1, 0, 1]])
    assert len(few.kept) == 2
    assert len(asked) == 3 + 4  # the third one anew
    store.close()


class Letters:
    """A front end: letters as numbers, padded by -1, with lengths."""

    def __call__(self, raw: str) -> Inputs:
        return {"codes": torch.tensor([ord(letter) for letter in raw])}

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        rows: list[Tensor] = [item["codes"] for item in items]
        lengths = torch.tensor([len(row) for row in rows])
        codes = torch.full((len(rows), int(lengths.max())), -1)
        for place, row in enumerate(rows):
            codes[place, : len(row)] = row
        return {"codes": codes, "lengths": lengths}

    def describe(self) -> dict[str, Any]:
        return {}


WORDS = ["zero", "one", "a", "three"]


def read_word(index: int) -> str:
    return WORDS[index]


def test_raw_utterances_go_through_the_front_end() -> None:
    source = Raw(read_word, Letters())
    batch = source.collate([source.load(index) for index in (2, 3, 1)])
    assert batch["lengths"].tolist() == [1, 5, 3]
    assert batch["codes"].tolist() == [
        [ord("a"), -1, -1, -1, -1],
        [ord(letter) for letter in "three"],
        [*(ord(letter) for letter in "one"), -1, -1],
    ]


def test_a_batch_keeps_rows_labels_and_modalities_together(tmp_path: Path, features: dict[str, np.ndarray]) -> None:
    store = FeatureStore(root=tmp_path, name="encoder", fingerprint="fingerprint", made_by={})
    store.write(features)
    labels = np.array([2, 0, 1, 0])
    dataset = Utterances(labels, {"audio": Stored(store, ["a", "b", "c", "b"]), "text": Raw(read_word, Letters())})
    assert len(dataset) == 4
    batch = dataset.collate([dataset[index] for index in (2, 0, 3)]).to(torch.device("cpu"))
    assert batch.rows.tolist() == [2, 0, 3]
    assert batch.labels.tolist() == [1, 2, 0]
    assert batch.labels.dtype == torch.int64
    assert isinstance(batch.audio, Features)
    assert batch.audio.mask.sum(dim=1).tolist() == [6, 4, 1]
    assert isinstance(batch.text, dict)
    assert batch.text["lengths"].tolist() == [1, 4, 5]
    store.close()


def test_a_modality_without_a_source_is_none() -> None:
    dataset = Utterances(np.array([1, 0]), {"text": Numbers()})
    batch = dataset.collate([dataset[1], dataset[0]])
    assert batch.audio is None
    assert isinstance(batch.text, dict)
    assert batch.text["numbers"].tolist() == [1, 0]
