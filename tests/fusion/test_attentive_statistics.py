"""Attentive statistics pooling: against NumPy, one frame, maps."""

from typing import Any

import numpy as np
import pytest
import torch

from fourm_ser.encoders.base import Features
from fourm_ser.errors import InputError
from fourm_ser.fusion.attentive_statistics import AttentiveStatisticsFusion
from fourm_ser.fusion.base import LEARNED
from fourm_ser.fusion.statistics import FLOOR
from tests.fusion.sequences import fuse, train_a_little, utterances

DIMS = {"text": 6, "audio": 4}
TEXTS = utterances((2, 5, 40, 1), DIMS["text"], seed=1)
AUDIOS = utterances((60, 1, 7, 9), DIMS["audio"], seed=2)
BOTH = ["text", "audio"]


def build(*modalities: str) -> AttentiveStatisticsFusion:
    fusion = train_a_little(AttentiveStatisticsFusion(DIMS, modalities, hidden=5))
    assert isinstance(fusion, AttentiveStatisticsFusion)
    return fusion


def by_numpy(fusion: AttentiveStatisticsFusion, modality: str, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and weighted mean and deviation, of one utterance's frames [time, width], as the paper writes them."""
    part: Any = fusion.weights[modality]
    matrix, bias, vector = (tensor.detach().double().numpy() for tensor in part.parameters())
    scores = np.array([vector[0] @ np.tanh(matrix @ frame + bias) for frame in frames])
    weights = np.exp(scores) / np.exp(scores).sum()
    mean = sum(weight * frame for weight, frame in zip(weights, frames, strict=True))
    square = sum(weight * frame**2 for weight, frame in zip(weights, frames, strict=True))
    return weights, np.concatenate([mean, np.sqrt(np.maximum(square - mean**2, 0) + FLOOR)])


@pytest.mark.parametrize("modalities", [["text", "audio"], ["audio", "text"], ["audio"]])
def test_it_is_each_modality_s_weighted_mean_and_deviation(modalities: list[str]) -> None:
    fusion = build(*modalities)
    output = fuse(fusion, TEXTS, AUDIOS, float("nan"), return_attention=True)
    assert fusion.dim == output.embedding.shape[1] == 2 * sum(DIMS[modality] for modality in modalities)
    assert set(output.attention) == set(fusion.maps) == set(modalities)
    for row, frames in enumerate(zip(TEXTS, AUDIOS, strict=True)):
        given = dict(zip(BOTH, frames, strict=True))
        found = [by_numpy(fusion, modality, given[modality].double().numpy()) for modality in modalities]
        expected = np.concatenate([statistics for _, statistics in found])
        np.testing.assert_allclose(output.embedding[row].detach(), expected, atol=1e-5)
        for modality, (weights, _) in zip(modalities, found, strict=True):
            map_ = output.attention[modality][row, 0, 0].detach().numpy()
            np.testing.assert_allclose(map_[: len(weights)], weights, atol=1e-6)
            assert (map_[len(weights) :] == 0).all()
            assert fusion.maps[modality] == ((LEARNED,), (modality,))


def test_one_frame_is_itself_and_its_gradient_is_finite() -> None:
    fusion = build("audio")
    frames = AUDIOS[1][None].clone().requires_grad_()
    embedding = fusion(None, Features(frames, torch.ones(1, 1, dtype=torch.bool))).embedding
    torch.testing.assert_close(embedding[0, :4], AUDIOS[1][0])
    torch.testing.assert_close(embedding[0, 4:], torch.full((4,), FLOOR**0.5))
    wanted = [frames, *fusion.parameters()]
    assert all(torch.isfinite(slope).all() for slope in torch.autograd.grad(embedding.square().sum(), wanted))


@pytest.mark.parametrize("hidden", [0, -3, 2.5, True])
def test_a_width_that_no_layer_has_is_refused(hidden: Any) -> None:
    with pytest.raises(InputError, match=rf"^fusion\.hidden={hidden}: expected a whole number from 1"):
        AttentiveStatisticsFusion(DIMS, BOTH, hidden)
