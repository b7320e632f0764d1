"""What baselines read of stored features: each utterance's own frames, of the hidden states that are chosen."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourm_ser.baselines.pooled import PooledFeatures
from fourm_ser.encoders.base import Features
from fourm_ser.encoders.pooling import FACTORS
from fourm_ser.fusion.statistics import FLOOR

DIMS = {"text": 4, "audio": 6}


def sequence(width: int, lengths: list[int], seed: int = 0) -> Features:
    """Frames with numbers that are not finite where padding stands."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    values = torch.randn(len(lengths), max(lengths), width, generator=generator)
    return Features(values.masked_fill(~mask[..., None], float("nan")), mask)


def made(statistics: str = "mean_std", stored: str = "none", **others: Any) -> PooledFeatures:
    factor = FACTORS[stored]
    return PooledFeatures(
        dims={modality: factor * width for modality, width in DIMS.items()},
        modalities=["text", "audio"],
        statistics=dict.fromkeys(DIMS, statistics),
        stored=dict.fromkeys(DIMS, stored),
        **others,
    )


def expected(frames: Features, row: int, statistics: str) -> np.ndarray:
    own = frames.features[row, frames.mask[row]].double().numpy()
    deviation = np.sqrt(own.var(0) + 1e-6)
    return np.concatenate([own.mean(0), deviation] if statistics == "mean_std" else [own.mean(0)])


@pytest.mark.parametrize("statistics", ["mean", "mean_std"])
def test_numbers_are_mean_and_deviation_of_an_utterances_own_frames(statistics: str) -> None:
    text, audio = sequence(4, [3, 5]), sequence(6, [7, 1])
    found = made(statistics)(text, audio).embedding.numpy()
    for row in (0, 1):
        own = np.concatenate([expected(text, row, statistics), expected(audio, row, statistics)])
        assert np.allclose(found[row], own, atol=1e-5)


@pytest.mark.parametrize("statistics", ["mean", "mean_std", "active"])
def test_active_numbers_are_over_speech_too_where_the_encoder_tells_it(statistics: str) -> None:
    text, audio = sequence(4, [3, 5]), sequence(6, [7, 2])
    weights = torch.tensor([[1.0, 0.0, 0.5, 0.0, 1.0, 0.25, 0.0], [0.0, 1.0, *[float("nan")] * 5]])
    told = Features(torch.cat([audio.features, weights[..., None]], -1), audio.mask)
    fusion = PooledFeatures(
        dims={"text": 4, "audio": 7},
        modalities=["text", "audio"],
        statistics=dict.fromkeys(DIMS, statistics),
        stored=dict.fromkeys(DIMS, "none"),
        activity=["audio"],
    )
    found = fusion(text, told).embedding.numpy()
    assert found.shape[1] == fusion.dim
    plain = "mean_std" if statistics == "active" else statistics
    for row in (0, 1):
        frames, active = (part[row, audio.mask[row]].double().numpy() for part in (audio.features, weights))
        own = [expected(text, row, plain)]
        for weight in (np.ones(len(frames)), active) if statistics == "active" else ():
            mean = np.average(frames, axis=0, weights=weight)
            own += [mean, np.sqrt(np.average((frames - mean) ** 2, axis=0, weights=weight) + FLOOR)]
        if statistics != "active":
            own.append(expected(audio, row, plain))
        assert np.allclose(found[row], np.concatenate(own), atol=1e-5)
    speech = fusion.places({}, ["audio"])
    assert len(speech) == {"mean": 6, "mean_std": 12, "active": 24}[statistics]


@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=5), row=st.integers(0, 4))
def test_a_neighbour_changes_nothing(lengths: list[int], row: int) -> None:
    row %= len(lengths)
    batch = [sequence(width, lengths, seed=width) for width in DIMS.values()]
    alone = [
        Features(each.features[row : row + 1, : lengths[row]], each.mask[row : row + 1, : lengths[row]])
        for each in batch
    ]
    fusion = made()
    assert torch.allclose(fusion(*alone).embedding[0], fusion(*batch).embedding[row], atol=1e-5)


@pytest.mark.parametrize(
    ("stored", "statistics", "same_as"),
    [("mean_std", "mean_std", "mean_std"), ("mean_std", "mean", "mean"), ("mean", "mean_std", "mean")],
)
def test_what_was_pooled_before_it_was_stored_is_read_as_it_is(stored: str, statistics: str, same_as: str) -> None:
    frames = [sequence(width, [3, 5], seed=width) for width in DIMS.values()]
    kept = []
    for each in frames:
        rows = np.stack([expected(each, row, stored) for row in (0, 1)])
        kept.append(Features(torch.from_numpy(rows).float()[:, None], torch.ones(2, 1, dtype=torch.bool)))
    found, own = made(statistics, stored)(*kept).embedding, made(same_as)(*frames).embedding
    assert torch.allclose(found, own, atol=1e-5)


@pytest.mark.parametrize("stored", ["none", "mean_std"])
@pytest.mark.parametrize(("states", "chosen"), [(3, 1), ([2, 3, 6], 3)])
def test_of_hidden_states_side_by_side_those_that_are_chosen_are_read(
    stored: str, states: int | list[int], chosen: int
) -> None:
    """An audio encoder of three states, each two wide, of which the second is read."""
    frames = sequence(6, [3, 5])
    text = sequence(4, [2, 2])
    given = frames
    if stored == "mean_std":
        rows = np.stack([expected(frames, row, "mean_std") for row in (0, 1)])
        given = Features(torch.from_numpy(rows).float()[:, None], torch.ones(2, 1, dtype=torch.bool))
    fusion = PooledFeatures(
        dims={"text": 4, "audio": 6 * FACTORS[stored]}, modalities=["text", "audio"],
        statistics={"text": "mean", "audio": "mean_std"}, stored={"text": "none", "audio": stored},
        states={"text": 1, "audio": states}, layers={"audio": [chosen]},
    )  # fmt: skip
    found = fusion(text, given).embedding.numpy()
    assert fusion.dim == found.shape[1] == 4 + 2 * 2
    for row in (0, 1):
        mean, deviation = expected(frames, row, "mean_std").reshape(2, 3, 2)[:, 1]
        assert np.allclose(found[row], np.concatenate([expected(text, row, "mean"), mean, deviation]), atol=1e-5)


def test_numbers_are_standardised_by_the_state() -> None:
    fusion, frames = made(), [sequence(width, [3, 5]) for width in DIMS.values()]
    before = fusion(*frames).embedding
    fusion.load_state_dict({"mean": torch.full((20,), 2.0), "scale": torch.full((20,), 4.0)})
    assert torch.allclose(fusion(*frames).embedding, (before - 2) / 4)
