"""How fast an epoch trains: python -m benchmarks.training.

Compared, in one process and taking turns, utterance for utterance: a plain loop over the utterances, one at a time with
an optimizer step each and the attention's maps returned, as the research code trains, and an epoch of Lightning's in
batches over padded sequences of similar length. Transfer reads both modalities as features: the plain loop from memory,
the epoch from the store. Fine-tuning trains VGGish from waveforms beside stored text. Lengths are IEMOCAP's, weights
random; batches, of the stage's own size, are some of those that an epoch over 5,531 utterances has, evenly from the
shortest to the longest. The plain loop computes in fp32, the epoch in the precision that `trainer.precision=auto`
chooses. A ratio is that of utterances a second, medians over the turns. Peak is the machine's matrix multiplication in
the epoch's precision, measured in the same run; what counts towards it are the floating-point operations that the
utterances need without padding. Padding is the whole epoch's. Verified: what looking at the checksums of all stored
features takes, once a run before its first epoch, of the time of one epoch.
"""

import argparse
import dataclasses
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.encoding import RATE, device_name, matmul_peak, peak_memory, synchronize
from fourm_ser.commandline import tidily
from fourm_ser.config import CONF, build
from fourm_ser.data.batch import Raw, Source, Stored, Utterances, loader
from fourm_ser.data.buckets import BucketBatchSampler
from fourm_ser.devices import MIXED, copies_ahead, find_device, resolve_trainer_precision
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.kernels.memory import keep_freed_memory
from fourm_ser.models.network import EmotionNetwork, build_network
from fourm_ser.training.module import EmotionModule
from fourm_ser.training.stages import read_stages

EMOTIONS = ["anger", "happiness", "sadness", "neutral"]
UTTERANCES = 5_531  # of IEMOCAP
EPOCHS = 6  # a turn
FRAMES = {"wav2vec": 50.0, "vggish": 1 / 0.96}  # a second


