"""Whether an encoder gives an utterance alone what it gives it in a padded batch: tried on each once, remembered."""

import importlib.metadata
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fourm_ser import SAMPLE_RATE, __version__
from fourm_ser.devices import tf32
from fourm_ser.encoders.base import Encoder, Features, moved
from fourm_ser.errors import InputError
from fourm_ser.files import write_json

TOLERANCE = 1e-4
"""By how much of their size features may differ. Measured in float32: below 5e-6 in all encoders of this package, 0.2
to 0.9 in speech models whose convolutions meet what norms and biases made of padding."""

SHARE = 0.05
"""How many of a frame's values may differ by more: those that end in a rounding may fall on either side of a step."""

SECONDS = ((0.4, 0.7), (1.6, 2.8))
"""How long the utterances are; the longer two are for encoders that make as many frames of both of the others."""

TEXTS = (("yes", "nobody knows what that is"),)


def check_padding(encoder: Encoder, fingerprint: str, cache: Path) -> None:
    """Refuse an encoder whose features of an utterance depend on its neighbours in a batch.

    What passed is remembered in the cache, as long as neither the libraries nor the encoder's own file change.

    Args:
        encoder: the encoder, wherever it is; its modes and all random numbers stay what they are.
        fingerprint: the encoder's fingerprint.
        cache: the folder for what is made once.

    Raises:
        InputError: it does, or it counts other frames in a batch.
    """
    path = cache / "padding" / f"{encoder.name}-{fingerprint}.json"
    tried = _circumstances(encoder)
    if _remembered(path) == tried:
        return
    difference = measure_padding(encoder)
    if not difference <= TOLERANCE:  # nor is what is no number
        raise InputError(
            f"encoder.{encoder.modality}: {encoder.name} ({type(encoder).__qualname__}) gives an utterance other "
            f"features in a batch than alone: they differ by {difference:.1g} of their size, {TOLERANCE:g} is allowed. "
            "Choose another encoder, or let its stem hide padding: by masks in attention, by zeros before each "
            "convolution over time, and by no norm over time or batch."
        )
    with suppress(OSError):  # a cache that may only be read: it is tried again
        write_json(path, tried)


def measure_padding(encoder: Encoder) -> float:
    """By how much of their size features differ alone and in a padded batch, in the frame where they differ most.

    A frame differs by as much as all but `SHARE` of its values stay within; a feature's size is its largest value, or
    the mean of all where that is larger. It is infinite where a batch has other frames.
    """
    with _undisturbed(encoder), torch.no_grad(), tf32(False):
        for raws in _utterances(encoder.modality):
            items = [encoder.frontend(raw) for raw in raws]
            alone = [_encode(encoder, [item]) for item in items]
            if len({features.mask.shape[1] for features in alone}) > 1:
                break
        return _difference(_encode(encoder, items), alone)


def _utterances(modality: str) -> Iterator[Sequence[Any]]:
    """Pairs of utterances of different lengths."""
    if modality == "text":
        yield from TEXTS
    for pair in SECONDS if modality == "audio" else ():
        noise = np.random.default_rng(0)
        yield [noise.normal(0, 0.1, int(seconds * SAMPLE_RATE)).astype(np.float32) for seconds in pair]


def _encode(encoder: Encoder, items: Sequence[Any]) -> Features:
    """Features of a batch, on the host."""
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    features, mask = encoder(moved(encoder.collate(items), device))
    return Features(features.float().cpu(), mask.cpu())


def _difference(batch: Features, alone: Sequence[Features]) -> float:
    """See `measure_padding`."""
    if batch.mask.sum(1).tolist() != [int(features.mask.sum()) for features in alone]:
        return float("inf")
    expected = torch.cat([features.features[features.mask] for features in alone])  # (frames of all, dim)
    size = expected.abs().amax(0).clamp(min=float(expected.abs().mean()))
    ratios = (batch.features[batch.mask] - expected).abs() / size.clamp(min=torch.finfo(torch.float32).tiny)
    return float(ratios.quantile(1 - SHARE, dim=1).amax())


@contextmanager
def _undisturbed(encoder: Encoder) -> Iterator[None]:
    """Evaluation mode meanwhile; then all modules' modes and all random numbers are what they were."""
    from pytorch_lightning.utilities.seed import isolate_rng  # seconds that other users of encoders need not wait

    modes = [(module, module.training) for module in encoder.modules()]
    try:
        encoder.eval()
        with isolate_rng():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _circumstances(encoder: Encoder) -> dict[str, str]:
    """What the result hangs on beyond the fingerprint: the libraries, and the file of the encoder's class."""
    try:
        source = Path(inspect.getfile(type(encoder))).read_bytes()
    except (OSError, TypeError):  # of a notebook
        source = b""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {"fourm_ser": __version__, **versions, "source": blake2b(source, digest_size=12).hexdigest()}


def _remembered(path: Path) -> Any:
    """What is written there; None where nothing is that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
