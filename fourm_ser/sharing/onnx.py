"""A network as an ONNX file: from what its front ends make to probabilities and embeddings, in batches of any size."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fourm_ser import SAMPLE_RATE, __version__
from fourm_ser.encoders.base import Inputs
from fourm_ser.encoders.repositories import in_a_line
from fourm_ser.errors import InputError, brief
from fourm_ser.files import as_json, whole
from fourm_ser.models.directory import Model
from fourm_ser.models.network import EmotionNetwork

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of a probability, and of an embedding's component beside the largest one
LARGEST = 2 * 10**9  # bytes of weights: a protocol buffer holds no more
LONGEST = 30.0  # seconds of the longest recording that is tried where the model was trained on any length
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TEXTS = ("no", "every green ball", "a rather longer sentence, which has more words than the others have", "")
# Seconds of the recordings of a batch. The first is what is traced: short, as an LSTM is traced step by step.
TRIED = ((0.3, 0.6), (2.1, 0.7, 1.3), (1.0,))
OUTPUTS = ("probabilities", "embeddings")


class Port(NamedTuple):
    """An input of the exported network: a tensor of a front end's batch.

    Attributes:
        modality: Whose front end makes it.
        name: As that one calls it.
        axes: Names of the axes whose sizes may change, by their places.
    """

    modality: str
    name: str
    axes: dict[int, str]

    @property
    def label(self) -> str:
        """What the file calls it."""
        return f"{self.modality}_{self.name}"


class Whole(nn.Module):
    """A network whose inputs are tensors, one after the other, and whose outputs are, too."""

    def __init__(self, network: EmotionNetwork, ports: Sequence[Port]) -> None:
        super().__init__()
        self.network, self.ports = network, ports

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of all front ends -> probabilities (batch, classes), embeddings (batch, dim)."""
        given: dict[str, Any] = {"text": None, "audio": None}
        for port, tensor in zip(self.ports, tensors, strict=True):
            given[port.modality] = {**(given[port.modality] or {}), port.name: tensor}
        output = self.network(given["text"], given["audio"])
        return output.logits.softmax(-1), output.embedding


