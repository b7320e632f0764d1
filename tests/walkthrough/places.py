"""What the pages' commands find: checkpoints on a hub of the loopback, corpora, recordings and tables."""

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import (
    BertConfig,
    BertModel,
    HubertConfig,
    HubertModel,
    RobertaConfig,
    RobertaModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)
from transformers.utils.logging import disable_progress_bar

from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.hub import train_wordpiece
from tests import releases
from tests.hub.conftest import CONVOLUTIONS, SMALL
from tests.hub.server import Hub
from tests.prediction.predictors import TEXTS, whisper

TEXT: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "bert-base-uncased": (BertModel, BertConfig),
    "sentence-transformers/all-MiniLM-L6-v2": (BertModel, BertConfig),
    "roberta-base": (RobertaModel, RobertaConfig),
}
SPEECH: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "facebook/hubert-base-ls960": (HubertModel, HubertConfig),
    "facebook/wav2vec2-base": (Wav2Vec2Model, Wav2Vec2Config),
    "microsoft/wavlm-base": (WavLMModel, WavLMConfig),
}
LAYERS = 6  # of text models: the pages' commands ask for the fifth of one
WHISPER = ("openai/whisper-base", "openai/whisper-small")
POSITIONS = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
COLUMNS = ("id", "audio", "text", "emotion", "speaker", "session")


def fill(hub: Hub, folder: Path) -> None:
    """Put small checkpoints with random weights on a hub under the names that the pages' commands ask for."""
    disable_progress_bar()
    for number, (name, (network, config)) in enumerate((TEXT | SPEECH).items()):
        place = folder / str(number)
        torch.manual_seed(number)
        if name in TEXT:
            tokenizer = train_wordpiece(Resources(folder / "cache", TEXTS), 120)
            sizes = {**SMALL, "num_hidden_layers": LAYERS}
            network(config(vocab_size=len(tokenizer), **sizes)).save_pretrained(place)
            tokenizer.save_pretrained(place)
        else:
            network(config(**SMALL, **CONVOLUTIONS, **POSITIONS)).save_pretrained(place)
            Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(place)
        hub.commit(name, place)
    heard = whisper(folder / "whisper", ["en", "de"])
    for name in WHISPER:
        hub.commit(name, heard)


def write(home: Path) -> None:
    """Write small releases into `releases/`, a folder each, and parameters of AudioSet's postprocessing."""
    releases.iemocap(home / "releases" / "iemocap")
    releases.esd(home / "releases" / "esd")
    torch.manual_seed(0)
    parameters = {"pca_eigen_vectors": torch.linalg.qr(torch.randn(128, 128))[0], "pca_means": torch.randn(128, 1)}
    torch.save(parameters, home / "postprocessing.pth")


def record(home: Path, clone: Path) -> None:
    """Write the recordings and tables that the pages' commands name: of the demo corpus, `new.csv` of another."""
    (table,) = (home / ".cache" / "fourm_ser" / "manifests").glob("demo-*/manifest.csv")
    (corpus,) = (home / ".cache" / "fourm_ser" / "corpora").glob("demo-*/")
    with table.open(encoding="utf-8", newline="") as read:
        rows = [{**row, "audio": os.path.relpath(corpus / row["audio"], clone)} for row in csv.DictReader(read)]
    for name in ("my.csv", "corpus.csv"):
        _write(clone / name, rows[::8])
    english = [speaker for speaker in releases.ESD_SPEAKERS if speaker > "0010"]
    unheard = [told._asdict() for told in releases.esd(home / "releases" / "unheard", english, seed=1)]
    found = os.path.relpath(home / "releases" / "unheard", clone)
    _write(clone / "new.csv", [{**row, "audio": os.path.join(found, row["audio"])} for row in unheard])
    recordings = [clone / row["audio"] for row in rows[:20]]
    (clone / "recordings" / "more").mkdir(parents=True)
    for place, name in enumerate(("a.wav", "new.wav", "recordings/b.wav", "recordings/more/c.wav")):
        (clone / name).write_bytes(recordings[place].read_bytes())
    parts = [soundfile.read(path)[0] for path in recordings]
    soundfile.write(clone / "interview.mp3", np.concatenate(parts), soundfile.info(recordings[0]).samplerate)


def _write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
