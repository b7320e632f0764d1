"""Exported networks: what ONNX Runtime computes is what PyTorch computes, in any batch, and nothing else is kept."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from fourm_ser.encoders.frontends import Examples
from fourm_ser.errors import InputError
from fourm_ser.export import check, run
from fourm_ser.models.directory import Conditions, Model, load_model
from fourm_ser.models.network import NetworkOutput
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.sharing import onnx as exporting
from fourm_ser.sharing.onnx import TRIED, Port, Whole, collate, compare, export_onnx, find_ports, flat, make_items
from tests.conftest import CONF, Compose
from tests.prediction.predictors import EMOTIONS, RATE, model, noise, recording

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
TEXT = "every green ball"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, composed: Compose) -> Path:
    shallow = ("encoder.text.architecture.num_hidden_layers=1", "encoder.audio.channels=[16]")
    return model(tmp_path_factory.mktemp("onnx") / "model", composed, *shallow, max_seconds=6.0)


@pytest.fixture(scope="module")
def exported(saved: Path) -> Path:
    """The network as a file, exported once for all tests: it takes half a minute of a processor."""
    path = saved.parent / "network.onnx"
    export_onnx(load_model(saved, saved.parent / "cache"), path)
    return path


@pytest.fixture(scope="module")
def session(exported: Path) -> Any:
    return onnxruntime.InferenceSession(exported)


def arrays(batch: Any) -> dict[str, np.ndarray]:
    return {f"{name}_{key}": tensor.numpy() for name, part in batch.items() for key, tensor in part.items()}


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [(0.1,), (3.3, 0.2), (1.0, 5.9, 0.5, 2.2, 0.7)])
def test_it_computes_what_pytorch_does_and_feels_no_padding(
    saved: Path, session: Any, seconds: tuple[float, ...]
) -> None:
    network = load_model(saved, saved.parent / "cache").network
    items = make_items(network, seconds)
    shares, vectors = session.run(["probabilities", "embeddings"], arrays(collate(network, items)))
    assert (shares.shape, vectors.shape) == ((len(seconds), 4), (len(seconds), 128))
    for place, item in enumerate(items):
        batch = collate(network, [item])
        with torch.no_grad():
            output = network(**batch)
        np.testing.assert_allclose(shares[place], output.logits.softmax(1)[0], atol=1e-4)
        np.testing.assert_allclose(vectors[place], output.embedding[0], atol=1e-4)
        alone = session.run(None, arrays(batch))
        np.testing.assert_allclose(shares[place], alone[0][0], atol=1e-4)
        np.testing.assert_allclose(vectors[place], alone[1][0], atol=1e-4)


def test_an_axis_that_is_not_the_batch_s_is_not_called_so() -> None:
    frontend = Examples(drop_tail=False)
    network: Any = SimpleNamespace(by_modality={"audio": SimpleNamespace(frontend=frontend, collate=frontend.collate)})
    ports = find_ports(network, [make_items(network, lengths) for lengths in TRIED[:2]])
    assert {port.label: port.axes[0] for port in ports if 0 in port.axes} == {
        "audio_examples": "audio_examples_0",
        "audio_counts": "batch",
        "audio_places": "batch",
    }


@pytest.mark.slow
def test_its_inputs_are_named_and_told_in_the_file(session: Any, exported: Path, saved: Path) -> None:
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert about["emotions"] == EMOTIONS
    assert (about["rate"], about["max_seconds"]) == (RATE, 6.0)
    assert about["inputs"] == [
        {"name": "text_ids", "type": "int64", "axes": ["batch", "text_ids_1"]},
        {"name": "text_mask", "type": "bool", "axes": ["batch", "text_mask_1"]},
        {"name": "audio_frames", "type": "float32", "axes": ["batch", "audio_frames_1", 40]},
        {"name": "audio_lengths", "type": "int64", "axes": ["batch"]},
    ]
    assert [port.name for port in session.get_inputs()] == [port["name"] for port in about["inputs"]]
    assert about["frontends"]["audio"]["mels"] == 40
    assert str(CONF.parent).encode() not in exported.read_bytes()  # nothing of the machine it was made on


@pytest.mark.slow
def test_the_example_gives_what_the_predictor_gives(
    saved: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recording(tmp_path / "a.wav", noise(2.0))
    script = CONF.parent / "docs" / "examples" / "run_onnx.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(saved), str(exported), str(path), TEXT, str(path), "no"])
    runpy.run_path(str(script))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, text in zip(lines, (TEXT, "no"), strict=True):
        expected = Predictor.load(saved, device="cpu")(path, text)
        assert isinstance(expected, Prediction)
        name, emotion, shares = line.split(" ", 2)
        assert (name, emotion) == (str(path), expected.emotion)
        assert json.loads(shares) == pytest.approx(list(expected.probabilities.values()), abs=2e-4)
    assert len([line for line in script.read_text().splitlines() if line.strip()]) <= 24


class Shifted(nn.Module):
    """A head that gives other logits than the one that was exported."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.head(embedding) + torch.tensor([0.01, 0.0, 0.0, 0.0])


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_refused(saved: Path, exported: Path) -> None:
    network = load_model(saved, saved.parent / "cache").network
    tried = [make_items(network, lengths) for lengths in ((0.4, 1.7), (2.1, 0.7, 1.3))]
    whole = Whole(network, find_ports(network, tried))
    compare(exported, whole, tried)
    network.head = Shifted(network.head)
    with pytest.raises(InputError, match=r"probabilities of the ONNX file differ from PyTorch's by 0\.00\d") as caught:
        compare(exported, whole, tried)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_file_that_feels_its_neighbours_is_refused(
    saved: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_model(saved, saved.parent / "cache").network
    tried = [make_items(network, lengths) for lengths in ((0.4, 1.7), (2.1, 0.7, 1.3))]
    whole = Whole(network, find_ports(network, tried))

    def padded(ports: Any, batch: Any) -> Any:
        """As if the mask of frames were lost: all frames of a batch are its utterances' own."""
        audio = batch["audio"]
        lost = torch.full_like(audio["lengths"], audio["frames"].shape[1])
        return flat(ports, {**batch, "audio": {**audio, "lengths": lost}})

    monkeypatch.setattr(exporting, "flat", padded)
    with pytest.raises(InputError, match="differ from those of the same utterance in a batch"):
        compare(exported, whole, tried)


class Asking(nn.Module):
    """A network that computes one thing or another, as its numbers are."""

    def __init__(self) -> None:
        super().__init__()
        self.by_modality: dict[str, Any] = {"text": Mock(), "audio": Mock()}
        self.by_modality["text"].name, self.by_modality["audio"].name = "one", "other"

    def forward(self, text: dict[str, torch.Tensor], audio: None) -> NetworkOutput:
        values = text["ids"].float()
        logits = values[:, :2] if float(values.sum()) > 0 else values[:, 2:4]
        return NetworkOutput(logits, values, None, None, {}, {})


@pytest.mark.slow
def test_a_network_that_cannot_be_exported_is_named_with_the_reason() -> None:
    whole = Whole(Asking(), [Port("text", "ids", {0: "batch"})])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"a network of one and other cannot be exported: .*\(\w+\)\.$") as caught:
        exporting._trace(whole, {"text": {"ids": torch.ones(2, 4)}})
    assert "\n" not in str(caught.value)


