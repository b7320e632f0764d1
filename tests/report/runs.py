"""Run directories as a training leaves them, written without one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

EMOTIONS = ["anger", "happiness", "sadness", "neutral"]
ENCODERS = {"tiny": ("tiny_bert", "tiny_lstm"), "bert_vggish": ("bert", "vggish"), "bert_wav2vec": ("bert", "wav2vec")}
LOSSES: dict[str, dict[str, Any]] = {
    "ce": {"_target_": "fourm_ser.losses.cross_entropy.CrossEntropyLoss", "label_smoothing": 0.0},
    "focal": {"_target_": "fourm_ser.losses.focal.FocalLoss", "gamma": 1.5},
    "ce_center": {
        "_target_": "fourm_ser.losses.composite.SumLoss",
        "terms": {"ce": {"_target_": "CE"}, "center": {"_target_": "Center", "learning_rate": 0.01}},
        "weights": {"ce": 1.0, "center": 0.01},
    },
}


def write_run(
    folder: Path,
    encoder: str = "tiny",
    loss: str = "ce",
    seed: int = 0,
    fold: int = 0,
    skill: float = 0.6,
    corpus: str = "demo",
    emotions: list[str] = EMOTIONS,
    weights: str = "pretrained",
    job: int = 0,
    utterances: int = 120,
    finished: bool = True,
    hydra: bool = True,
    changes: dict[str, Any] | None = None,
    words: tuple[str, ...] = (),
) -> Path:
    """Write a run directory, in which every label is recognised with probability `skill`.

    Utterances depend on the fold alone. `changes` are changed keys of the config, dotted; `words` further overrides.
    """
    text, audio = ENCODERS[encoder]
    config: dict[str, Any] = {
        "seed": seed,
        "cache": f"/cache/{seed}",
        "data": {
            "_target_": f"fourm_ser.data.corpora.{corpus}.Corpus",
            "split": "session",
            "fold": fold,
            "validation": "speakers",
            "emotions": list(emotions),
            "root": None,
        },
        "encoder": {
            "weights": weights,
            "text": {"name": text, "weights": weights},
            "audio": {"name": audio, "weights": weights},
        },
        "fusion": {"_target_": "fourm_ser.fusion.concat.ConcatFusion"},
        "loss": json.loads(json.dumps(LOSSES[loss])),
        "stage": {"transfer": {"epochs": 3}},
    }
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        node = config
        for name in path:
            node = node[name]
        node[last] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "train.log").write_text("a log\n")
    if hydra:
        _write_hydra(folder, encoder, loss, corpus, seed, fold, job, words)
    if not finished:
        return folder
    table = predictions(emotions, seed, fold, skill, utterances, f"{encoder}{loss}")
    table.to_csv(folder / "predictions.csv", index=False)
    recall = {e: float((rows["predicted"] == e).mean()) for e, rows in table.groupby("emotion")}
    _write_curves(folder, sum(recall.values()) / len(recall))
    metrics = {
        "test/ua": sum(recall.values()) / len(recall),
        "test/wa": float((table["emotion"] == table["predicted"]).mean()),
        "test/f1_macro": skill - 0.01 * fold,
        "test/f1_weighted": skill + 0.01 * seed,
        "test/ece": 0.1 + 0.01 * fold,
        **{f"test/recall/{emotion}": recall.get(emotion) for emotion in emotions},
        "val/ua": 0.5,
        "corpus": corpus,
        "speaker_independent": True,
        "split": "session",
        "fold": fold,
        "validation": "speakers",
        "weights": weights,
        "seconds/transfer": 10.0 + fold,
        "encoded/text": 0,
        "finished": True,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    return folder


def write_sweep(
    sweep: Path, encoders: list[str], losses: list[str], seeds: int = 1, folds: int = 1, **arguments: Any
) -> list[Path]:
    """Write a full grid: the later an encoder or loss is named, the more is recognised."""
    written: list[Path] = []
    for i, encoder in enumerate(encoders):
        for j, loss in enumerate(losses):
            for seed in range(seeds):
                for fold in range(folds):
                    folder = sweep / f"{encoder}-{loss}-{seed}-{fold}"
                    skill = 0.5 + 0.1 * i + 0.04 * j + 0.01 * (fold % 3)
                    made = write_run(folder, encoder, loss, seed, fold, skill, job=len(written), **arguments)
                    written.append(made)
    return written


def predictions(emotions: list[str], seed: int, fold: int, skill: float, utterances: int, model: str) -> pd.DataFrame:
    labels = np.random.default_rng(fold).choice(emotions, size=utterances)
    generator = np.random.default_rng([seed, fold, *model.encode()])
    guessed = generator.choice(emotions, size=utterances)
    predicted = np.where(generator.random(utterances) < skill, labels, guessed)
    table = pd.DataFrame({"id": [f"f{fold}u{n}" for n in range(utterances)], "speaker": f"s{fold}", "emotion": labels})
    table["predicted"] = predicted
    for emotion in emotions:
        table[emotion] = (predicted == emotion).astype(float)
    return table


def _write_hydra(
    folder: Path, encoder: str, loss: str, corpus: str, seed: int, fold: int, job: int, words: tuple[str, ...]
) -> None:
    choices = {"encoder": encoder, "loss": loss, "fusion": "concat", "data": corpus, "logger": "csv", "hydra/env": "d"}
    task = [f"encoder={encoder}", f"loss={loss}", f"seed={seed}", f"data.fold={fold}", *words]
    node = {
        "job": {"name": "train", "num": job},
        "overrides": {"task": task, "hydra": ["hydra.mode=MULTIRUN"]},
        "runtime": {"choices": choices, "config_sources": [{"path": "/conf", "provider": "main"}]},
    }
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": node}))
    (folder / ".hydra" / "config.yaml").write_text("seed: 0\n")


def _write_curves(folder: Path, ua: float) -> None:
    stage = folder / "stages" / "0-transfer"
    stage.mkdir(parents=True)
    rows = [
        {
            "epoch": n,
            "train/loss": 1.4 - 0.1 * n,
            "val/loss": 1.38 - 0.08 * n,
            "val/ua": ua * n / 2,
            "val/wa": ua * n / 2,
        }
        for n in range(3)
    ]
    pd.DataFrame(rows).to_csv(stage / "metrics.csv", index=False)
