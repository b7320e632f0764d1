"""A finished run, opened to be looked into: its corpus, its network in each state of training, what that computes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pytorch_lightning import seed_everything
from rich.progress import track

from fourm_ser.config import build
from fourm_ser.data.batch import Batch
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.devices import copies_ahead
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.lora import Lora, without_adapters
from fourm_ser.errors import InputError, blamed
from fourm_ser.losses.base import Loss
from fourm_ser.losses.composite import SumLoss
from fourm_ser.models.directory import load_model
from fourm_ser.models.features import Encoding
from fourm_ser.models.frozen import with_features
from fourm_ser.models.inference import Outputs, compute_outputs
from fourm_ser.models.network import EmotionNetwork, build_network
from fourm_ser.models.sources import make_sources
from fourm_ser.runs.claims import record_content
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.trust import own_cache

BATCH = 32


class Snapshot(NamedTuple):
    """A network as it was at one time of its training.

    Attributes:
        name: `before training`, or `after <stage>`.
        network: The network, in evaluation mode; stems that were frozen then are frozen.
    """

    name: str
    network: EmotionNetwork


class OpenRun:
    """A finished run with its corpus, split as it was.

    Args:
        run_dir: the run directory.
        cache: the folder for what is made once; None for the one that the run names.
        device: where networks run.
        name: what the run is called in figures and tables; None for its folder's name.
        trust: packages of the user's own whose classes the run may name.

    Attributes:
        config: the run's record.
        chosen: the name of the stage whose weights the run ended with.
        emotions: the classes in the order of their indices.
        network: the trained network, in evaluation mode; stems whose features came from the store are frozen.
        corpus: the corpus under the run's protocol, set up.
        data: the data module that serves the corpus.

    Raises:
        InputError: no finished run, or a baseline's, a model that cannot be loaded, or a corpus that is not there any
            more or changed.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        cache: Path | None = None,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
        name: str | None = None,
        trust: Sequence[str] = (),
    ) -> None:
        self.run_dir, self.directory, self.device = run_dir, RunDirectory(run_dir), device
        self.name = run_dir.resolve().name if name is None else name
        self.config = self.directory.read_finished_record(trust)
        if "baseline" in self.config:
            raise InputError(f"{run_dir}: a baseline's run: it has no stages, attention or loss. Give a network's.")
        with blamed(self.directory.record):
            self.chosen = self.directory.chosen
            self.cache = own_cache(self.config.cache, self.directory.record) if cache is None else cache
            self.config.cache, self.config.trainer.accelerator = str(self.cache), device.type
        self.network, self.emotions, _ = load_model(self.directory.model, self.cache, trust)
        with blamed(f"{run_dir}: its record of the corpus"):
            self.corpus: Corpus = build(self.config.data, cache=self.cache)
            self.data = EmotionDataModule(self.corpus, pin_memory=copies_ahead(device), seed=self.config.seed)
            self.data.setup()
        record_content(self.corpus.content, self.corpus.origin, self.directory, write=False)
        if self.corpus.emotions != self.emotions:
            raise InputError(
                f"{run_dir}: the model's classes are {', '.join(self.emotions)}, the corpus now has "
                f"{', '.join(self.corpus.emotions)}. Is it the release that the run was trained on?"
            )
        self._features: dict[tuple[str, str], Outputs] = {}

    @property
    def trained(self) -> Snapshot:
        """The network as the run ended: after the stage that was best."""
        return Snapshot(f"after {self.chosen}", self.network)

    def snapshots(self) -> Iterator[Snapshot]:
        """The network before training and after each stage, as far as the one that the run ended with.

        All are built anew but for the last, which is the trained one.
        """
        yield Snapshot("before training", self._untrained())
        earlier = list(self.config.stage)[: list(self.config.stage).index(self.chosen)]
        for number, name in enumerate(earlier):
            network = self._untrained()
            weights = self.directory.stage(number, name, self.config.refit).read_weights("network")
            if "lora" in self.config:
                weights = without_adapters(network, weights, Lora(**self.config.lora).scale)
            network.load_state_dict({**network.state_dict(), **weights})
            for modality, encoder in network.by_modality.items():
                what = self.config.stage[name].unfreeze[modality]
                encoder.unfreeze("all" if what == "lora" else what)  # its adapters are merged: there are none any more
            yield Snapshot(f"after {name}", network)
        yield self.trained

    def batches(self, network: EmotionNetwork, rows: np.ndarray, doing: str = "") -> Iterator[Batch]:
        """Utterances by their positions, in padded batches of similar length, raw or from the store, on the device.

        What frozen stems make of them is read from the store, which is filled with what it lacks, or, of a run without
        one, computed. A bar shows what is being done.
        """
        encoding = Encoding.of(self.config)
        sources, _ = make_sources(network, self.data, encoding)
        self.data.serve(sources, BATCH)
        network.to(self.device)
        for batch in track(self.data.dataloader(rows), doing, transient=True, disable=not doing):
            yield with_features(network, batch.to(self.device), encoding)

    def features(self, snapshot: Snapshot, side: str) -> Outputs:
        """What a network of this run makes of a side's utterances (see `Corpus.rows`), in fp32; computed once."""
        key, network = (snapshot.name, side), snapshot.network
        if key not in self._features:
            self._features[key] = compute_outputs(
                lambda batch: (network(batch.text, batch.audio), {}, len(batch.rows)),
                self.batches(network, self.corpus.rows(side), f"{self.name}, {snapshot.name}"),
                classes=self.emotions,
                device=self.device,
                pooled=True,
            )
        return self._features[key]

    def _untrained(self) -> EmotionNetwork:
        """The network as the run began with it: its seed draws the same weights."""
        seed_everything(self.config.seed, verbose=False)
        network = build_network(self.config, len(self.emotions), Resources(self.cache, self.corpus.training_texts))
        loss: Loss = build(self.config.loss)
        network.replace_head(loss.setup(len(self.emotions), network.widths, self.corpus.counts))
        for encoder in network.by_modality.values():
            encoder.unfreeze("none")
        return network.eval()

    def class_vectors(self) -> np.ndarray | None:
        """The vectors that the loss learned for the classes, (classes, dim), when the network learned its weights.

        They are of its first term that has vectors for the embedding and a weight other than 0; None where none has.
        """
        loss, shape = build(self.config.loss), (len(self.emotions), self.network.fusion.dim)
        unused = set(loss.losses) - set(loss.active) if isinstance(loss, SumLoss) else set()
        passed_over = tuple(f"terms.{name}." for name in unused)
        for name, tensor in self.directory.chosen_stage.read_weights("loss").items():
            if not name.startswith(passed_over) and "embedding" in name.split(".") and tensor.shape == shape:
                return tensor.float().numpy()
        return None
