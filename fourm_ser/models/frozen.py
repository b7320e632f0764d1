"""Frozen stems at work on a batch whose features come from no store: they give what the store would hold."""

from typing import Any

import torch
from torch import Tensor

from fourm_ser.data.batch import Batch
from fourm_ser.devices import HALVES, autocast
from fourm_ser.devices import tf32 as allow_tf32
from fourm_ser.encoders.base import Encoder, Features, Inputs
from fourm_ser.models.features import Encoding
from fourm_ser.models.network import EmotionNetwork


@torch.no_grad()
def frozen_features(encoder: Encoder, inputs: Inputs, half: torch.dtype | None, tf32: bool) -> Features:
    """What the store would hold of a batch's raw inputs, but for what a batch's size does to half precision's digits.

    Args:
        encoder: An encoder whose stem is frozen and in evaluation mode.
        inputs: A batch of its front end's inputs, on the stem's device.
        half: The half precision that the stem runs in, whatever precision is around it; None for fp32.
        tf32: Whether an NVIDIA GPU may round to TF32 meanwhile.
    """
    device = next(iter(inputs.values())).device
    with autocast(device, half), allow_tf32(tf32):
        encoded = encoder.stem_features(inputs)
    return Features(halved(encoded) if half else encoded.features.float(), encoded.mask)


def with_features(network: EmotionNetwork, batch: Batch, encoding: Encoding) -> Batch:
    """A batch on its device, with what the store would hold in place of the raw inputs of frozen stems."""
    found: dict[str, Any] = {}
    for modality, encoder in network.by_modality.items():
        inputs = batch._asdict()[modality]
        if encoder.frozen and isinstance(inputs, dict):
            found[modality] = frozen_features(encoder, inputs, HALVES.get(encoding.precision), encoding.tf32)
    return batch._replace(**found)


def halved(sequence: Features) -> Tensor:
    """Features in float32, rounded as the store holds those of a stem in half precision."""
    exact = sequence.features.float()
    rounded = exact.half().float()
    fits = (rounded.isfinite() | ~sequence.mask[..., None]).flatten(1).all(1)
    return torch.where(fits[:, None, None], rounded, exact)
