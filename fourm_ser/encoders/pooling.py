"""Pooling over time: an utterance's frames as one, their mean, or their mean and deviation."""

import torch
from torch import Tensor

FACTORS = {"none": 1, "mean": 1, "mean_std": 2}
"""The ways to pool, the values of `encode.pool`, and how many times as wide each makes the features."""

EPSILON = 1e-6  # below a root, whose slope at 0 is endless: a deviation is 0.001 at least


def pooled(features: Tensor, mask: Tensor, how: str) -> Tensor:
    """Each row's own frames as one: (batch, time, dim), mask (batch, time) -> (batch, 1, dim); 2 * dim of `mean_std`.

    In fp32 throughout, whatever the features are: a sum over hundreds of frames loses too much in half precision. The
    deviation is that of the frames themselves (over n, not n - 1): the root of their variance + `EPSILON`.
    """
    with torch.autocast(features.device.type, enabled=False):
        own = mask[..., None]
        count = own.sum(1)  # (batch, 1)
        features = features.float().masked_fill(~own, 0.0)  # padding may hold anything
        mean = features.sum(1) / count
        if how == "mean":
            return mean[:, None]
        variance = (features - mean[:, None]).masked_fill(~own, 0.0).square().sum(1) / count
        return torch.cat([mean, (variance + EPSILON).sqrt()], dim=-1)[:, None]