def export_onnx(model: Model, path: Path) -> list[dict[str, Any]]:
    """Write a model's network as an ONNX file, whole, if it computes what PyTorch computes.

    The network is in float32, whatever it was trained in. It is compared on batches of other sizes and lengths than
    the one that was traced, and on each utterance alone: padding changes nothing. What the inputs are stands in the
    file's metadata: `emotions`, `rate`, `max_seconds`, `frontends` and `inputs`, each as JSON.

    Args:
        model: The model, on the CPU.
        path: The file.

    Returns:
        Its inputs in order: `name`, `type` and `axes`, each the size, or the name of one that is free.

    Raises:
        InputError: a package is missing, the network is too large or cannot be exported, or its export differs.
        OSError: the file cannot be written.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"export: {', '.join(missing)} is not installed: pip install 'fourm_ser[onnx]'.")
    network = model.network.float().eval().requires_grad_(False)
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > LARGEST:
        raise InputError(f"export: the network has {size / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB.")
    seconds = min(model.conditions.max_seconds or LONGEST, LONGEST)
    tried = [make_items(network, lengths) for lengths in (*TRIED, (seconds,))]
    first = collate(network, tried[0])
    whole_network = Whole(network, find_ports(network, tried))
    traced = _trace(whole_network, first)
    ports = [
        {
            "name": port.label,
            "type": str(tensor.dtype).removeprefix("torch."),
            "axes": [port.axes.get(axis, size) for axis, size in enumerate(tensor.shape)],
        }
        for port, tensor in zip(whole_network.ports, flat(whole_network.ports, first), strict=True)
    ]
    frontends = {modality: encoder.frontend.describe() for modality, encoder in network.by_modality.items()}
    about = {"emotions": model.emotions, "rate": SAMPLE_RATE, "max_seconds": seconds, "inputs": ports}
    about |= {"frontends": frontends, "fourm_ser": __version__}
    for port, value in zip(whole_network.ports, traced.model.graph.inputs, strict=True):
        for axis, axis_name in port.axes.items():
            value.shape[axis] = axis_name
    for node in traced.model.graph.all_nodes():
        node.metadata_props.clear()  # where in whose files it was traced
    traced.model.metadata_props.update({key: as_json(value) for key, value in about.items()})
    with whole(path) as temporary:
        traced.save(temporary)
        compare(temporary, whole_network, tried)
    return ports


def make_items(network: EmotionNetwork, seconds: Sequence[float]) -> list[dict[str, Inputs]]:
    """Utterances of noise of so many seconds, and of texts of other lengths, as the front ends leave them."""
    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, 0.1, round(length * SAMPLE_RATE)).astype(np.float32) for length in seconds]
    texts = [TEXTS[(place + len(seconds)) % len(TEXTS)] for place in range(len(seconds))]
    return [
        {name: encoder.frontend(raw[name]) for name, encoder in network.by_modality.items()}
        for raw in ({"audio": sound, "text": text} for sound, text in zip(sounds, texts, strict=True))
    ]


def collate(network: EmotionNetwork, items: Sequence[Mapping[str, Inputs]]) -> dict[str, Inputs]:
    """Utterances as one padded batch."""
    return {name: encoder.collate([item[name] for item in items]) for name, encoder in network.by_modality.items()}


def find_ports(network: EmotionNetwork, tried: Sequence[Sequence[Mapping[str, Inputs]]]) -> list[Port]:
    """The inputs, by two batches of different sizes and lengths: an axis is free where these differ."""
    first, second = (collate(network, items) for items in tried[:2])
    counts = tuple(map(len, tried[:2]))
    ports = []
    for modality, inputs in first.items():
        for name, tensor in inputs.items():
            pairs = enumerate(zip(tensor.shape, second[modality][name].shape, strict=True))
            free = {axis: sizes for axis, sizes in pairs if sizes[0] != sizes[1]}
            told = {
                axis: "batch" if axis == 0 and sizes == counts else f"{modality}_{name}_{axis}"
                for axis, sizes in free.items()
            }
            ports.append(Port(modality, name, told))
    return ports


def flat(ports: Sequence[Port], batch: Mapping[str, Inputs]) -> tuple[Tensor, ...]:
    """A batch as the exported network takes it."""
    return tuple(batch[port.modality][port.name] for port in ports)


def compare(path: Path, network: Whole, tried: Sequence[Sequence[Mapping[str, Inputs]]]) -> None:
    """Refuse an ONNX file that computes something else than the network, or feels an utterance's neighbours.

    Args:
        path: The file.
        network: What was exported.
        tried: Batches of utterances, on which they are compared, and each utterance alone with itself in its batch.

    Raises:
        InputError: what differs, and by how much.
    """
    import onnxruntime

    options, quiet = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.log_severity_level = quiet.log_severity_level = 4  # what fails is told here
    providers = ["CPUExecutionProvider"]
    session = _blamed(lambda: onnxruntime.InferenceSession(path, options, providers=providers))
    taken = {port.name for port in session.get_inputs()}

    def run(items: Sequence[Mapping[str, Inputs]]) -> tuple[list[np.ndarray], tuple[Tensor, ...]]:
        tensors = flat(network.ports, collate(network.network, items))
        given = {port.label: tensor.numpy() for port, tensor in zip(network.ports, tensors, strict=True)}
        chosen = {name: array for name, array in given.items() if name in taken}
        return _blamed(lambda: session.run(list(OUTPUTS), chosen, quiet)), tensors

    for items in tried:
        found, tensors = run(items)
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in network(*tensors)]
        _refuse_difference(found, expected, "PyTorch's", tensors)
        for place in range(len(items) if len(items) > 1 else 0):
            alone, tensors = run(items[place : place + 1])
            own = [array[place : place + 1] for array in found]
            _refuse_difference(alone, own, "those of the same utterance in a batch", tensors)


def _refuse_difference(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray], whose: str, inputs: Sequence[Tensor]
) -> None:
    for name, own, other in zip(OUTPUTS, found, expected, strict=True):
        away = np.inf
        if own.shape == other.shape:
            away = float(np.abs(own - other).max() / max(1.0, float(np.abs(other).max())))
        if not away <= TOLERANCE:
            shapes = [list(tensor.shape) for tensor in inputs]
            raise InputError(
                f"export: {name} of the ONNX file differ from {whose} by {away:.2g} (inputs {shapes}); expected at "
                f"most {TOLERANCE:g}. No file was kept."
            )


def _blamed(run: Callable[[], Any]) -> Any:
    """What ONNX Runtime does; InputError in place of whatever it raises."""
    try:
        return run()
    except Exception as error:
        raise InputError(f"export: ONNX Runtime cannot run the file: {brief(error)}. No file was kept.") from error


def _trace(network: Whole, batch: Mapping[str, Inputs]) -> Any:
    """The network as an ONNX program."""
    tensors = flat(network.ports, batch)
    exporters = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript", "torch.export")]
    levels = [logger.level for logger in exporters]
    try:
        for logger in exporters:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                network,
                tensors,
                dynamo=True,
                # AUTO: what turns out to hang on another size, or to have one alone, is found out by trying.
                dynamic_shapes=(tuple(dict.fromkeys(port.axes, torch.export.Dim.AUTO) for port in network.ports),),
                input_names=[port.label for port in network.ports],
                output_names=list(OUTPUTS),
                verbose=False,
            )
    except Exception as error:  # of torch.export, of the exporter, of the model's own code
        cause: Exception = error
        while isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        names = " and ".join(encoder.name for encoder in network.network.by_modality.values())
        raise InputError(f"export: a network of {names} cannot be exported: {in_a_line(cause)}.") from error
    finally:
        for logger, level in zip(exporters, levels, strict=True):
            logger.setLevel(level)
