"""Statistics pooling: against NumPy, padding, running scale, one modality."""

import numpy as np
import pytest
import torch

from fourm_ser.encoders.base import Features, length_mask
from fourm_ser.errors import InputError
from fourm_ser.fusion.statistics import RunningScale, StatisticsFusion

DIMS = {"text": 5, "audio": 3}
LENGTHS = (1, 4, 9)


def build_sequence(width: int, padding: float = 1e6) -> Features:
    torch.manual_seed(0)
    mask = length_mask(torch.tensor(LENGTHS), 9)
    return Features(torch.rand(3, 9, width).masked_fill(~mask[..., None], padding), mask)


def by_numpy(own: np.ndarray, weight: int | None) -> np.ndarray:
    """The statistics of one utterance's frames [time, width], before any scaling."""
    step = np.abs(np.diff(own, axis=0)).mean(axis=0) if len(own) > 1 else np.zeros(own.shape[1])
    parts = [own.mean(axis=0), np.sqrt(own.var(axis=0) + 1e-4), step]
    if weight is not None:
        share = own[:, weight]
        mean = np.average(own, axis=0, weights=share)
        parts += [mean, np.sqrt(np.average((own - mean) ** 2, axis=0, weights=share) + 1e-4)]
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("modality", "weight", "padding"),
    [("text", None, 1e6), ("audio", -1, float("inf")), ("audio", 0, float("nan"))],
)
def test_statistics_of_each_row_s_own_frames(modality: str, weight: int | None, padding: float) -> None:
    sequence = build_sequence(DIMS[modality], padding)
    fusion = StatisticsFusion(DIMS, [modality], weight).eval()
    output = fusion(**{"text": None, "audio": None, modality: sequence})
    assert fusion.modalities == (modality,)
    assert fusion.widths == {modality: DIMS[modality]}
    assert output.embedding.shape == (3, fusion.dim)
    for row, count in enumerate(LENGTHS):
        own = sequence.features[row, :count].double().numpy()
        expected = by_numpy(own, weight) / np.sqrt(1 + 1e-4)  # the scale before any training
        np.testing.assert_allclose(output.embedding[row].numpy(), expected, atol=1e-5)
    assert output.attention == {}


def test_frames_that_weigh_nothing_leave_finite_numbers() -> None:
    features = torch.ones(2, 3, 3)
    features[..., -1] = 0.0
    features.requires_grad_()
    fusion = StatisticsFusion(DIMS, ["audio"], -1)
    embedding = fusion(None, Features(features, torch.ones(2, 3, dtype=torch.bool))).embedding
    (gradient,) = torch.autograd.grad(embedding.sum(), features)
    assert torch.isfinite(embedding).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("training", [True, False])
def test_a_neighbour_does_not_change_a_row(training: bool) -> None:
    sequence = build_sequence(3)
    together = StatisticsFusion(DIMS, ["audio"], -1).train(training)
    together.scale.batches.fill_(10**6)
    found = together.scale.mean.clone(), together(None, sequence).embedding
    for row, count in enumerate(LENGTHS):
        alone = StatisticsFusion(DIMS, ["audio"], -1).eval()
        alone.scale.load_state_dict(together.scale.state_dict())
        own = Features(sequence.features[row : row + 1, :count], sequence.mask[row : row + 1, :count])
        torch.testing.assert_close(alone(None, own).embedding[0], found[1][row], rtol=0, atol=1e-4)
    assert torch.equal(found[0], together.scale.mean) == (not training)


def test_the_scale_follows_what_training_shows() -> None:
    scale = RunningScale(2)
    batches = torch.randn(400, 16, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.5]) + 2.0
    for batch in batches[:10]:
        scale(batch)
    seen = batches[:10].flatten(0, 1)  # the first batches count alike
    torch.testing.assert_close(scale.mean, seen.mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(scale.square, seen.square().mean(0), rtol=0, atol=1e-4)
    for batch in batches[10:]:
        scale(batch)
    found = scale.eval()(batches.flatten(0, 1))
    torch.testing.assert_close(found.mean(0), torch.zeros(2), rtol=0, atol=0.15)
    torch.testing.assert_close(found.std(0), torch.ones(2), rtol=0, atol=0.15)
    before = scale.mean.clone()
    scale(batches[0] + 100)
    assert torch.equal(scale.mean, before)


def test_one_utterance_may_be_a_batch_of_its_own_in_training() -> None:
    fusion = StatisticsFusion(DIMS, ["audio"], None)
    sequence = Features(torch.rand(1, 6, 3), torch.ones(1, 6, dtype=torch.bool))
    assert torch.isfinite(fusion(None, sequence).embedding).all()


def test_two_modalities_and_a_feature_that_is_not_there_are_refused() -> None:
    with pytest.raises(InputError, match=r"fusion\.modalities"):
        StatisticsFusion(DIMS, ["text", "audio"], None)
    with pytest.raises(InputError, match=r"fusion\.weight=3.*3 features"):
        StatisticsFusion(DIMS, ["audio"], 3)
