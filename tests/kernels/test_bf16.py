"""Frozen stems in bf16: near the exact features, and afterwards what they were."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fourm_ser.encoders.speech import SpeechEncoder
from fourm_ser.kernels.bf16 import LAYOUTS, LaidOutConvolution, LaidOutLinear, in_half_precision, runs
from tests.missing_kernels import refuse_kernels

CPU = torch.device("cpu")
needs_layouts = pytest.mark.skipif(not all(map(runs, LAYOUTS)), reason="no such kernels on this processor")


@pytest.mark.slow(but=["own kernels-wav2vec2-conformer", "own kernels-sew", "refused kernels-wavlm"])
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm", "data2vec-audio", "wav2vec2-conformer", "sew"])
def test_features_are_near_the_exact_ones_and_the_stem_is_restored(
    speech_encoder: Callable[..., SpeechEncoder], waveforms: list[np.ndarray], model_type: str
) -> None:
    encoder = speech_encoder(model_type).eval()
    encoder.unfreeze("none")
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    fingerprint, modules = encoder.fingerprint(), list(encoder.modules())
    with torch.no_grad():
        exact = encoder.stem(inputs)
        with in_half_precision(encoder, CPU, torch.bfloat16):
            rough = encoder.stem(inputs)
        again = encoder.stem(inputs)
    assert rough.features.dtype == torch.bfloat16
    assert torch.equal(rough.mask, exact.mask)
    cosine = nn.functional.cosine_similarity(rough.features.float(), exact.features, dim=-1)[exact.mask]
    assert cosine.mean() > 0.9995
    assert cosine.min() > 0.99  # frames of a model this small are of few numbers
    assert torch.equal(again.features, exact.features)
    assert encoder.fingerprint() == fingerprint
    assert all(one is other for one, other in zip(encoder.modules(), modules, strict=True))


def test_kernels_that_raise_or_compute_something_else_are_not_used(
    monkeypatch: pytest.MonkeyPatch, speech_encoder: Callable[..., SpeechEncoder]
) -> None:
    def laid_out(encoder: SpeechEncoder) -> int:
        with in_half_precision(encoder, CPU, torch.bfloat16):
            return sum(isinstance(module, LAYOUTS) for module in encoder.modules())

    encoder = speech_encoder().eval()
    encoder.unfreeze("none")
    if all(map(runs, LAYOUTS)):
        assert laid_out(encoder) > 10
        own = torch.ops.mkldnn._linear_pointwise
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *given: own(*given) + 1)
        assert [runs(kind) for kind in LAYOUTS] == [False, True]
    refuse_kernels(monkeypatch)
    assert not any(map(runs, LAYOUTS))
    assert laid_out(encoder) == 0


def test_kernels_that_compute_what_the_layers_do_are_used(
    monkeypatch: pytest.MonkeyPatch, speech_encoder: Callable[..., SpeechEncoder], waveforms: list[np.ndarray]
) -> None:
    """By kernels made of plain operators, whatever this processor has."""

    def linear(features: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> Tensor:
        return nn.functional.linear(features, weight, bias)

    def convolve(image: Tensor, weight: Tensor, bias: Tensor, *others: Any) -> Tensor:
        padding, stride, dilation, groups, *_ = others
        return nn.functional.conv2d(image, weight, bias, stride, padding, dilation, groups)

    monkeypatch.setattr(torch.Tensor, "to_mkldnn", lambda self: self)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: weight)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", linear)
    monkeypatch.setattr(torch._C._nn, "mkldnn_reorder_conv2d_weight", lambda weight, *_: weight)
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", convolve)
    assert all(map(runs, LAYOUTS))
    encoder = speech_encoder(architecture={"conv_dim": [16] * 7}).eval()  # none of them narrow
    encoder.unfreeze("none")
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    with torch.no_grad():
        exact = encoder.stem(inputs)
        with in_half_precision(encoder, CPU, torch.bfloat16):
            kinds = {type(module) for module in encoder.modules()}
            rough = encoder.stem(inputs)
    assert set(LAYOUTS) <= kinds
    cosine = nn.functional.cosine_similarity(rough.features.float(), exact.features, dim=-1)[exact.mask]
    assert cosine.min() > 0.99


@pytest.mark.usefixtures("kernels")
def test_a_pass_that_fails_restores_the_stem(speech_encoder: Callable[..., SpeechEncoder]) -> None:
    encoder = speech_encoder()
    before = encoder.fingerprint()
    with pytest.raises(KeyError), in_half_precision(encoder, CPU, torch.bfloat16):
        raise KeyError("a batch")
    assert encoder.fingerprint() == before
    assert not any(isinstance(module, LAYOUTS) for module in encoder.modules())


@needs_layouts
@pytest.mark.parametrize("shape", [(3, 7, 24), (1, 24)])
def test_a_laid_out_linear_layer_is_the_layer(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, features = nn.Linear(24, 40).bfloat16(), torch.randn(shape)
    with torch.no_grad():
        expected = layer.double()(features.bfloat16().double())
        found = LaidOutLinear(layer.bfloat16())(features)
    assert found.dtype == torch.bfloat16
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.01)


@needs_layouts
@pytest.mark.parametrize(("padding", "stride", "groups", "bias"), [(0, 2, 1, False), (2, 3, 2, True)])
def test_a_laid_out_convolution_is_the_layer(padding: int, stride: int, groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(16, 32, 3, stride, padding, groups=groups, bias=bias).bfloat16()
    features = torch.randn(2, 16, 50)
    with torch.no_grad():
        expected = layer.double()(features.bfloat16().double())
        found = LaidOutConvolution(layer.bfloat16())(features)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.02)
