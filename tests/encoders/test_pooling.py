"""Features of whole utterances: mean and deviation over each utterance's own frames, for any encoder."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fourm_ser.encoders.base import Encoder, Features, length_mask
from fourm_ser.encoders.pooling import EPSILON, FACTORS, pooled
from fourm_ser.errors import InputError

LENGTHS = (1, 4, 90)
WAYS = ["mean", "mean_std"]
Build = Callable[..., Encoder]


def by_numpy(frames: np.ndarray, how: str) -> np.ndarray:
    """The statistics of one utterance's frames [time, width]."""
    parts = [frames.mean(0), np.sqrt(frames.var(0) + EPSILON)]
    return np.concatenate(parts[: FACTORS[how]])


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("padding", [0.0, 1e6, float("nan")])
def test_only_an_utterance_s_own_frames_count(how: str, padding: float) -> None:
    torch.manual_seed(0)
    mask = length_mask(torch.tensor(LENGTHS), max(LENGTHS))
    features = (3 + torch.randn(3, max(LENGTHS), 5)).masked_fill(~mask[..., None], padding).requires_grad_()
    found = pooled(features, mask, how)
    assert found.shape == (3, 1, 5 * FACTORS[how])
    for row, count in enumerate(LENGTHS):
        expected = by_numpy(features[row, :count].detach().double().numpy(), how)
        np.testing.assert_allclose(found[row, 0].detach().numpy(), expected, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), features)  # one frame has no deviation, and its root's slope an end
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_computed_in_fp32_whatever_is_around_it(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    features, mask = (100 + torch.randn(2, 700, 4)).to(dtype), torch.ones(2, 700, dtype=torch.bool)
    with torch.autocast("cpu", dtype):
        found = pooled(features, mask, "mean_std")
    assert found.dtype == torch.float32
    for row in range(2):
        np.testing.assert_allclose(found[row, 0], by_numpy(features[row].double().numpy(), "mean_std"), atol=1e-4)


@pytest.fixture(scope="module")
def encoders(text_encoder: Build, speech_encoder: Build, mel_lstm: Build) -> dict[str, Callable[[], Encoder]]:
    return {
        "bert": text_encoder,
        "wav2vec2": lambda: speech_encoder("wav2vec2"),
        "hubert, weighted": lambda: speech_encoder("hubert", "layer", layer="weighted"),
        "lstm_mel": mel_lstm,
    }


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", ["bert", "wav2vec2", "hubert, weighted", "lstm_mel"])
def test_an_utterance_is_one_frame_the_same_alone_and_padded(
    name: str,
    how: str,
    encoders: dict[str, Callable[[], Encoder]],
    texts: list[str],
    waveforms: list[np.ndarray],
) -> None:
    encoder = encoders[name]().eval()
    before = encoder.dim, encoder.stem_dim
    encoder.pool(how)
    assert (encoder.dim, encoder.stem_dim) == tuple(FACTORS[how] * width for width in before)
    raws: list[Any] = texts if encoder.modality == "text" else waveforms
    items = [encoder.frontend(raw) for raw in raws]
    with torch.no_grad():
        batch, stored = encoder(encoder.collate(items)), encoder.stem_features(encoder.collate(items))
        frames = encoder.stem(encoder.collate(items))
        assert batch.features.shape == (len(items), 1, encoder.dim)
        assert stored.features.shape == (len(items), 1, encoder.stem_dim)
        assert batch.mask.shape == (len(items), 1)
        assert batch.mask.all()
        for row, item in enumerate(items):
            alone = encoder(encoder.collate([item]))
            torch.testing.assert_close(batch.features[row], alone.features[0], rtol=0, atol=1e-4)
            own = frames.features[row, frames.mask[row]].double().numpy()
            np.testing.assert_allclose(stored.features[row, 0].numpy(), by_numpy(own, how), atol=1e-4)
        again = encoder(stored)  # as what comes from the store
    torch.testing.assert_close(again.features, batch.features, rtol=0, atol=1e-6)


def test_the_learned_sum_is_of_the_states_means_and_of_their_deviations(
    speech_encoder: Build, waveforms: list[np.ndarray]
) -> None:
    encoder = speech_encoder("wavlm", layer="weighted").eval()
    top: Any = encoder.top
    with torch.no_grad():
        top.weights.copy_(torch.tensor([0.3, -1.0, 0.7]))
    shares = torch.tensor([0.3, -1.0, 0.7]).softmax(0)
    inputs = encoder.collate([encoder.frontend(waveforms[-1])])
    with torch.no_grad():
        plain = encoder(inputs).features[0]
        states = encoder.stem(inputs).features[0].view(len(plain), 3, -1)
        encoder.pool("mean_std")
        mean, deviation = encoder(inputs).features[0, 0].chunk(2)
    torch.testing.assert_close(mean, plain.mean(0), rtol=0, atol=1e-5)  # the mean of the sum is the sum of the means
    expected = torch.einsum("lw,l->w", (states.var(0, unbiased=False) + EPSILON).sqrt(), shares)
    torch.testing.assert_close(deviation, expected, rtol=0, atol=1e-5)


def test_a_stem_trains_through_it(text_encoder: Build, texts: list[str]) -> None:
    encoder = text_encoder()
    encoder.pool("mean_std")
    encoder.unfreeze("all")
    encoder(encoder.collate([encoder.frontend(text) for text in texts])).features.square().sum().backward()
    gradients = [parameter.grad for parameter in encoder.stem.parameters() if parameter.grad is not None]
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_each_way_has_a_store_of_its_own(mel_lstm: Build) -> None:
    found = {}
    for how in FACTORS:
        encoder = mel_lstm()
        before = encoder.fingerprint()
        encoder.pool(how)
        found[how] = encoder.fingerprint()
        assert (found[how] == before) is (how == "none")
    assert len(set(found.values())) == len(FACTORS)


def test_an_unknown_way_is_refused(mel_lstm: Build) -> None:
    with pytest.raises(InputError, match=r"encode\.pool=max: expected one of none, mean, mean_std"):
        mel_lstm().pool("max")


def test_features_over_time_stay_what_they_were(mel_lstm: Build, waveforms: list[np.ndarray]) -> None:
    encoder = mel_lstm().eval()
    inputs = encoder.collate([encoder.frontend(wave) for wave in waveforms])
    expected: Features = encoder.top(encoder.stem(inputs))
    encoder.pool("none")
    assert torch.equal(encoder(inputs).features, expected.features)
