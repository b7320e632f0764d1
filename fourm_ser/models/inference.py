"""A network at work: a trained model as it was trained, and the one loop over the utterances of a side."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fourm_ser.data.batch import Batch
from fourm_ser.devices import HALVES, MIXED, autocast, computes_in, ran_out_of_memory, sent, tf32
from fourm_ser.distributed import gather_rows
from fourm_ser.encoders.base import Features, Inputs, Packed, moved
from fourm_ser.errors import InputError
from fourm_ser.fusion.base import pool
from fourm_ser.models.directory import Model
from fourm_ser.models.frozen import frozen_features
from fourm_ser.models.network import NetworkOutput

log = logging.getLogger(__name__)


class Inference:
    """The network of a model, on a device and in the precision it was trained in.

    Where the device does not compute in that half precision natively, the model runs in fp32, as the log says:
    probabilities differ a little. Trainers that were in half precision throughout (`bf16-true`) are run in fp32, too.

    Args:
        model: The model.
        device: Where it runs.
        exact: Whether it keeps the precision of training whatever the device, as evaluating a run again has to.
    """

    def __init__(self, model: Model, device: torch.device, exact: bool = False) -> None:
        self.device, self.emotions, self.conditions = device, model.emotions, model.conditions
        halves = HALVES.get(self.conditions.encoding), MIXED.get(self.conditions.precision)
        native = exact or all(computes_in(device, half) for half in halves if half)
        self.encoding = self.conditions.encoding if native else "32"
        self.mixed = MIXED.get(self.conditions.precision) if native else None
        if not native:
            log.info("the model was trained in %s and is run in fp32 here", self.conditions.precision)
        self.network = model.network.to(device).eval()

    @torch.inference_mode()
    def __call__(
        self,
        text: Inputs | Features | Packed | None,
        audio: Inputs | Features | Packed | None,
        return_attention: bool = False,
    ) -> NetworkOutput:
        """A batch of raw inputs or stored features of each modality; InputError where there is no memory for it."""
        try:
            return self._run({"text": text, "audio": audio}, return_attention)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise InputError(
                f"{self.device.type} ran out of memory over a batch. Lower batch_size (and batch_seconds where the "
                "command has it), or use another device."
            ) from error

    @torch.inference_mode()
    def stem_features(self, given: Mapping[str, Inputs]) -> dict[str, Features]:
        """What the encoders' stems make of a batch of raw inputs of each modality."""
        found = self._given(given)
        with self.as_trained():
            return {
                modality: inputs if isinstance(inputs, Features) else encoder.stem_features(inputs)
                for modality, encoder in self.network.by_modality.items()
                for inputs in [found[modality]]
            }

    def _given(self, given: Mapping[str, Inputs | Features | Packed | None]) -> dict[str, Any]:
        """A batch on the device, with the features of stems that were frozen in training."""
        half = HALVES.get(self.encoding)
        inputs: dict[str, Any] = {"text": None, "audio": None}
        for modality, encoder in self.network.by_modality.items():
            inputs[modality] = moved(given[modality], self.device)
            if modality in self.conditions.stored and not isinstance(inputs[modality], Features):
                inputs[modality] = frozen_features(encoder, inputs[modality], half, self.conditions.encoding_tf32)
        return inputs

    def _run(self, given: Mapping[str, Inputs | Features | Packed | None], return_attention: bool) -> NetworkOutput:
        inputs = self._given(given)
        with self.as_trained():
            return self.network(**inputs, return_attention=return_attention)

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """The precision that the network runs in."""
        with autocast(self.device, self.mixed), tf32(self.conditions.tf32):
            yield


class Outputs(NamedTuple):
    """What a network makes of a side's utterances.

    Attributes:
        rows: Positions in the manifest, ascending, (n,).
        labels: Class indices, (n,).
        logits: The network's logits in fp32, (n, classes).
        probabilities: The likelihood of each class, (n, classes).
        embedding: The fused vectors in fp32, (n, dim).
        encoded: By modality, its encoder's features' mean over time, (n, their width). Empty where nobody asked.
        fused: The same of what the fusion hands on, by modality.
        metrics: What the network is judged by, named as in metrics.json without the side. The loss and its terms are
            means over the utterances.
    """

    rows: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    embedding: np.ndarray
    encoded: dict[str, np.ndarray]
    fused: dict[str, np.ndarray]
    metrics: dict[str, float]

    @property
    def predicted(self) -> np.ndarray:
        """Class indices, (n,)."""
        return self.probabilities.argmax(1)


Step = Callable[[Batch], tuple[NetworkOutput, Mapping[str, Tensor], int]]
"""A batch -> what the network makes of this process's share, the whole batch's loss by term (or none), and its size."""


def compute_outputs(
    step: Step, batches: Iterable[Batch], *, classes: Sequence[str], device: torch.device, pooled: bool = False
) -> Outputs:
    """Run a network over utterances, each once; of several processes, each over its share of every batch.

    Args:
        step: What is done with a batch, in evaluation mode.
        batches: The utterances.
        classes: The classes that logits stand for, in their order.
        device: Where the network is.
        pooled: Whether `encoded` and `fused` are wanted, too.
    """
    from fourm_ser.models.metrics import EmotionMetrics  # takes seconds to import, and predictions need no metrics

    metrics, losses = EmotionMetrics(classes).to(device), dict[str, Tensor | float]()
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for batch in batches:
        with torch.no_grad():
            output, terms, count = step(batch)
            logits, labels = output.logits.float(), sent(batch.labels, device)
            metrics.update(logits, output.embedding, labels)
            found = {
                "rows": batch.rows,
                "labels": labels,
                "logits": logits,
                "probabilities": logits.softmax(1),
                "embedding": output.embedding.float(),
            }
            if pooled:
                found |= {f"encoded {name}": pool(features, "mean") for name, features in output.encoded.items()}
                handed_on = [name for name in ("text", "audio") if getattr(output, name) is not None]
                found |= {f"fused {name}": vectors for name, vectors in output.features(handed_on).items()}
            for name, tensor in found.items():
                parts[name].append(gather_rows(tensor))
            for name, value in terms.items():
                key = "loss" if name == "total" else f"loss/{name}"
                losses[key] = losses.get(key, 0.0) + value.float() * count
    home = {name: torch.cat(tensors).cpu() for name, tensors in parts.items()}
    order = home["rows"].argsort()
    joined: dict[str, Any] = {name: tensor[order].numpy() for name, tensor in home.items()}
    for kind in ("encoded", "fused"):
        own = [name for name in joined if name.startswith(f"{kind} ")]
        joined[kind] = {name.removeprefix(f"{kind} "): joined.pop(name) for name in own}
    values = {**{name: value / len(order) for name, value in losses.items()}, **metrics.compute()}
    # As Lightning's loggers keep numbers, in float32: every command records the same.
    return Outputs(**joined, metrics={name: float(np.float32(float(value))) for name, value in values.items()})
