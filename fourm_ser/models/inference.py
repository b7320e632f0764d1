"""A trained model at work, as it was trained: features as the store would hold them, the precision of its trainer."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fourm_ser.devices import HALVES, MIXED, computes_in, ran_out_of_memory, tf32
from fourm_ser.encoders.base import Features, Inputs, Packed, moved
from fourm_ser.errors import InputError
from fourm_ser.models.directory import Model
from fourm_ser.models.features import halved
from fourm_ser.models.network import NetworkOutput

log = logging.getLogger(__name__)


class Inference:
    """The network of a model, on a device and in the precision it was trained in.

    Where the device does not compute in that half precision natively, the model runs in fp32, as the log says:
    probabilities differ a little. Trainers that were in half precision throughout (`bf16-true`) are run in fp32, too.

    Args:
        model: the model.
        device: where it runs.
        exact: keep the precision of training whatever the device, as evaluating a run again has to.
    """

    def __init__(self, model: Model, device: torch.device, exact: bool = False) -> None:
        self.model, self.device = model, device
        use = model.use
        halves = {HALVES.get(use.encoding), MIXED.get(use.precision)} - {None}
        native = exact or all(computes_in(device, half) for half in halves if half)
        self.encoding = use.encoding if native else "32"
        self.mixed = MIXED.get(use.precision) if native else None
        if not native:
            log.info("the model was trained in %s and is run in fp32 here", use.precision)
        self.network = model.network.to(device).eval()

    @torch.inference_mode()
    def __call__(
        self,
        text: Inputs | Features | Packed | None,
        audio: Inputs | Features | Packed | None,
        return_attention: bool = False,
    ) -> NetworkOutput:
        """A batch of raw inputs, or of stored features, of each modality -> `NetworkOutput`.

        Raises:
            InputError: the device has no memory for it.
        """
        try:
            return self._run({"text": text, "audio": audio}, return_attention)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise InputError(
                f"{self.device.type} ran out of memory over a batch. Lower batch_size (and batch_seconds where the "
                "command has it), or use another device."
            ) from error

    def _run(self, given: Mapping[str, Inputs | Features | Packed | None], return_attention: bool) -> NetworkOutput:
        inputs = {modality: moved(given[modality], self.device) for modality in self.network.by_modality}
        for modality in self.model.use.stored:
            if modality in inputs and not isinstance(inputs[modality], Features):
                inputs[modality] = self.encode(modality, inputs[modality])  # type: ignore[arg-type]
        with self.as_trained():
            return self.network(inputs.get("text"), inputs.get("audio"), return_attention)

    @torch.inference_mode()
    def encode(self, modality: str, inputs: Inputs) -> Features:
        """A frozen stem's features of a batch, rounded as in the store."""
        half = HALVES.get(self.encoding)
        precision = torch.autocast(self.device.type, half or torch.bfloat16, enabled=half is not None)
        with precision, tf32(self.model.use.encoding_tf32):
            encoded = self.network.by_modality[modality].stem(inputs)
        return Features(halved(encoded) if half else encoded.features.float(), encoded.mask)

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """The precision that the network runs in."""
        mixed = self.mixed
        precision = torch.autocast(self.device.type, mixed or torch.bfloat16, enabled=mixed is not None)
        with precision, tf32(self.model.use.tf32):
            yield
