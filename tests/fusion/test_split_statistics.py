"""Functionals of frames of a kind and of the others: against NumPy, padding."""

from typing import Any

import numpy as np
import pytest
import torch

from fourm_ser.encoders.base import Features
from fourm_ser.errors import InputError
from fourm_ser.fusion.split_statistics import SplitStatisticsFusion
from tests.fusion.test_statistics import DIMS, LENGTHS, build_sequence


def build(modality: str = "audio", weight: Any = -1) -> SplitStatisticsFusion:
    return SplitStatisticsFusion(dims=DIMS, modalities=[modality], weight=weight)


def by_numpy(own: np.ndarray, weight: int) -> np.ndarray:
    """The functionals of one utterance's frames [time, width], before any scaling."""
    share = own[:, weight]
    mean = np.average(own, axis=0, weights=share)
    deviation = np.sqrt(np.average((own - mean) ** 2, axis=0, weights=share) + 1e-4)
    rising, falling, total = np.zeros(own.shape[1]), np.zeros(own.shape[1]), 1e-9
    for frame in range(1, len(own)):
        both = min(share[frame - 1], share[frame])
        rising += both * np.maximum(own[frame] - own[frame - 1], 0)
        falling += both * np.maximum(own[frame - 1] - own[frame], 0)
        total += both
    others = np.average(own, axis=0, weights=1 - share)
    return np.concatenate([mean, deviation, rising / total, falling / total, others])


@pytest.mark.parametrize(
    ("modality", "weight", "padding"), [("text", 2, 1e6), ("audio", -1, float("inf")), ("audio", 0, float("nan"))]
)
def test_functionals_of_each_row_s_own_frames(modality: str, weight: int, padding: float) -> None:
    sequence = build_sequence(DIMS[modality], padding)
    fusion = build(modality, weight).eval()
    output = fusion(**{"text": None, "audio": None, modality: sequence})
    assert fusion.modalities == (modality,)
    assert fusion.widths == {modality: DIMS[modality]}
    assert output.embedding.shape == (3, fusion.dim)
    for row, count in enumerate(LENGTHS):
        own = sequence.features[row, :count].double().numpy()
        expected = by_numpy(own, weight) / np.sqrt(1 + 1e-4)  # the scale before any training
        np.testing.assert_allclose(output.embedding[row].numpy(), expected, atol=1e-5)
    assert output.attention == {}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_frames_all_of_one_kind_leave_finite_numbers(share: float) -> None:
    features = torch.rand(2, 3, 3)
    features[..., -1] = share
    features.requires_grad_()
    embedding = build()(None, Features(features, torch.ones(2, 3, dtype=torch.bool))).embedding
    (gradient,) = torch.autograd.grad(embedding.sum(), features)
    assert torch.isfinite(embedding).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 3}, r"fusion\.weight=3.*3 features"),
        ({"weight": None}, r"fusion\.weight=None"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**change)
    with pytest.raises(InputError, match=r"fusion\.modalities"):
        SplitStatisticsFusion(dims=DIMS, modalities=["text", "audio"], weight=-1)
