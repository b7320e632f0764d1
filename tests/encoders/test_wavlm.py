"""WavLM's attention beside Hugging Face's own: values, gradients, dropout, half precision."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from fourm_ser.encoders.speech import SpeechEncoder
from fourm_ser.encoders.wavlm import RelativeAttention

HEADS, WIDTH = 4, 32

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # of the original's


def both(first: bool = True) -> tuple[Any, RelativeAttention]:
    """The original, of a first or a later layer, and a module with a copy of its parameters."""
    torch.manual_seed(0)
    original = WavLMAttention(
        WIDTH, HEADS, dropout=0.2, num_buckets=32, max_distance=80, has_relative_position_bias=first
    )
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.3)
    return original, RelativeAttention(copy.deepcopy(original))


def draw(time: int, masked: bool) -> tuple[Tensor, Tensor | None]:
    """Three rows' hidden states and their mask; the shortest has one frame."""
    torch.manual_seed(1)
    own = torch.arange(time) < torch.tensor([time, 1, (time + 1) // 2])[:, None]
    return torch.randn(3, time, WIDTH), own if masked else None


def check_gradients(found: nn.Module, expected: nn.Module) -> None:
    """Gradients to a 1e-5th of the largest: by the bias of keys, to which no score is sensitive, they are noise."""
    slopes = {name: parameter.grad for name, parameter in expected.named_parameters() if parameter.grad is not None}
    assert {name for name, parameter in found.named_parameters() if parameter.grad is not None} == set(slopes)
    largest = max(float(slope.abs().max()) for slope in slopes.values())
    for name, parameter in found.named_parameters():
        if name in slopes:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, slopes[name], rtol=1e-5, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("time", [1, 2, 30, 130])  # distances of one bucket each, of shared ones, of the last
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_it_is_hugging_faces_attention(time: int, masked: bool, training: bool) -> None:
    hidden, mask = draw(time, masked)
    position_bias: Tensor | None = None
    bias: Tensor | None = None
    for first in (True, False):
        original, ours = both(first)
        original.train(training)
        ours.train(training)
        torch.manual_seed(2)
        expected, _, position_bias = original(hidden, attention_mask=mask, position_bias=position_bias)
        torch.manual_seed(2)
        found, weights, bias = ours(hidden, attention_mask=mask, position_bias=bias, index=int(not first))
        assert weights is None
        assert bias is not None
        assert bias.shape == (HEADS, time, time)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.manual_seed(2)
        with torch.no_grad():
            without, _, _ = ours(hidden, attention_mask=mask, position_bias=None if first else bias)
        torch.testing.assert_close(without, expected, rtol=1e-5, atol=1e-5)
        target = torch.randn_like(expected)
        (expected * target).sum().backward(retain_graph=first)
        (found * target).sum().backward(retain_graph=first)
        check_gradients(ours, original)


def test_a_program_traced_at_one_length_has_the_bias_of_every_other() -> None:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = both()[1]

        def forward(self, hidden: Tensor) -> Tensor:
            return self.attention.bias(hidden.shape[1])

    bias = Bias().requires_grad_(False)
    program = torch.export.export(bias, (torch.zeros(1, 7),), dynamic_shapes=({1: torch.export.Dim.AUTO},))
    assert "unfold" not in str(program.graph)  # which ONNX has not: its windows would keep their number
    for time in (2, 30, 130):
        torch.testing.assert_close(program.module()(torch.zeros(1, time)), bias(torch.zeros(1, time)), rtol=0, atol=0)


def test_the_bias_gets_its_gradient_through_all_layers() -> None:
    hidden, mask = draw(40, True)
    firsts = both()
    for first, later in zip(firsts, both(first=False), strict=True):
        first.eval()
        later.eval()
        between, _, bias = first(hidden, attention_mask=mask)
        last, _, _ = later(between, attention_mask=mask, position_bias=bias)
        last.square().sum().backward()
    check_gradients(firsts[1], firsts[0])


@pytest.mark.parametrize("first", [True, False])
def test_parameters_keep_their_names_and_order(first: bool) -> None:
    original, ours = both(first)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in original.named_parameters()]
    assert list(ours.state_dict()) == list(original.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradients", [False, True])
def test_half_precision_is_near(dtype: torch.dtype, gradients: bool) -> None:
    hidden, mask = draw(60, True)
    _, ours = both()
    ours.eval()
    expected, _, exact = ours(hidden, attention_mask=mask)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype):
        found, _, bias = ours(hidden, attention_mask=mask)
    assert found.dtype == bias.dtype == dtype
    torch.testing.assert_close(bias.float(), exact, rtol=0.01, atol=0.01)
    assert nn.functional.cosine_similarity(found.float(), expected, dim=-1).min() > 0.999
    if gradients:
        found.float().square().sum().backward()
        assert all(
            torch.isfinite(parameter.grad).all() for parameter in ours.parameters() if parameter.grad is not None
        )


def test_its_layers_are_called_so_that_others_can_stand_in_for_them() -> None:
    hidden, _ = draw(10, False)
    _, ours = both()
    called = []
    layers = {name: layer for name, layer in ours.named_children() if isinstance(layer, nn.Linear)}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda layer, given, done, name=name: called.append(name))
    ours(hidden)
    assert sorted(called) == sorted(layers) == ["gru_rel_pos_linear", "k_proj", "out_proj", "q_proj", "v_proj"]


