"""A baseline's run from first to last: the same data, sides and run directory as a network's, and no training."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn import functional

from fourm_ser.baselines.base import Baseline, Choice, Samples
from fourm_ser.baselines.pooled import PooledFeatures
from fourm_ser.config import build
from fourm_ser.data.batch import Batch
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.devices import copies_ahead
from fourm_ser.encoders.base import Resources
from fourm_ser.errors import InputError
from fourm_ser.models.directory import Conditions, Model, save_model
from fourm_ser.models.features import Encoding
from fourm_ser.models.frozen import with_features
from fourm_ser.models.inference import Outputs, compute_outputs
from fourm_ser.models.network import EmotionNetwork, NetworkOutput, build_network, pooling_of
from fourm_ser.models.sources import check_transcripts, compare_languages, fetch_encoders, make_sources
from fourm_ser.runs.claims import record_content
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.runs.results import gather_metrics, write_results

log = logging.getLogger(__name__)

BATCH = 64
UNREAD = "head, loss, augment, stage, optimizer and scheduler"


class BaselineRun:
    """What the steps of a baseline's run share.

    A baseline is written as a network whose fusion pools and standardises and whose head holds what scikit-learn found:
    it is evaluated and predicted with as any other.
    """

    def __init__(self, config: DictConfig, directory: RunDirectory) -> None:
        self.config, self.directory = config, directory
        self.cache = Path(config.cache).expanduser()
        self.baseline: Baseline = build(config.baseline)
        self.corpus: Corpus = build(config.data, cache=self.cache)
        self.encoding = Encoding.of(config)
        if "encoder" in config.baseline:  # numbers, whose digits half precision would lose
            self.encoding = self.encoding._replace(precision="32", tf32=False)
        self.nodes = self._nodes()
        self.loggers: list[Any] = list(build(config.logger).values())

    def _nodes(self) -> DictConfig:
        """The config of the network that the baseline is written as; its head is not known yet."""
        encoders = self.baseline.encoders(self.config)
        own = "encoder" in self.config.baseline
        stored = {modality: "none" if own else pooling_of(self.config, modality) for modality in encoders}
        fusion = {
            "_target_": f"{PooledFeatures.__module__}.{PooledFeatures.__qualname__}",
            "modalities": list(encoders),
            "statistics": {modality: self.baseline.statistics[modality] for modality in encoders},
            "stored": stored,
        }
        head = {"_target_": "torch.nn.Identity"}
        return OmegaConf.create({"encoder": encoders, "encode": {"pool": stored}, "fusion": fusion, "head": head})

    def run(self) -> dict[str, Any]:
        """All of it, in order."""
        deterministic = self.config.trainer.get("deterministic", False)
        torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
        unread = f"encoder, fusion, {UNREAD}" if "encoder" in self.config.baseline else UNREAD
        log.info("baseline %s: nothing of %s has any effect", self.baseline.name, unread)
        network = self._prepare()
        compare_languages(network, self.corpus)
        check_transcripts(network, self.corpus.frame["text"])
        sources, encoded = make_sources(network, self.data, self.encoding)
        self.data.serve(sources, BATCH)
        for logger in self.loggers:
            logger.start(self.directory, OmegaConf.to_container(self.config))
        started = time.monotonic()
        split = self.corpus.split
        numbers = self._numbers(network)
        samples = self._samples(numbers, split.train)
        choice = self.baseline.choose(samples, self._build_fusion(network))
        fitted = self._fit(network, samples, choice)
        outputs = {"val": self._outputs(fitted, split.val)}
        if self.config.refit:
            samples = self._samples(numbers, split.joined().train)
            fitted = self._fit(network, samples, choice)
        outputs["test"] = self._outputs(fitted, split.test)
        log.info("baseline %s: tested what is fitted to %d utterances", self.baseline.name, len(samples.labels))
        return self._finish(fitted, choice, outputs, encoded, time.monotonic() - started)

    def _prepare(self) -> EmotionNetwork:
        """Fetch, prepare and read what is not there yet; the network, which reads all that is stored."""
        if "encoder" not in self.config.baseline:
            fetch_encoders(self.config, self.cache)
        self.data = EmotionDataModule(self.corpus, pin_memory=copies_ahead(self.encoding.device), seed=self.config.seed)
        self.data.prepare_data()
        self.data.setup()
        record_content(self.corpus.content, self.corpus.origin, self.directory)
        known = sorted(set(self.corpus.label[self.corpus.split.train]))
        if len(known) < 2:
            raise InputError(
                f"baseline: all that is trained on is {self.corpus.emotions[known[0]]}. Choose another split."
            )
        resources = Resources(self.cache, self.corpus.training_texts)
        network = build_network(self.nodes, len(self.corpus.emotions), resources)
        for encoder in network.by_modality.values():
            encoder.unfreeze("none")
        self.nodes.fusion.states = {modality: list(encoder.states) for modality, encoder in network.by_modality.items()}
        network.fusion = self._build_fusion(network)
        if not self.encoding.store:
            network.to(self.encoding.device)
        return network.eval()

    def _build_fusion(self, network: EmotionNetwork) -> PooledFeatures:
        """The fusion as the nodes have it now, not standardised yet."""
        dims = {modality: encoder.dim for modality, encoder in network.by_modality.items()}
        activity = [modality for modality, encoder in network.by_modality.items() if encoder.hands_on_activity]
        fusion: PooledFeatures = build(self.nodes.fusion, dims=dims, activity=activity)
        return fusion

    @torch.no_grad()
    def _numbers(self, network: EmotionNetwork) -> np.ndarray:
        """All statistics of every utterance's stored features (utterances, numbers), in float64."""
        assert isinstance(network.fusion, PooledFeatures)
        every = np.arange(len(self.corpus.frame))
        found = np.empty((len(every), network.fusion.dim))
        for batch in self.data.dataloader(every):
            given = self._features(network, batch)
            encoded = network.encode({modality: getattr(given, modality) for modality in network.by_modality})
            found[batch.rows.numpy()] = network.fusion.gather(encoded).double().cpu().numpy()
        return found

    def _features(self, network: EmotionNetwork, batch: Batch) -> Batch:
        """A batch with stored features, where the network is: on the device if it has to compute them itself."""
        device = torch.device("cpu") if self.encoding.store else self.encoding.device
        return with_features(network, batch.to(device), self.encoding)

    def _samples(self, numbers: np.ndarray, rows: np.ndarray) -> Samples:
        """Utterances by their positions; whose speakers matter where the test has others."""
        alone = self.corpus.split.speaker_independent(self.corpus.frame)
        speakers = self.corpus.frame["speaker"].to_numpy(dtype=str)[rows] if alone else None
        return Samples(numbers[rows], self.corpus.label[rows], speakers)

    def _fit(self, network: EmotionNetwork, samples: Samples, choice: Choice) -> EmotionNetwork:
        """The network that is fitted to some utterances; the nodes describe it then."""
        self.nodes.fusion.layers = {modality: list(layers) for modality, layers in choice.layers.items()}
        fusion = self._build_fusion(network)
        own = samples.read(fusion.columns.numpy())
        fitted = self.baseline.fit(own, choice, len(self.corpus.emotions))
        self.nodes.head = fitted.head
        fusion.mean.copy_(torch.from_numpy(fitted.mean))
        fusion.scale.copy_(torch.from_numpy(fitted.scale))
        made = EmotionNetwork(network.by_modality, fusion, fitted.build_head())
        return (made if self.encoding.store else made.to(self.encoding.device)).eval()

    def _outputs(self, network: EmotionNetwork, rows: np.ndarray) -> Outputs:
        """What it makes of a side; the loss is cross-entropy."""

        def step(batch: Batch) -> tuple[NetworkOutput, Mapping[str, Tensor], int]:
            given = self._features(network, batch)
            output: NetworkOutput = network(given.text, given.audio)
            return output, {"total": functional.cross_entropy(output.logits, given.labels)}, len(batch.rows)

        device = torch.device("cpu") if self.encoding.store else self.encoding.device
        batches = self.data.dataloader(rows)
        return compute_outputs(step, batches, classes=self.corpus.emotions, device=device)

    def _finish(
        self,
        network: EmotionNetwork,
        choice: Choice,
        outputs: Mapping[str, Outputs],
        encoded: Mapping[str, int],
        seconds: float,
    ) -> dict[str, Any]:
        """Write the model directory and the run's results, and return what metrics.json holds."""
        config, encoders = self.config, network.by_modality
        network.cpu()
        metrics = {
            **gather_metrics(self.corpus, network, outputs, encoded),
            "refit": config.refit,
            "seconds/fit": seconds,
            "baseline": self.baseline.name,
            **{f"baseline/{name}": value for name, value in choice.settings.items()},
            **{f"baseline/layers/{modality}": list(layers) for modality, layers in choice.layers.items()},
        }
        left_out = {
            modality: encoder.fingerprint()
            for modality, encoder in encoders.items()
            if "encoder" in config.baseline or not config.export.include_encoders
        }
        conditions = Conditions(
            stored=list(encoders),
            encoding=self.encoding.precision,
            precision="32-true",
            max_seconds=config.data.max_seconds,
            encoding_tf32=self.encoding.tf32,
            clean=list(self.corpus.cleaning.patterns),
            empty_text=self.corpus.cleaning.empty,
            store=self.encoding.store,
        )
        save_model(self.directory.model, Model(network, self.corpus.emotions, conditions), self.nodes, left_out)
        results = write_results(self.directory, self.corpus, metrics, outputs["test"])
        for logger in self.loggers:
            logger.finish(results)
        return results.metrics
