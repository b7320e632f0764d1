"""Which hidden states are the features: those of Hugging Face's own models, however a batch is padded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from fourm_ser.encoders.base import Encoder, Features, Inputs
from fourm_ser.encoders.layers import WeightedSum
from fourm_ser.errors import InputError

LAYERS = 3
SPEECH = [f"{model_type}-{norm}" for model_type in ("wav2vec2", "hubert", "wavlm") for norm in ("group", "layer")]
TEXT = ["bert", "roberta", "distilbert"]
QUIET: dict[str, dict[str, Any]] = {
    "audio": {
        "spec_augment": 0.0,
        "layerdrop": 0.0,
        "train_convolutions": True,
        "architecture": dict.fromkeys(
            ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0
        ),
    },
    "text": {
        "architecture": dict.fromkeys(
            ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"), 0.0
        )
    },
}


class States(NamedTuple):
    """What Hugging Face's own model makes of one utterance alone, each (1, time, dim)."""

    last: Tensor
    hidden: tuple[Tensor, ...]


class Family(NamedTuple):
    """One kind of transformer: its encoder with three layers, and utterances of very different lengths."""

    build: Callable[..., Any]
    raws: list[Any]
    modality: str

    def encoder(self, layer: Any = "last", *, quiet: bool = False, **arguments: Any) -> Any:
        """The encoder; `quiet` leaves nothing random in training."""
        own = QUIET[self.modality] if quiet else {}
        architecture = {"num_hidden_layers": LAYERS, **own.get("architecture", {})}
        return self.build(layer=layer, **{**own, "architecture": architecture, **arguments})

    def batch(self, encoder: Encoder) -> Inputs:
        return encoder.collate([encoder.frontend(raw) for raw in self.raws])

    def small_batch(self, encoder: Encoder) -> Inputs:
        """Enough for a gradient."""
        return encoder.collate([encoder.frontend(raw) for raw in self.raws[1:3]])


@pytest.fixture(scope="module", params=[*SPEECH, *TEXT])
def family(
    request: pytest.FixtureRequest,
    speech_encoder: Callable[..., Encoder],
    text_encoder: Callable[..., Encoder],
    waveforms: list[np.ndarray],
    texts: list[str],
) -> Family:
    if request.param in TEXT:

        def build(architecture: dict[str, Any], **arguments: Any) -> Encoder:
            own = {"hidden_dim": 64} if request.param == "distilbert" else {}
            return text_encoder(request.param, {**own, **architecture}, **arguments)

        return Family(build, texts, "text")
    model_type, norm = request.param.split("-")

    def build_speech(**arguments: Any) -> Encoder:
        return speech_encoder(model_type, norm, **arguments)

    return Family(build_speech, waveforms, "audio")


@pytest.fixture(scope="module")
def expected(family: Family) -> list[States]:
    """Each utterance alone through Hugging Face's own model, weights alike."""
    encoder = family.encoder()
    pooled = {"add_pooling_layer": False} if encoder.stem.model.config.model_type in ("bert", "roberta") else {}
    model = AutoModel.from_config(encoder.stem.model.config, **pooled).eval()
    model.load_state_dict(encoder.stem.model.state_dict())
    states = []
    for raw in family.raws:
        tensor, *_ = encoder.frontend(raw).values()
        with torch.no_grad():
            output = model(tensor[None], output_hidden_states=True)
        states.append(States(output.last_hidden_state, output.hidden_states))
        assert len(output.hidden_states) == LAYERS + 1
    return states


def stack(encoder: Any) -> nn.ModuleList:
    """The transformer's layers as they are built."""
    lists = [module for module in encoder.stem.model.modules() if isinstance(module, nn.ModuleList)]
    return lists[-1]


def compare(found: Features, expected: list[Tensor]) -> None:
    """Each row's own frames against what the utterance gives alone: (1, time, dim)."""
    assert found.mask.sum(1).tolist() == [alone.shape[1] for alone in expected]
    for row, alone in enumerate(expected):
        torch.testing.assert_close(found.features[row, : alone.shape[1]], alone[0], rtol=0, atol=1e-4)


