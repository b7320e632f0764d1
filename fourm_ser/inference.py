"""A trained model at work, as it was trained: features as the store would hold them, the precision of its trainer."""

import logging

import torch

from fourm_ser.encoders.base import Inputs, Sequence, moved
from fourm_ser.encoding import halved
from fourm_ser.errors import InputError
from fourm_ser.model import Model
from fourm_ser.network import NetworkOutput
from fourm_ser.stages import native_bf16

log = logging.getLogger(__name__)

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Inference:
    """The network of a model, on a device and in the precision it was trained in.

    Where the device does not compute in bf16 natively, a model that was trained in it runs in fp32, as the log says:
    probabilities differ a little. Trainers that were in half precision throughout (`bf16-true`) are run in fp32, too.

    Args:
        model: the model.
        device: where it runs.
        exact: keep the precision of training whatever the device, as evaluating a run again has to.
    """

    def __init__(self, model: Model, device: torch.device, exact: bool = False) -> None:
        self.model, self.device = model, device
        use = model.use
        native = exact or native_bf16("gpu" if device.type == "cuda" else device.type)
        self.encoding = use.encoding if native else "32"
        self.mixed = MIXED.get(use.precision) if native else None
        if not native and (use.encoding, use.precision) != ("32", "32-true"):
            log.info("the model was trained in %s and is run in fp32 here", use.precision)
        self.network = model.network.to(device).eval()

    @torch.inference_mode()
    def __call__(
        self, text: Inputs | Sequence | None, audio: Inputs | Sequence | None, return_attention: bool = False
    ) -> NetworkOutput:
        """A batch of raw inputs, or of stored features, of each modality -> `NetworkOutput`."""
        given = {"text": text, "audio": audio}
        inputs = {modality: moved(given[modality], self.device) for modality in self.network.by_modality}
        for modality in self.model.use.stored:
            if modality in inputs and not isinstance(inputs[modality], Sequence):
                inputs[modality] = self.encode(modality, inputs[modality])  # type: ignore[arg-type]
        with self.autocast():
            return self.network(inputs.get("text"), inputs.get("audio"), return_attention)

    @torch.inference_mode()
    def encode(self, modality: str, inputs: Inputs) -> Sequence:
        """A frozen stem's features of a batch, rounded as in the store."""
        bf16 = self.encoding == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            encoded = self.network.by_modality[modality].stem(inputs)
        features = encoded.features.float()
        if bf16:
            features = torch.from_numpy(halved(features.cpu().numpy())).float().to(self.device)
        return Sequence(features, encoded.mask)

    def autocast(self) -> torch.autocast:
        """The precision that the network runs in."""
        return torch.autocast(self.device.type, self.mixed or torch.bfloat16, enabled=self.mixed is not None)


def choose_device(name: str) -> torch.device:
    """`auto` (a GPU where there is one), `cpu` or `gpu` as a device.

    Raises:
        InputError: it is none of these, or a GPU is asked for and there is none.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise InputError(f"device={name}: expected auto, cpu or gpu.")
    has_gpu = torch.cuda.is_available()
    if name == "gpu" and not has_gpu:
        raise InputError("device=gpu: PyTorch sees no GPU here. Use device=cpu or device=auto.")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")
