"""The file of embeddings: its rows are the table's, and what stands in them is what the head read."""

import csv
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from fourm_ser.commandline import quoted
from fourm_ser.errors import InputError
from fourm_ser.models.directory import load_model
from fourm_ser.predict import LITERAL, run
from fourm_ser.prediction.predictor import Prediction, Predictor
from tests.conftest import CONF, Compose
from tests.prediction.predictors import EMOTIONS, model, noise, recording

TEXT = "every green ball"
Command = Callable[..., int]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, composed: Compose) -> Path:
    return model(tmp_path_factory.mktemp("embeddings") / "model", composed, max_seconds=6.0)


@pytest.fixture
def command(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, which writes embeddings.npz."""
    monkeypatch.chdir(tmp_path)

    def predict(*words: str) -> int:
        given = ["workers=0", f"cache={tmp_path / 'cache'}", f"model={saved}", "embeddings=embeddings.npz", *words]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("predict", quoted(given, LITERAL))
        return run(config)

    return predict


def read(path: str = "embeddings.npz") -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def fused(saved: Path, sound: np.ndarray, text: str) -> np.ndarray:
    """What the head reads of one utterance alone."""
    network = load_model(saved, saved.parent / "cache").network
    seen: list[torch.Tensor] = []
    network.head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    inputs = {"text": text, "audio": sound}
    with torch.no_grad():
        network(**{name: each.collate([each.frontend(inputs[name])]) for name, each in network.by_modality.items()})
    return seen[0][0].numpy()


def test_rows_are_the_table_s_and_hold_what_the_head_read(command: Command, saved: Path, tmp_path: Path) -> None:
    sounds = {f"a{place}": noise(1.0 + place / 3, place) for place in range(3)}
    for name, samples in sounds.items():
        recording(tmp_path / "in" / f"{name}.wav", samples)
    (tmp_path / "in" / "broken.wav").write_bytes(b"no sound")
    with (tmp_path / "list.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "audio", "text"])
        writer.writerows([name, f"in/{name}.wav", TEXT] for name in ("a1", "broken", "a0", "a2"))
    assert command("manifest=list.csv", "output=table.csv") == 1
    found = read()
    with (tmp_path / "table.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert {name: (array.shape, array.dtype.kind) for name, array in found.items()} == {
        "embedding": ((4, 128), "f"),
        "probabilities": ((4, 4), "f"),
        "id": ((4,), "U"),
        "start": ((4,), "f"),
        "end": ((4,), "f"),
        "emotions": ((4,), "U"),
    }
    assert found["id"].tolist() == [row["id"] for row in table] == ["a1", "broken", "a0", "a2"]
    assert found["emotions"].tolist() == EMOTIONS
    for place, row in enumerate(table):
        if row["id"] == "broken":
            assert np.isnan(found["embedding"][place]).all()
            assert np.isnan(found["probabilities"][place]).all()
        else:
            expected = fused(saved, sounds[row["id"]], TEXT)
            np.testing.assert_allclose(found["embedding"][place], expected, atol=1e-4)
            shares = [float(row[emotion]) for emotion in EMOTIONS]
            np.testing.assert_allclose(found["probabilities"][place], shares, atol=1e-6)
            assert found["end"][place] - found["start"][place] == pytest.approx(len(sounds[row["id"]]) / 16_000)


def test_one_recording_has_a_row_and_a_text_alone_no_times(command: Command, saved: Path, tmp_path: Path) -> None:
    samples = noise(1.5)
    recording(tmp_path / "a.wav", samples)
    assert command("audio=a.wav", f"text={TEXT}") == 0
    found = read()
    np.testing.assert_allclose(found["embedding"], [fused(saved, samples, TEXT)], atol=1e-4)
    assert (found["start"][0], found["end"][0]) == (0.0, 1.5)
    assert not list(tmp_path.glob("*.csv"))


def test_a_predictor_gives_embeddings_where_it_is_told_to(saved: Path) -> None:
    given = ([noise(1.0), noise(2.0)], [TEXT, "no"])
    vectors = [result.embedding for result in Predictor.load(saved, embeddings=True)(*given)]  # type: ignore[union-attr]
    for vector, samples, text in zip(vectors, *given, strict=True):
        assert vector is not None
        np.testing.assert_allclose(vector, fused(saved, samples, text), atol=1e-4)
        assert vector.base is None  # it keeps no batch in memory
    plain = Predictor.load(saved)(noise(1.0), TEXT)
    assert isinstance(plain, Prediction)
    assert plain.embedding is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["embeddings=e.npy"], r"^embeddings=e\.npy: expected a file that ends in \.npz\.$"),
        (["embeddings="], r"^embeddings: the path is empty\.$"),
        (["embeddings=there.npz"], r"^embeddings=there\.npz: is there already.*overwrite=true$"),
        (["embeddings=there.npz/e.npz"], r"^embeddings=there\.npz/e\.npz: nothing can be written there"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_loaded(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    (tmp_path / "there.npz").write_text("mine")
    monkeypatch.setattr(Predictor, "load", Mock(side_effect=AssertionError("loaded")))
    with pytest.raises(InputError, match=said):
        command(f"text={TEXT}", *words)
    assert (tmp_path / "there.npz").read_text() == "mine"


def test_it_appears_whole_or_not_at_all(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(file: Any, **arrays: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recording(tmp_path / "a.wav", noise(1.0))
    (tmp_path / "embeddings.npz").write_text("before")
    monkeypatch.setattr(np, "savez", fill)
    with pytest.raises(InputError, match=r"embeddings\.npz: the disk is full"):
        command("audio=a.wav", f"text={TEXT}", "overwrite=true")
    assert (tmp_path / "embeddings.npz").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".npz") == ["embeddings.npz"]
