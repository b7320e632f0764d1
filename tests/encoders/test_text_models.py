"""Models of text of many types: features, padding, what trains, and which types are refused."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedModel

from fourm_ser.encoders.text import TextEncoder
from fourm_ser.errors import InputError
from fourm_ser.kernels.bf16 import in_half_precision

LAYERS = 3
WIDE = {"initializer_range": 0.2}  # layers change their input by much more than the tolerance
DECODER = {**WIDE, "num_key_value_heads": 2, "head_dim": 8}
SIZES = {"layers": 1, "attention_heads": 4}
TYPES: dict[str, dict[str, Any]] = {
    "albert": {**WIDE, "embedding_size": 16},
    "bart": {"encoder_layers": LAYERS, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_layers": 1},
    "bloom": WIDE,
    "camembert": WIDE,
    "clip_text_model": WIDE,
    "deberta": {**WIDE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        **WIDE,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "conv_kernel_size": 3,
    },
    "electra": {**WIDE, "embedding_size": 16},
    "gemma": DECODER,
    "gemma2": {**DECODER, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": {**DECODER, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gpt2": WIDE,
    "gpt_neox": WIDE,
    "llama": DECODER,
    "mistral": {**DECODER, "sliding_window": 4},
    "modernbert": {**WIDE, "global_attn_every_n_layers": 2, "local_attention": 4},
    "mpnet": WIDE,
    "mt5": {"d_kv": 8, "d_ff": 64, "num_decoder_layers": 1},
    "nomic_bert": WIDE,
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64, "init_std": 0.2},
    "qwen2": DECODER,
    "qwen3": DECODER,
    "squeezebert": {**WIDE, "embedding_size": 32},
    "t5": {"d_kv": 8, "d_ff": 64, "num_decoder_layers": 1},
    "umt5": {"d_kv": 8, "d_ff": 64, "num_decoder_layers": 1},
    "xlm": WIDE,
    "xlm-roberta": WIDE,
}
every = pytest.mark.parametrize("kind", TYPES)
Build = Callable[..., TextEncoder]


class States(NamedTuple):
    """What Transformers' own model makes of one utterance alone, each (1, tokens, width)."""

    last: Tensor
    hidden: tuple[Tensor, ...]


@pytest.fixture(scope="module")
def build(text_encoder: Build) -> Build:
    """Builds a small encoder of one of the types."""

    def small(kind: str, **arguments: Any) -> TextEncoder:
        return text_encoder(kind, {"num_hidden_layers": LAYERS, **TYPES[kind]}, **arguments)

    return small


def own_model(encoder: TextEncoder) -> PreTrainedModel:
    """Transformers' own model of an encoder's config and seed, with its plain attention."""
    config = AutoConfig.for_model(**encoder.stem.model.config.to_dict())
    kind = AutoModelForTextEncoding if config.model_type in ("t5", "mt5", "umt5") else AutoModel
    torch.manual_seed(0)
    model = kind.from_config(config, attn_implementation="eager")
    return (model.encoder if config.model_type == "bart" else model).eval()


def expected_of(encoder: TextEncoder, texts: list[str]) -> list[States]:
    model, found = own_model(encoder), []
    for text in texts:
        ids = encoder.frontend(text)["ids"][None]
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        found.append(States(output.last_hidden_state, output.hidden_states))
    return found


def padded(encoder: TextEncoder, texts: list[str]) -> list[Tensor]:
    """Each utterance's features in one batch, as the stem gives them: (1, tokens, stem_dim)."""
    with torch.no_grad():
        features, mask = encoder.eval().stem(encoder.collate([encoder.frontend(text) for text in texts]))
    return [row[own][None] for row, own in zip(features, mask, strict=True)]


@pytest.mark.slow(
    but=["albert", "bloom", "clip", "-v2", "gemma3", "gpt2", "modern", "mpnet", "nomic", "qwen3", "t5", "xlm"]
)
@every
def test_features_are_the_hidden_states_of_transformers_alone_and_padded(
    build: Build, texts: list[str], kind: str
) -> None:
    encoders = {layer: build(kind, layer=layer) for layer in ("last", "weighted", 1)}
    expected = expected_of(encoders["last"], texts)
    assert len(expected[0].hidden) == LAYERS + 1
    states = expected[-1].hidden
    for before, after in pairwise(states):
        assert (before - after).abs().max() > 1e-2
    wanted: dict[str | int, list[Tensor]] = {
        "last": [one.last for one in expected],
        "weighted": [torch.cat(one.hidden, dim=-1) for one in expected],
        1: [one.hidden[1] for one in expected],
    }
    for layer, encoder in encoders.items():
        batch, turned = padded(encoder, texts), padded(encoder, texts[::-1])[::-1]
        for place, text in enumerate(texts):
            (alone,) = padded(encoder, [text])
            for found in (alone, batch[place], turned[place]):
                torch.testing.assert_close(found, wanted[layer][place], rtol=0, atol=1e-4)


