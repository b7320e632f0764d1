"""Adapters beside a transformer's weights: where they are, what trains, and that merging them changes nothing."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from fourm_ser.encoders import lora
from fourm_ser.encoders.base import Encoder, Inputs, Unfreeze
from fourm_ser.encoders.layers import TransformerEncoder
from fourm_ser.encoders.lora import Lora
from fourm_ser.errors import InputError
from tests.accelerator.networks import alone, build
from tests.conftest import Compose

Build = Callable[..., TransformerEncoder]
SETTINGS = Lora(r=4, alpha=8.0, dropout=0.0, targets="auto")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 64,
    "pad_token_id": 0,
}


@pytest.fixture(params=["text", "audio"])
def modality(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(modality: str, text_encoder: Build, speech_encoder: Build) -> Build:
    """Builds a small BERT or a small WavLM."""
    return text_encoder if modality == "text" else lambda **arguments: speech_encoder("wavlm", **arguments)


@pytest.fixture
def inputs(make: Build, modality: str, texts: list[str], waveforms: list[np.ndarray]) -> Inputs:
    """A batch for it."""
    frontend = make().frontend
    raws: list[Any] = texts if modality == "text" else waveforms[1:4]
    return frontend.collate([frontend(raw) for raw in raws])


def adapted(encoder: TransformerEncoder, settings: Lora = SETTINGS, moved: bool = True) -> TransformerEncoder:
    """The encoder with adapters, which trained if they are `moved`."""
    encoder.add_adapters(settings, seed=3)
    encoder.unfreeze("lora")
    if moved:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in lora.adapters(encoder):
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return encoder.eval()


def features(encoder: Encoder, inputs: Inputs) -> Tensor:
    found = encoder(inputs)
    return found.features[found.mask]


@pytest.mark.parametrize(
    ("model_type", "names", "fields"),
    [
        ("bert", {"query", "value"}, {}),
        ("distilbert", {"q_lin", "v_lin"}, {}),
        ("t5", {"q", "v"}, {"d_model": 32, "num_layers": 1}),
        ("modernbert", {"Wqkv"}, {}),
        ("deberta-v2", {"query_proj", "value_proj"}, {}),
        ("gpt2", {"c_attn"}, {}),
        ("qwen3", {"q_proj", "v_proj"}, {}),
        ("wav2vec2-bert", {"linear_q", "linear_v"}, {}),
        ("hubert", {"q_proj", "v_proj"}, {}),
    ],
)
def test_queries_and_values_are_found_by_the_names_that_transformers_gives_them(
    model_type: str, names: set[str], fields: dict[str, int]
) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(model_type, **SIZES, **fields))
    found = lora.find_targets(model, "auto", model_type)
    assert {place.rpartition(".")[2] for place in found} == names
    assert len(found) % len(names) == 0


def test_adapters_alone_train_and_nothing_else_is_dropped_out(make: Build, inputs: Inputs) -> None:
    encoder = adapted(make(), SETTINGS._replace(dropout=0.5), moved=False)
    plain = make().eval()
    plain.unfreeze("none")  # what wants a gradient is rounded otherwise
    with torch.no_grad():
        assert torch.equal(features(encoder, inputs), features(plain, inputs))  # they change nothing yet
    encoder.train()
    trains = {name for name, parameter in encoder.stem.named_parameters() if parameter.requires_grad}
    layers = len(encoder.layers)
    assert len(trains) == layers * 2 * 2  # queries and values, two matrices each
    assert all(lora.is_adapter(name) for name in trains)
    awake = {name for name, module in encoder.stem.named_modules() if module.training}
    assert awake
    assert all(".lora_dropout" in name for name in awake)
    torch.autograd.backward(features(encoder, inputs).square().mean())
    for name, parameter in encoder.stem.named_parameters():
        assert (parameter.grad is not None) == (name in trains)
        assert ".lora_B." not in name or parameter.grad.abs().max() > 0  # type: ignore[union-attr]
    encoder.eval()
    assert not any(module.training for module in encoder.modules())


def test_merged_is_unmerged_and_leaves_all_as_it_was(make: Build, inputs: Inputs) -> None:
    encoder = adapted(make())
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    expected = features(encoder, inputs)
    plain = make().eval()
    assert (expected - features(plain, inputs)).abs().max() > 0.05
    with lora.merged(encoder.stem):
        torch.testing.assert_close(features(encoder, inputs), expected, rtol=0, atol=1e-5)
        plain.load_state_dict(encoder.state_dict())
    assert torch.equal(features(encoder, inputs), expected)
    after = encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert plain.fingerprint() == encoder.fingerprint()
    # The same from a file that holds no more than the adapters.
    few = {name: tensor for name, tensor in after.items() if lora.is_adapter(name)}
    again = make()
    again.load_state_dict({**again.state_dict(), **lora.without_adapters(again, few, SETTINGS.scale)})
    assert again.fingerprint() == encoder.fingerprint()


def test_a_layer_that_lies_transposed_is_merged_right() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=4, vocab_size=64, bos_token_id=0, eos_token_id=0)
    model, tokens = AutoModel.from_config(config).eval(), torch.arange(9)[None]
    lora.add_adapters(model, SETTINGS, lora.find_targets(model, ["c_attn", "attn.c_proj"], "gpt2"), "3")
    with torch.no_grad():
        for parameter in lora.adapters(model):
            parameter.add_(0.3 * torch.randn(parameter.shape))
    expected = model(tokens).last_hidden_state
    with lora.merged(model):
        torch.testing.assert_close(model(tokens).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_the_fingerprint_is_the_encoder_s_own_until_adapters_change_it(make: Build) -> None:
    plain = make().fingerprint()
    encoder = adapted(make(), moved=False)
    assert encoder.fingerprint() == encoder.base_fingerprint == plain
    adapted_one = adapted(make())
    assert adapted_one.fingerprint() != plain
    assert adapted_one.base_fingerprint == plain


def test_first_weights_are_drawn_by_the_seed_and_nothing_else_is(make: Build) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    drawn = []
    for seed in (0, 0, 1):
        encoder = make()
        torch.manual_seed(7)
        encoder.add_adapters(SETTINGS, seed)
        assert torch.equal(torch.rand(3), expected)
        drawn.append(torch.cat([parameter.flatten() for parameter in lora.adapters(encoder)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_checkpointing_layers_computes_them_again_with_the_same_gradients(make: Build, inputs: Inputs) -> None:
    slopes, calls = [], []
    for checkpointing in (False, True):
        encoder = adapted(make(gradient_checkpointing=checkpointing), SETTINGS._replace(dropout=0.3)).train()
        calls.append(0)

        def count(*_: Any) -> None:
            calls[-1] += 1

        next(next(encoder.layers.children()).children()).register_forward_pre_hook(count)
        torch.manual_seed(5)
        torch.autograd.backward(features(encoder, inputs).square().mean())
        slopes.append(torch.cat([parameter.grad.flatten() for parameter in lora.adapters(encoder)]))  # type: ignore
    assert calls == [1, 2]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("what", ["all", 1])
def test_what_trains_after_adapters_goes_on_from_what_they_made(make: Build, inputs: Inputs, what: Unfreeze) -> None:
    encoder = adapted(make())
    expected = features(encoder, inputs)
    encoder.unfreeze(what)
    plain = make()
    plain.unfreeze(what)
    trains = {name.replace(".base_layer", "") for name, value in encoder.named_parameters() if value.requires_grad}
    assert trains == {name for name, value in plain.named_parameters() if value.requires_grad}
    torch.testing.assert_close(features(encoder, inputs), expected, rtol=0, atol=1e-5)
    assert not any(tensor.any() for name, tensor in encoder.state_dict().items() if ".lora_B." in name)


def test_no_layer_behind_the_chosen_one_has_adapters(make: Build) -> None:
    encoder = adapted(make(layer=1), SETTINGS._replace(targets=["q_proj", "query"]))
    assert len(lora.adapters(encoder)) == 2


def test_targets_that_are_not_there_name_those_that_are(make: Build, modality: str) -> None:
    has = "query, key, value, dense" if modality == "text" else "projection, k_proj, v_proj, q_proj"
    with pytest.raises(InputError, match=rf"^lora.targets=Wqkv: no linear layer .* is called Wqkv\. .*{has}.*\.$"):
        make().add_adapters(SETTINGS._replace(targets=["Wqkv"]), 0)
    for wrong in ("q_proj", [], [1], None):
        with pytest.raises(InputError, match=r"lora\.targets=.*expected auto, or a list"):
            SETTINGS._replace(targets=wrong).check()  # type: ignore[arg-type]


@pytest.mark.slow
def test_no_other_encoder_has_adapters(tmp_path: Path, composed: Compose) -> None:
    for name in ("audio/mel_cnn", "audio/vggish", "audio/prosody_cnn", "audio/descriptors"):
        _, network = build(composed, tmp_path, alone(name))
        encoder = network.by_modality["audio"]
        expected = rf"^stage: unfreeze\.audio=lora: {encoder.name} has no adapters, which are for transformers\."
        with pytest.raises(InputError, match=expected):
            encoder.add_adapters(SETTINGS, 0)
        with pytest.raises(InputError, match=expected):
            encoder.unfreeze("lora")


def test_where_peft_is_missing_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        InputError, match=r'^stage\.a\.unfreeze\.text=lora: peft is not installed .*pip install "fourm_ser\[lora\]"$'
    ):
        lora.require_peft("stage.a.unfreeze.text")


def test_layers_of_a_type_of_their_own_are_no_targets() -> None:
    model = nn.ModuleDict({"query": nn.Embedding(3, 4), "key": nn.Linear(4, 4)})
    with pytest.raises(InputError, match=r"out of key\.$"):
        lora.find_targets(model, "auto", "a model")