def test_keys_that_are_hidden_are_not_seen() -> None:
    hidden, mask = draw(30, True)
    assert mask is not None
    _, ours = both()
    ours.eval()
    expected, _, _ = ours(hidden, attention_mask=mask)
    other, _, _ = ours(torch.where(mask[..., None], hidden, 1e4), attention_mask=mask)
    torch.testing.assert_close(other[mask], expected[mask], rtol=0, atol=1e-6)


def test_an_encoder_has_it_in_every_layer_and_not_in_another_model(
    speech_encoder: Callable[..., SpeechEncoder],
) -> None:
    encoder = speech_encoder("wavlm")
    attentions = [layer.attention for layer in encoder.stem.model.encoder.layers]
    assert all(isinstance(attention, RelativeAttention) for attention in attentions)
    assert [hasattr(attention, "rel_attn_embed") for attention in attentions] == [True, False]
    assert not any(isinstance(module, RelativeAttention) for module in speech_encoder("hubert").modules())


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_is_that_of_the_original_model(
    speech_encoder: Callable[..., SpeechEncoder], waveforms: list[np.ndarray], norm: str, checkpointing: bool
) -> None:
    encoder = speech_encoder("wavlm", norm, gradient_checkpointing=checkpointing, spec_augment=0.3, layerdrop=0.5)
    encoder.unfreeze("all")
    encoder.train()
    model = AutoModel.from_config(encoder.stem.model.config)
    model.load_state_dict(encoder.stem.model.state_dict())
    model.feature_extractor._freeze_parameters()
    inputs = encoder.collate([encoder.frontend(waveforms[3])])
    torch.manual_seed(3)
    np.random.seed(3)
    expected = model.train()(inputs["samples"]).last_hidden_state
    expected.square().sum().backward()
    torch.manual_seed(3)
    np.random.seed(3)
    found = encoder(inputs).features
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    slopes = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = max(float(slope.abs().max()) for slope in slopes.values() if slope is not None)
    for name, parameter in encoder.stem.model.named_parameters():
        if slopes[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, slopes[name], rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("layer", [0, 1, 2, "weighted"])
def test_hidden_states_are_those_of_the_original_model(
    speech_encoder: Callable[..., SpeechEncoder], waveforms: list[np.ndarray], layer: str | int
) -> None:
    encoder = speech_encoder("wavlm", layer=layer).eval()
    whole = speech_encoder("wavlm").stem.model  # of all layers, and of the same seed
    model = AutoModel.from_config(whole.config).eval()
    model.load_state_dict(whole.state_dict())
    inputs = encoder.collate([encoder.frontend(waveforms[2])])
    with torch.no_grad():
        states = model(inputs["samples"], output_hidden_states=True).hidden_states
        found = encoder.stem(inputs).features
    expected = torch.cat(list(states), dim=-1) if layer == "weighted" else states[int(layer)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