class Setup:
    """A network and its utterances.

    Args:
        pair: the encoders' option.
        count: how many utterances.
        raw: whether audio comes as waveforms, and its encoder trains.
        folder: for the store.
        device: where both ways train.
    """

    def __init__(self, pair: str, count: int, raw: bool, folder: Path, device: torch.device) -> None:
        self.device = device
        stage = "finetune" if raw else "transfer"
        with initialize_config_dir(str(CONF), version_base="1.3"):
            self.config = compose("train", [f"encoder={pair}", "encoder.weights=random", f"stage={stage}"])
        self.network: EmotionNetwork = build_network(self.config, len(EMOTIONS), Resources(folder, ["some words"]))
        for modality, encoder in self.network.by_modality.items():
            encoder.unfreeze("all" if raw and modality == "audio" else "none")
        self.precision = resolve_trainer_precision("auto", device)
        rng = np.random.default_rng(0)
        parts = (build(self.config[key]) for key in ("stage", "optimizer", "scheduler"))
        self.stage = read_stages(*parts)[0]
        size = self.stage.size(UTTERANCES)
        everything = np.exp(rng.normal(1.28, 0.685, UTTERANCES)).clip(0.58, 34.1)
        sampler = BucketBatchSampler(np.arange(UTTERANCES), everything, size, shuffle=True)
        self.padding, epoch = sampler.padding(), sampler.batches()
        epoch.sort(key=lambda batch: float(everything[batch].mean()))
        chosen = [epoch[int(place)] for place in (np.arange(count // size) + 0.5) * len(epoch) / (count // size)]
        self.seconds = everything[np.concatenate(chosen)]
        count = len(self.seconds)
        self.batches = np.split(np.arange(count), np.cumsum([len(batch) for batch in chosen])[:-1])
        self.labels = rng.integers(len(EMOTIONS), size=count)
        self.keys = [str(place) for place in range(count)]
        lengths = {"text": 2 + 3.2 * self.seconds, "audio": self.seconds * FRAMES[pair.partition("_")[2]]}
        self.sources: dict[str, Source] = {}
        self.stores: list[tuple[Path, str]] = []
        for modality, encoder in self.network.by_modality.items():
            if raw and modality == "audio":
                waves = [rng.normal(0, 0.1, round(length * RATE)).astype(np.float32) for length in self.seconds]
                self.sources[modality] = Raw(waves.__getitem__, encoder.frontend)
                continue
            store = FeatureStore(root=folder, name=encoder.name, fingerprint="benchmark", made_by={})
            sizes = np.ceil(lengths[modality]).astype(int)
            kind = "f2" if self.precision in MIXED else "f4"  # as an encoding pass on this device stores them
            width = encoder.stem_dim + encoder.tells_activity
            rows = zip(self.keys, sizes, strict=True)
            store.write({key: rng.normal(size=(size, width)).astype(kind) for key, size in rows})
            self.sources[modality] = Stored(store, self.keys)
            self.stores.append((folder, encoder.name))
        self.loss = build(self.config.loss).setup(len(EMOTIONS), self.network.widths, [1] * len(EMOTIONS))
        self.data = Utterances(self.labels, self.sources)

    def plain(self) -> float:
        """Seconds of an epoch, one utterance at a time; features are in memory beforehand, waveforms as well."""
        loaded: list[Any] = [self.data[index] for index in range(len(self.labels))]
        batches = [self.data.collate([item]).to(self.device) for item in loaded]
        self.network.to(self.device)
        self.loss.to(self.device)
        raw = [source for source in self.sources.values() if isinstance(source, Raw)]
        optimizer = torch.optim.AdamW([p for p in self.network.parameters() if p.requires_grad], 1e-4)
        self.network.train()
        started = time.perf_counter()
        for index, batch in enumerate(batches):
            # What is computed from a waveform is computed at each use, in both.
            now = self.data.collate([self.data[index]]).to(self.device) if raw else batch
            output = self.network(now.text, now.audio, return_attention=True)
            total = self.loss(output.logits, output.features(self.loss.on), now.labels)["total"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        synchronize(self.device)
        return time.perf_counter() - started

    def operations(self) -> float:
        """Floating-point operations of an epoch's utterances, each without padding: forward and backward pass."""
        self.network.cpu().train()
        self.loss.cpu()
        total = 0
        for index in range(0, len(self.labels), 8):  # an eighth of them
            batch = self.data.collate([self.data[index]]).to(torch.device("cpu"))
            with FlopCounterMode(display=False) as counter:
                output = self.network(batch.text, batch.audio)
                self.loss(output.logits, output.features(self.loss.on), batch.labels)["total"].backward()
            total += counter.get_total_flops()
        return total * len(self.labels) / len(range(0, len(self.labels), 8))

    def verify(self) -> float:
        """Seconds of a look at all that is stored, as a run's first."""
        stores = [FeatureStore(root=root, name=name, fingerprint="benchmark", made_by={}) for root, name in self.stores]
        started = time.perf_counter()
        for store in stores:
            store.verify(self.keys)
        return time.perf_counter() - started

    def epoch(self) -> float:
        """Seconds of Lightning's epoch, the median of several after the first, which waits for the Trainer to start."""
        batches = [batch.tolist() for batch in self.batches]
        module = EmotionModule(
            network=self.network,
            loss=self.loss,
            emotions=EMOTIONS,
            stage=dataclasses.replace(self.stage, epochs=EPOCHS, encoder_learning_rate=1e-5),
            steps_per_epoch=len(batches),
            seed=0,
            trained=["audio"],
        )
        clock = Clock(self.device)
        trainer = Trainer(
            max_epochs=EPOCHS,
            callbacks=[clock],
            accelerator=self.device.type,
            devices=1,
            precision=self.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
        module.train()
        trainer.fit(module, loader(self.data, batches, 0, copies_ahead(self.device)))
        return statistics.median(clock.seconds[1:])


class Clock(Callback):
    """Times each epoch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize(self.device)
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - self.started)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, gpu, cuda, mps")
    options = parser.parse_args()
    device = find_device(options.device, "--device")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    keep_freed_memory()
    table = Table(title="an epoch, against a plain loop of batch size 1 in fp32", title_justify="left")
    names = (
        "what",
        "encoders",
        "precision",
        "plain/s",
        "epoch/s",
        "ratio",
        "of peak",
        "padding",
        "verified",
        "GB",
    )
    for name in names:
        table.add_column(name, justify="left" if name in names[:2] else "right")
    for pair, count, raw in (("bert_vggish", 960, False), ("bert_wav2vec", 320, False), ("bert_vggish", 128, True)):
        with tempfile.TemporaryDirectory() as scratch:
            setup = Setup(pair, count, raw, Path(scratch), device)
            setup.epoch()
            pairs = [(peak_memory(setup.plain, device), peak_memory(setup.epoch, device)) for _ in range(options.turns)]
            verified = statistics.median(setup.verify() for _ in range(options.turns))
        (plain, plain_memory), (epoch, memory) = (np.median(way, axis=0) for way in zip(*pairs, strict=True))
        peak = matmul_peak(MIXED.get(setup.precision, torch.float32), device)
        table.add_row(
            "fine-tuning of audio" if raw else "transfer",
            pair,
            setup.precision.removesuffix("-mixed"),
            f"{len(setup.labels) / plain:.1f}",
            f"{len(setup.labels) / epoch:.1f}",
            f"{plain / epoch:.1f}",
            f"{100 * setup.operations() / epoch / peak:.0f}%",
            f"{100 * setup.padding:.1f}%",
            f"{100 * verified / epoch:.1f}%",
            f"{memory:.1f} (plain {plain_memory:.1f})",
        )
    console = Console(width=120)
    console.print(f"device: {device_name(device)} ({device.type})")
    console.print(table)


if __name__ == "__main__":
    with tidily():
        main()