def test_nothing_is_kept_of_an_export_that_fails(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, program = load_model(saved, saved.parent / "cache"), Mock()
    program.save = lambda path: Path(path).write_text("a network")
    program.model.graph.all_nodes.return_value = []
    program.model.graph.inputs = [Mock(shape={}) for _ in range(4)]
    with monkeypatch.context() as traced:
        traced.setattr(exporting, "_trace", lambda network, batch: program)
        with pytest.raises(InputError, match=r"ONNX Runtime cannot run the file: .*No file was kept"):
            export_onnx(found, tmp_path / "network.onnx")
    with monkeypatch.context() as small:
        small.setattr(exporting, "LARGEST", 1)
        with pytest.raises(InputError, match="an ONNX file holds 2 GB"):
            export_onnx(found, tmp_path / "network.onnx")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx, onnxruntime, onnxscript is not installed: pip install"):
        export_onnx(found, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], r"^model: nothing is given"),
        (["model=x", "output=network.pt"], r"^output=network\.pt: expected a file that ends in \.onnx\.$"),
        (["model=x", "output=there.onnx"], r"^output=there\.onnx: is there already.*overwrite=true$"),
        (["model=nope"], r"^nope: no such folder"),
    ],
)
def test_the_command_refuses_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").write_text("mine")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("export", words)
    with pytest.raises(InputError, match=said):
        run(config)


def test_the_command_says_what_the_file_takes(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export(model: Model, path: Path) -> list[dict[str, Any]]:
        assert isinstance(model.conditions, Conditions)
        path.write_text("network")
        return [{"name": "text_ids", "type": "int64", "axes": ["batch", "text_ids_1"]}]

    monkeypatch.setattr(exporting, "export_onnx", export)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("export", [f"model='{saved}'", f"output='{tmp_path}/n.onnx'", f"cache='{tmp_path}'"])
    assert check(config) == tmp_path / "n.onnx"
    run(config)
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["text_ids: int64 ['batch', 'text_ids_1']", f"written: {tmp_path / 'n.onnx'}"]
