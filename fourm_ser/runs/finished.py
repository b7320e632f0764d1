"""A finished run, opened to be looked into: its corpus, its network in each state of training, what that computes."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from rich.progress import track
from torch import Tensor

from fourm_ser.config import build
from fourm_ser.data.batch import Batch
from fourm_ser.data.content import record_content
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.devices import copies_ahead
from fourm_ser.encoders.base import Features, Resources
from fourm_ser.errors import InputError
from fourm_ser.fusion.base import pool
from fourm_ser.losses.base import Loss
from fourm_ser.losses.composite import SumLoss
from fourm_ser.models.directory import build_network, load_model
from fourm_ser.models.features import Encoding
from fourm_ser.models.metrics import DistanceRatio
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.models.sources import make_sources

BATCH = 32


class Computed(NamedTuple):
    """What a network makes of utterances, in fp32.

    Attributes:
        rows: (n,) positions in the manifest, ascending.
        labels: (n,) class indices.
        logits: (n, classes).
        embedding: (n, dim), as the fusion gives it.
        encoded: by modality that the network reads, (n, width of the encoder): the mean over time of its features.
        fused: by modality that the fusion hands on, (n, its width): the mean over time of what it made of them.
    """

    rows: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    embedding: np.ndarray
    encoded: dict[str, np.ndarray]
    fused: dict[str, np.ndarray]

    @property
    def probabilities(self) -> np.ndarray:
        """(n, classes)."""
        powers = np.exp(self.logits - self.logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    @property
    def predicted(self) -> np.ndarray:
        """(n,) class indices."""
        return self.logits.argmax(1)

    @property
    def ratio(self) -> float:
        """The distance ratio of the embedding, which a run records as `test/intra_inter`."""
        metric = DistanceRatio()
        metric.update(torch.from_numpy(self.embedding), torch.from_numpy(self.labels))
        return float(metric.compute())


class State(NamedTuple):
    """A network in one state of training.

    Attributes:
        name: `before training`, or `after <stage>`.
        network: the network, in evaluation mode; stems that were frozen then are frozen.
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

    Attributes:
        config: the run's record.
        emotions: the classes in the order of their indices.
        network: the trained network, in evaluation mode; stems whose features came from the store are frozen.
        corpus, data: the corpus under the run's protocol, set up.

    Raises:
        InputError: no finished run, a model that cannot be loaded, or a corpus that is not there any more or changed.
    """

    def __init__(
        self,
        run_dir: Path,
        cache: Path | None = None,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
        name: str | None = None,
    ) -> None:
        self.run_dir, self.device = run_dir, device
        self.name = run_dir.resolve().name if name is None else name
        self.config = read_config(run_dir)
        self.cache = Path(self.config.cache).expanduser() if cache is None else cache
        self.config.cache, self.config.trainer.accelerator = str(self.cache), device.type
        self.network, self.emotions, self.use = load_model(run_dir / "model", self.cache)
        self.corpus: Corpus = build(self.config.data, cache=self.cache)
        self.data = EmotionDataModule(self.corpus, pin_memory=copies_ahead(device), seed=self.config.seed)
        self.data.setup()
        record_content(self.corpus.content, self.corpus.origin, run_dir, write=False)
        if self.corpus.emotions != self.emotions:
            raise InputError(
                f"{run_dir}: the model's classes are {', '.join(self.emotions)}, the corpus now has "
                f"{', '.join(self.corpus.emotions)}. Is it the release that the run was trained on?"
            )
        self._features: dict[tuple[str, str], Computed] = {}

    @property
    def trained(self) -> State:
        """The network after its last stage."""
        return State(f"after {list(self.config.stage)[-1]}", self.network)

    def states(self) -> Iterator[State]:
        """The network before training and after each stage, built anew but for the last, which is the trained one.

        Raises:
            InputError: a stage's checkpoint is not there.
        """
        yield State("before training", self._untrained())
        stages = list(self.config.stage.items())
        for number, (name, stage) in enumerate(stages[:-1]):
            network = self._untrained()
            state = read_checkpoint(self.run_dir / "stages" / f"{number}-{name}")
            own = {key.removeprefix("network."): tensor for key, tensor in state.items() if key.startswith("network.")}
            network.load_state_dict({**network.state_dict(), **own})
            for modality, encoder in network.by_modality.items():
                encoder.unfreeze(stage.unfreeze[modality])
            yield State(f"after {name}", network)
        yield self.trained

    def batches(self, network: EmotionNetwork, rows: np.ndarray, doing: str = "") -> Iterator[Batch]:
        """Utterances in padded batches of similar length, raw or from the store, on this run's device.

        Args:
            network: a network of this run; frozen stems are read from the store, which is filled with what it lacks.
            rows: positions in the manifest.
            doing: what the progress bar says; without, there is none.
        """
        sources, _ = make_sources(network, self.data, Encoding.of(self.config))
        self.data.serve(sources, BATCH)
        network.to(self.device)
        for batch in track(self.data.dataloader(rows), doing, transient=True, disable=not doing):
            yield batch.to(self.device)

    def features(self, state: State, side: str) -> Computed:
        """What a network of this run makes of a side's utterances (see `Corpus.rows`); computed once."""
        key = (state.name, side)
        if key not in self._features:
            self._features[key] = self._compute(state, side)
        return self._features[key]

    @torch.no_grad()
    def _compute(self, state: State, side: str) -> Computed:
        network = state.network
        parts: dict[str, list[np.ndarray]] = {}

        def keep(name: str, tensor: Tensor) -> None:
            parts.setdefault(name, []).append(tensor.float().cpu().numpy())

        for batch in self.batches(network, self.corpus.rows(side), f"{self.name}, {state.name}"):
            sequences = encode(network, batch)
            fused = network.fusion(sequences.get("text"), sequences.get("audio"))
            keep("rows", batch.rows)
            keep("labels", batch.labels)
            keep("logits", network.head(fused.embedding))
            keep("embedding", fused.embedding)
            for modality, sequence in sequences.items():
                keep(f"encoded {modality}", pool(sequence, "mean"))
            for modality in network.fusion.widths:
                keep(f"fused {modality}", pool(getattr(fused, modality), "mean"))
        joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        order = joined["rows"].argsort()
        joined = {name: array[order] for name, array in joined.items()}
        by_kind = {
            kind: {name.removeprefix(f"{kind} "): array for name, array in joined.items() if name.startswith(kind)}
            for kind in ("encoded", "fused")
        }
        rows, labels = joined["rows"].astype(np.int64), joined["labels"].astype(np.int64)
        return Computed(rows, labels, joined["logits"], joined["embedding"], **by_kind)

    def _untrained(self) -> EmotionNetwork:
        """The network as the run began with it: its seed draws the same weights."""
        seed_everything(self.config.seed, verbose=False)
        network = build_network(self.config, len(self.emotions), Resources(self.cache, self.corpus.training_texts))
        loss: Loss = build(self.config.loss)
        network.adopt(loss.setup(len(self.emotions), network.widths, self.corpus.counts))
        for encoder in network.by_modality.values():
            encoder.unfreeze("none")
        return network.eval()

    def class_vectors(self) -> np.ndarray | None:
        """The vectors that the loss learned for the classes, at the last stage's best epoch.

        Returns:
            (classes, dim), of the first term of the loss that has vectors for the embedding and a weight other than 0;
            None where no term has.

        Raises:
            InputError: the checkpoint is not there.
        """
        stages = list(self.config.stage)
        state = read_checkpoint(self.run_dir / "stages" / f"{len(stages) - 1}-{stages[-1]}")
        loss = build(self.config.loss)
        unused = set(loss.losses) - set(loss.active) if isinstance(loss, SumLoss) else set()
        passed_over = tuple(f"loss.terms.{name}." for name in unused)
        for name, tensor in state.items():
            is_of_loss = name.startswith("loss.") and not name.startswith(passed_over)
            shape = (len(self.emotions), self.network.fusion.dim)
            if is_of_loss and "embedding" in name.split(".") and tensor.shape == shape:
                return tensor.float().numpy()
        return None


def encode(network: EmotionNetwork, batch: Batch) -> dict[str, Features]:
    """The encoders' features of a batch, behind their tops, by modality."""
    given = {"text": batch.text, "audio": batch.audio}
    return {modality: encoder(given[modality]) for modality, encoder in network.by_modality.items()}


def read_config(run_dir: Path) -> DictConfig:
    """A finished run's record.

    Raises:
        InputError: there is none, or the run has not finished.
    """
    path = run_dir / "config.yaml"
    if not path.is_file() or not (run_dir / "model").is_dir():
        missing = "config.yaml" if not path.is_file() else "model/"
        hint = " It is a model directory: give the run's own." if (run_dir / "labels.json").is_file() else ""
        raise InputError(f"{run_dir}: no {missing} there. Expected the directory of a finished run.{hint}")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def read_checkpoint(stage: Path) -> dict[str, Tensor]:
    """The state of a stage's best epoch: `network.` and `loss.` before the names.

    Raises:
        InputError: the checkpoint is not there.
    """
    path = stage / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise InputError(f"{path}: no such file. What a stage learned is read from its best checkpoint.")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return state