@pytest.mark.slow(but=["wavlm-layer", "distilbert"])
def test_a_layer_s_features_are_the_model_s_hidden_states(family: Family, expected: list[States]) -> None:
    layers: list[Any] = ["last", *range(LAYERS + 1), [0, 2], [1, LAYERS]]
    for layer in layers:
        encoder = family.encoder(layer).eval()
        with torch.no_grad():
            found = encoder(family.batch(encoder))
        if isinstance(layer, list):
            chosen = [torch.cat([states.hidden[number] for number in layer], -1) for states in expected]
            assert list(encoder.states) == layer
        else:
            chosen = [states.last if layer == "last" else states.hidden[layer] for states in expected]
            # Far more than the tolerance lies between one layer and the next.
            for other in set(range(LAYERS)) - {layer}:
                assert (expected[-1].hidden[other] - chosen[-1]).abs().max() > 1e-2, (layer, other)
        compare(found, chosen)
        assert list(encoder.top.parameters()) == []
        assert encoder.stem_dim == encoder.dim == found.features.shape[-1]


def test_the_weighted_sum_is_over_all_hidden_states(family: Family, expected: list[States]) -> None:
    encoder = family.encoder("weighted").eval()
    (weights,) = encoder.top.parameters()
    with torch.no_grad():
        weights.copy_(torch.tensor([0.3, -1.0, 2.0, 0.5]))
        stem = encoder.stem(family.batch(encoder))
        top = encoder.top(stem)
        shares = torch.exp(weights) / torch.exp(weights).sum()
    assert (encoder.stem_dim, encoder.dim) == (4 * 32, 32)
    compare(stem, [torch.cat(states.hidden, dim=-1) for states in expected])
    sums = []
    for states in expected:
        total = torch.zeros_like(states.last)
        for share, state in zip(shares.tolist(), states.hidden, strict=True):
            total += share * state
        sums.append(total)
    compare(top, sums)
    with torch.no_grad():  # as above: with gradients, other kernels round otherwise
        assert torch.equal(encoder(family.batch(encoder)).features, top.features)


def test_the_weights_train_while_the_stem_is_frozen(family: Family) -> None:
    encoder = family.encoder("weighted")
    (weights,) = encoder.top.parameters()
    assert weights.shape == (LAYERS + 1,)
    assert (weights.softmax(0) == 1 / (LAYERS + 1)).all()  # all layers alike at the start
    encoder.unfreeze("none")
    encoder.train()
    assert encoder.frozen
    assert weights.requires_grad
    with torch.no_grad():
        stored = encoder.stem_features(family.small_batch(encoder))
    for source in (stored, family.small_batch(encoder)):
        weights.grad = None
        features, mask = encoder(source)
        features[mask].square().sum().backward()
        assert weights.grad is not None
        assert weights.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in encoder.stem.parameters())


@pytest.mark.slow(but=["wavlm-layer", "distilbert"])
def test_a_layer_that_is_not_there_is_refused(family: Family) -> None:
    for layer in ("first", "", "1", -1, LAYERS + 1, 1.0, True, None):
        message = rf"encoder\.{family.modality}\.layer={layer}: expected last, weighted, a layer from 0 to {LAYERS}, or"
        with pytest.raises(InputError, match=message):
            family.encoder(layer)
    for several in ([], [2, 1], [1, 1], [0, LAYERS + 1], [-1, 0], ["last"], [True], [[0]], [0, 1.0]):
        with pytest.raises(InputError, match=r"layer=\[.*\]: expected .* or a list of some in their order\."):
            family.encoder(several)


@pytest.mark.slow(but=["wavlm-layer", "distilbert"])
def test_a_layer_cuts_the_stack_behind_it(family: Family) -> None:
    whole = family.encoder()
    assert len(whole.blocks()) == LAYERS + 1
    for layer in range(LAYERS + 1):
        encoder = family.encoder(layer)
        assert len(encoder.blocks()) == layer + 1
        # Of layers that are not needed, one is kept at most.
        assert max(1, layer) <= len(stack(encoder)) <= min(LAYERS, layer + 1)
        assert set(encoder.state_dict()) <= set(whole.state_dict())
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, whole.state_dict()[name]), (layer, name)
        if layer:
            assert family.encoder([layer - 1, layer]).state_dict().keys() == encoder.state_dict().keys()


