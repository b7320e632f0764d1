"""How fast an epoch trains: python -m benchmarks.training.

Compared, in one process and taking turns, utterance for utterance: a plain loop over the utterances, one at a time with
an optimizer step each, as the research code trains, and an epoch of Lightning's in batches over padded sequences of
similar length. Transfer reads both modalities as features: the plain loop from memory, the epoch from the store.
Fine-tuning trains VGGish from waveforms beside stored text. Lengths are IEMOCAP's, weights random, precision fp32.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from benchmarks.encoding import RATE
from fourm_ser.config import CONF, build
from fourm_ser.data.batch import BucketBatchSampler, Raw, Source, Stored, Utterances
from fourm_ser.data.datamodule import loader
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.model import build_network
from fourm_ser.module import EmotionModule
from fourm_ser.network import EmotionNetwork
from fourm_ser.stages import read_stages

EMOTIONS = ["anger", "happiness", "sadness", "neutral"]
FRAMES = {"wav2vec": 50.0, "vggish": 1 / 0.96}  # a second


class Setup:
    """A network and its utterances.

    Args:
        pair: the encoders' option.
        count: how many utterances.
        raw: whether audio comes as waveforms, and its encoder trains.
        folder: for the store.
    """

    def __init__(self, pair: str, count: int, raw: bool, folder: Path) -> None:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            self.config = compose("train", [f"encoder={pair}", "encoder.weights=random", "stage=transfer"])
        self.network: EmotionNetwork = build_network(self.config, len(EMOTIONS), Resources(folder, ["some words"]))
        for modality, encoder in self.network.by_modality.items():
            encoder.unfreeze("all" if raw and modality == "audio" else "none")
        rng = np.random.default_rng(0)
        self.seconds = np.exp(rng.normal(1.28, 0.685, count)).clip(0.58, 34.1)
        self.labels = rng.integers(len(EMOTIONS), size=count)
        self.keys = [str(place) for place in range(count)]
        lengths = {"text": 2 + 3.2 * self.seconds, "audio": self.seconds * FRAMES[pair.partition("_")[2]]}
        self.sources: dict[str, Source] = {}
        for modality, encoder in self.network.by_modality.items():
            if raw and modality == "audio":
                waves = [rng.normal(0, 0.1, round(length * RATE)).astype(np.float32) for length in self.seconds]
                self.sources[modality] = Raw(lambda index, waves=waves: waves[index], encoder.frontend)
                continue
            store = FeatureStore(folder, encoder.name, "benchmark", {})
            sizes = np.ceil(lengths[modality]).astype(int)
            store.write(
                {key: rng.normal(size=(size, encoder.stem_dim)).astype("f4") for key, size in zip(self.keys, sizes)}  # noqa: B905
            )
            self.sources[modality] = Stored(store, self.keys)
        self.loss = build(self.config.loss).setup(len(EMOTIONS), self.network.widths, [1] * len(EMOTIONS))
        self.data = Utterances(self.labels, self.sources)
        self.batch_size = int(self.config.stage.transfer.batch_size)

    def plain(self) -> float:
        """Seconds of an epoch, one utterance at a time; features are in memory beforehand, waveforms as well."""
        loaded: list[Any] = [self.data[index] for index in range(len(self.labels))]
        batches = [self.data.collate([item]) for item in loaded]
        raw = [source for source in self.sources.values() if isinstance(source, Raw)]
        optimizer = torch.optim.AdamW([p for p in self.network.parameters() if p.requires_grad], 1e-4)
        self.network.train()
        started = time.perf_counter()
        for index, batch in enumerate(batches):
            # What is computed from a waveform is computed at each use, in both.
            now = self.data.collate([self.data[index]]) if raw else batch
            output = self.network(now.text, now.audio)
            total = self.loss(output.logits, output.features(), now.labels)["total"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        return time.perf_counter() - started

    def epoch(self) -> float:
        """Seconds of Lightning's epoch: of the second, for the first waits for the Trainer to start."""
        stage = read_stages(build(self.config.stage), build(self.config.optimizer), build(self.config.scheduler))[0]
        rows = np.arange(len(self.labels))
        sampler = BucketBatchSampler(rows, self.seconds, self.batch_size, shuffle=True)
        module = EmotionModule(
            self.network, self.loss, EMOTIONS, stage.optimizer, stage.scheduler, 1e-5, 2, len(sampler), 0, 0, ["audio"]
        )
        clock = Clock()
        trainer = Trainer(
            max_epochs=2,
            callbacks=[clock],
            accelerator="cpu",
            precision="32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
        module.train()
        trainer.fit(module, loader(self.data, sampler, 0, False))
        return clock.seconds


class Clock(Callback):
    """Times each epoch; the last stays."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.perf_counter() - self.started


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    table = Table(title="an epoch, against a plain loop of batch size 1", title_justify="left")
    for name in ("what", "encoders", "plain utterances/s", "epoch utterances/s", "ratio"):
        table.add_column(name, justify="left" if name in ("what", "encoders") else "right")
    for pair, count, raw in (("bert_vggish", 400, False), ("bert_wav2vec", 200, False), ("bert_vggish", 48, True)):
        with tempfile.TemporaryDirectory() as scratch:
            setup = Setup(pair, count, raw, Path(scratch))
            setup.epoch()
            pairs = [(setup.plain(), setup.epoch()) for _ in range(turns)]
        plain, epoch = (statistics.median(times) for times in zip(*pairs, strict=True))
        what = "fine-tuning of audio" if raw else "transfer"
        table.add_row(what, pair, f"{count / plain:.1f}", f"{count / epoch:.1f}", f"{plain / epoch:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