@pytest.mark.slow(but=["albert", "bart", "-v2", "gemma3", "gpt_neox", "modern", "mpnet", "qwen3", "t5", "xlm"])
@every
def test_what_is_unfrozen_trains_and_nothing_else(build: Build, texts: list[str], kind: str) -> None:
    shared = kind == "albert"  # one layer, passed three times
    for layer, count in (("last", LAYERS + 1), (1, 2)):
        encoder = build(kind, layer=layer)
        assert len(encoder.blocks()) == (2 if shared else count)
        blocks = [{id(parameter) for parameter in block.parameters()} for block in encoder.blocks()]
        assert sum(map(len, blocks)) == len(set().union(*blocks))
        for what in ("none", "all", 1):
            encoder.unfreeze(what)
            trained = {id(parameter) for parameter in encoder.parameters() if parameter.requires_grad}
            assert trained == {"none": set(), "all": set().union(*blocks), 1: blocks[-1]}[what]
        encoder.unfreeze("all")
        encoder.train()
        features, mask = encoder(encoder.collate([encoder.frontend(text) for text in texts[1:3]]))
        (features[mask] * torch.linspace(-1, 1, encoder.dim)).tanh().mean().backward()
        assert [p for p in encoder.parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("kind", ["albert", "deberta-v2", "gpt2", "mistral", "modernbert", "qwen3", "t5"])
def test_half_precision_is_near_and_leaves_no_trace(build: Build, texts: list[str], kind: str) -> None:
    encoder = build(kind, layer="weighted")
    expected = padded(encoder, texts)
    with in_half_precision(encoder, torch.device("cpu"), torch.bfloat16), torch.no_grad():
        found = padded(encoder, texts)
    for one, other in zip(found, expected, strict=True):
        assert torch.cosine_similarity(one.float().flatten(), other.flatten(), dim=0) > 0.99
    assert all(torch.equal(*pair) for pair in zip(padded(encoder, texts), expected, strict=True))


@pytest.mark.parametrize("kind", ["qwen3", "t5", "modernbert"])
def test_checkpointing_gives_the_same_gradients(build: Build, texts: list[str], kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = build(kind, layer="weighted", gradient_checkpointing=checkpointing)
        encoder.unfreeze("all")
        encoder.train()
        torch.manual_seed(0)
        features, mask = encoder(encoder.collate([encoder.frontend(text) for text in texts[1:4]]))
        features[mask].tanh().mean().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-6)


def test_checkpointing_is_refused_where_transformers_cannot(build: Build) -> None:
    with pytest.raises(InputError, match=r"encoder\.text\.gradient_checkpointing=true: mpnet cannot do that"):
        build("mpnet", gradient_checkpointing=True)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_of_a_checkpoint_with_a_decoder_the_encoder_is_loaded(
    build: Build, texts: list[str], tmp_path: Path, kind: str
) -> None:
    whole = AutoModel.from_config(AutoConfig.for_model(**build(kind).stem.model.config.to_dict()))
    whole.half().save_pretrained(tmp_path)
    found = build(kind, weights=str(tmp_path))
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert all("decoder" not in name for name in found.state_dict())
    ids = found.frontend(texts[-1])["ids"][None]
    with torch.no_grad():
        expected = whole.float().eval().encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(padded(found, texts)[-1], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fnet", "fnet mixes all tokens, padding included"),
        ("canine", "canine pools over padding"),
        ("gemma3", "gemma3 is no model of text alone"),
        ("hubert", "hubert is no text model"),
        ("whisper", "whisper is no text model"),
        ("vit", "vit is no text model"),
    ],
)
def test_what_is_no_text_or_not_exact_is_refused(text_encoder: Build, kind: str, message: str) -> None:
    halves = {f"{half}_{field}": count for half in ("encoder", "decoder") for field, count in SIZES.items()}
    small: dict[str, dict[str, Any]] = {"hubert": {"conv_dim": [8] * 7}, "whisper": halves}
    with pytest.raises(InputError, match=rf"^encoder\.text\.architecture: {message}.*\.$") as error:
        text_encoder(kind, small.get(kind))
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_wants_its_own_code_is_refused(text_encoder: Build, tmp_path: Path) -> None:
    text_encoder().stem.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"AutoConfig": "configuration_strange.StrangeConfig", "AutoModel": "modeling_strange.StrangeModel"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "strange", "auto_map": own}))
    for name in ("configuration_strange.py", "modeling_strange.py"):
        (tmp_path / name).write_text("raise SystemExit('code of a checkpoint ran')")
    with pytest.raises(InputError, match=r"code of its own .*\(trust_remote_code\), which this package never does"):
        text_encoder(weights=str(tmp_path))