@pytest.mark.slow(but=["wavlm-layer", "distilbert"])
def test_what_trains_gets_a_gradient_and_a_spare_layer_never_trains(family: Family) -> None:
    layers: list[Any] = ["weighted", 0, 1, LAYERS, [0, 1]]
    for layer in layers:
        encoder = family.encoder(layer, quiet=True)
        used = LAYERS if encoder.used is None else encoder.used
        spare = [parameter for module in stack(encoder)[used:] for parameter in module.parameters()]
        for what in ("all", 1, used + 1):
            encoder.unfreeze(what)
            assert not any(parameter.requires_grad for parameter in spare), (layer, what)
            assert not encoder.frozen
            encoder.zero_grad()
            encoder.train()
            features, mask = encoder(family.small_batch(encoder))
            features[mask].square().sum().backward()
            without = {name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None}
            assert without <= {"stem.model.masked_spec_embed"}, (layer, what)  # of SpecAugment, which is off here


@pytest.mark.slow(but=["wavlm-layer", "distilbert"])
@pytest.mark.parametrize("layer", ["last", "weighted"])
def test_gradient_checkpointing_gives_the_same_gradients(family: Family, layer: str) -> None:
    gradients: list[dict[str, Tensor]] = []
    calls = []
    for checkpointing in (False, True):
        encoder = family.encoder(layer, quiet=True, gradient_checkpointing=checkpointing)
        calls.append(0)
        first = next(module for module in stack(encoder)[0].modules() if isinstance(module, nn.LayerNorm))

        def count(*arguments: Any) -> None:
            calls[-1] += 1

        first.register_forward_pre_hook(count)
        encoder.unfreeze("all")
        encoder.train()
        features, mask = encoder(family.small_batch(encoder))
        weight = torch.linspace(-1, 1, features.shape[-1])
        (features[mask] * weight).tanh().mean().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert calls == [1, 2]
    assert set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-5)
    assert max(float(gradient.abs().max()) for gradient in gradients[0].values()) > 1e-3


@pytest.mark.parametrize(("model_type", "layer"), [("wav2vec2", "weighted"), ("hubert", 1), ("wavlm", LAYERS)])
def test_layers_that_are_dropped_in_training_do_not_shift_the_others(
    speech_encoder: Callable[..., Any], waveforms: list[np.ndarray], model_type: str, layer: str | int
) -> None:
    encoder = speech_encoder(model_type, layer=layer, layerdrop=0.9, architecture={"num_hidden_layers": LAYERS})
    encoder.unfreeze("all")
    encoder.train()
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms[2:4]])
    for _ in range(3):
        features, mask = encoder(inputs)
        assert features.shape == (*mask.shape, 32)


@pytest.mark.slow(but=["wavlm-layer", "distilbert"])
def test_the_fingerprint_tells_layers_apart(family: Family) -> None:
    layers: list[Any] = ["last", "weighted", *range(LAYERS + 1), [0, 1], [1, 2]]
    fingerprints = [family.encoder(layer).fingerprint() for layer in layers]
    assert len(set(fingerprints)) == len(layers)
    for layer, fingerprint in zip(layers[:3], fingerprints, strict=False):
        assert family.encoder(layer, gradient_checkpointing=True).fingerprint() == fingerprint
    trained = family.encoder("weighted")
    with torch.no_grad():
        next(trained.top.parameters()).add_(torch.tensor([0.0, 0.0, 1.0, 2.0]))
    assert trained.fingerprint() == fingerprints[1]  # the top is no part of what is stored


def test_weighted_features_may_be_stored_in_half_precision() -> None:
    choice = WeightedSum(3)
    states = torch.randn(2, 5, 12, dtype=torch.float64)
    result = choice(Features(states, torch.ones(2, 5, dtype=torch.bool))).features
    assert result.dtype == states.dtype
    torch.testing.assert_close(result, states.view(2, 5, 3, 4).mean(2))
