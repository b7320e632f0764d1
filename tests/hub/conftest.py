"""The loopback hub in the place of the real one, and small checkpoints of each kind to put on it."""

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import huggingface_hub.file_download
import huggingface_hub.utils._http
import pytest
import torch
from huggingface_hub import constants
from omegaconf import DictConfig
from transformers import BertConfig, BertModel, HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from fourm_ser.config import build
from fourm_ser.encoders import download
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.hub import train_wordpiece
from fourm_ser.prediction.transcriber import Transcriber
from tests.conftest import Compose
from tests.hub.server import Hub
from tests.prediction.predictors import TEXTS, ctc, noise, whisper

CONVOLUTIONS = {"conv_dim": (8, 8, 8), "conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 8)}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


class Kind(NamedTuple):
    """A kind of checkpoint.

    Attributes:
        save: Writes a small one with random weights into a folder that is not there yet.
        use: What one of this name computes, to compare: a tensor, or a text.
    """

    save: Callable[[Path], Any]
    use: Callable[[Compose, str], Any]


def save_text(folder: Path) -> None:
    tokenizer = train_wordpiece(Resources(folder.parent / "cache", TEXTS), 120)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **SMALL)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_speech(folder: Path) -> None:
    torch.manual_seed(0)
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    HubertModel(HubertConfig(**SMALL, **CONVOLUTIONS, **positions)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def encode(half: str, raw: Any) -> Callable[[Compose, str], Any]:
    """What an encoder makes of one utterance: `half` is its choice on a command line."""

    modality = half.partition("=")[0].removeprefix("encoder/")
    configs: list[DictConfig] = []  # composed once

    def use(composed: Compose, checkpoint: str) -> Any:
        configs.extend([] if configs else [composed(half, f"encoder.{modality}.weights=pretrained")])
        config = copy.deepcopy(configs[0])
        config.encoder[modality].checkpoint = checkpoint
        encoder = build(config.encoder[modality], resources=Resources(Path(config.cache))).eval()
        with torch.no_grad():
            features = encoder(encoder.collate([encoder.frontend(raw)])).features
        return [encoder.fingerprint(), features.tolist()]

    return use


def transcribe(composed: Compose, checkpoint: str) -> str:
    (heard,) = Transcriber(checkpoint, torch.device("cpu"))([noise(1.0)])
    return str(heard)


KINDS = {
    "text": Kind(save_text, encode("encoder/text=bert", "every green ball")),
    "speech": Kind(save_speech, encode("encoder/audio=hubert", noise(1.0))),
    "whisper": Kind(whisper, encode("encoder/audio=whisper_tiny", noise(1.0))),
    "recogniser": Kind(ctc, transcribe),
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of a kind, saved once; its folder is not to be changed."""
    folder = tmp_path_factory.mktemp("saved")

    def save(kind: str) -> Path:
        if not (folder / kind).exists():
            KINDS[kind].save(folder / kind)
        return folder / kind

    return save


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub that the library asks, with an empty cache; it does not wait between its attempts."""
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The machine may be busy: only where a test says so does a pause mean that nothing comes any more.
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 120)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 120)
    # What comes is written in pieces of this size: 10 MB, of which these files have none.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_024)
    monkeypatch.setattr(download, "_checked", {})
    at_once = SimpleNamespace(**{name: getattr(time, name) for name in ("time", "monotonic", "perf_counter")})
    at_once.sleep = lambda seconds: None
    for module in (huggingface_hub.file_download, huggingface_hub.utils._http):
        monkeypatch.setattr(module, "time", at_once)
    yield hub
    hub.close()
    huggingface_hub.utils._http.close_session()


@pytest.fixture
def repository(hub: Hub, tmp_path: Path) -> Callable[[dict[str, bytes]], str]:
    """Puts files on the hub as `lab/files` and returns the commit; a config.json is always among them."""

    def put(files: dict[str, bytes], *refs: str) -> str:
        folder = tmp_path / "files" / str(len(hub.repositories) + len(hub.requests))
        for name, content in {"config.json": json.dumps({"model_type": "bert"}).encode(), **files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return hub.commit("lab/files", folder, *refs)

    return put
