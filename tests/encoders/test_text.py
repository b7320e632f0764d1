"""Text encoders: padding, what trains, and what the fingerprint depends on."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fourm_ser.encoders.base import Encoder, Resources, Unfreeze
from fourm_ser.encoders.text import TextEncoder
from fourm_ser.errors import InputError
from tests.conftest import Compose

Build = Callable[..., TextEncoder]


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_alone_and_in_a_padded_batch(
    text_encoder: Build, texts: list[str], check_padding: Callable[..., None], model_type: str
) -> None:
    check_padding(text_encoder(model_type), texts)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_the_features_are_the_model_s_last_hidden_states(
    text_encoder: Build, texts: list[str], model_type: str
) -> None:
    from transformers import AutoModel

    encoder = text_encoder(model_type).eval()
    model = AutoModel.from_config(encoder.stem.model.config, add_pooling_layer=False).eval()
    model.load_state_dict(encoder.stem.model.state_dict())
    for text in texts:
        inputs = encoder.frontend(text)
        with torch.no_grad():
            expected = model(input_ids=inputs["ids"][None]).last_hidden_state
            torch.testing.assert_close(encoder(encoder.collate([inputs])).features, expected, rtol=0, atol=1e-4)


def test_an_empty_transcript_is_its_special_tokens(text_encoder: Build) -> None:
    frontend = text_encoder().frontend
    first, last = frontend("")["ids"].tolist()
    ids = frontend("calm door")["ids"].tolist()
    assert (ids[0], ids[-1]) == (first, last)
    assert len(ids) > 2


def test_no_more_than_max_tokens_are_kept(text_encoder: Build, texts: list[str]) -> None:
    whole, cut = (text_encoder(max_tokens=most).frontend(texts[-1])["ids"] for most in (128, 10))
    assert len(whole) > len(cut) == 10
    assert cut[:9].tolist() == whole[:9].tolist()
    assert cut[-1] == whole[-1]  # the closing special token


def test_a_batch_is_padded_with_the_padding_token(text_encoder: Build) -> None:
    encoder = text_encoder()
    assert isinstance(encoder, TextEncoder)
    batch = encoder.collate([encoder.frontend("calm door every fire"), encoder.frontend("")])
    assert batch["mask"].sum(1).tolist() == [batch["ids"].shape[1], 2]
    assert (batch["ids"][1, 2:] == encoder.frontend.tokenizer.pad_token_id).all()  # type: ignore[attr-defined]


def test_the_front_end_travels_to_workers(text_encoder: Build) -> None:
    frontend = text_encoder().frontend
    copy = pickle.loads(pickle.dumps(frontend))
    assert copy("calm door")["ids"].tolist() == frontend("calm door")["ids"].tolist()
    assert copy.describe() == frontend.describe()


def trains(encoder: Encoder) -> list[bool]:
    """For each block whether all of it trains; a block that trains in part is a failure."""
    found = []
    for block in encoder.blocks():
        flags = {parameter.requires_grad for parameter in block.parameters()}
        assert len(flags) == 1
        found.append(flags.pop())
    return found


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("none", [False, False, False]),
        ("all", [True, True, True]),
        (1, [False, False, True]),
        (2, [False, True, True]),
        (3, [True, True, True]),
    ],
)
def test_what_is_unfrozen_trains(text_encoder: Build, model_type: str, what: Unfreeze, expected: list[bool]) -> None:
    encoder = text_encoder(model_type)
    encoder.unfreeze("all")
    encoder.unfreeze(what)
    assert trains(encoder) == expected
    assert encoder.frozen == (not any(expected))
    inside = {id(parameter) for block in encoder.blocks() for parameter in block.parameters()}
    rest = [parameter for parameter in encoder.parameters() if id(parameter) not in inside]
    assert not rest


@pytest.mark.parametrize("what", ["some", "", "1", 0, -1, 4, 1.0, None, True])
def test_nonsense_is_refused(text_encoder: Build, what: Any) -> None:
    with pytest.raises(InputError, match=r"unfreeze\.text=.*tiny_bert"):
        text_encoder().unfreeze(what)


def test_a_frozen_stem_has_no_dropout_while_it_trains(text_encoder: Build, texts: list[str]) -> None:
    encoder = text_encoder()
    inputs = encoder.collate([encoder.frontend(text) for text in texts])
    encoder.unfreeze("none")
    encoder.train()
    assert encoder.training
    assert not encoder.stem.model.training
    assert torch.equal(encoder(inputs).features, encoder(inputs).features)
    encoder.unfreeze(1)
    encoder.train()
    assert encoder.stem.model.training
    assert not torch.equal(encoder(inputs).features, encoder(inputs).features)


def test_every_unfrozen_weight_gets_a_gradient(text_encoder: Build, texts: list[str]) -> None:
    encoder = text_encoder()
    encoder.unfreeze("all")
    encoder.train()
    encoder(encoder.collate([encoder.frontend(text) for text in texts])).features.square().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_two_builds_are_equal_and_another_seed_differs(text_encoder: Build) -> None:
    torch.manual_seed(1)
    first = text_encoder().fingerprint()
    torch.manual_seed(2)
    assert text_encoder().fingerprint() == first
    assert text_encoder(init_seed=1).fingerprint() != first


def test_the_seed_of_the_weights_leaves_the_global_generator_alone(text_encoder: Build) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    text_encoder(init_seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "roberta"},
        {"architecture": {"num_hidden_layers": 1}},
        {"architecture": {"hidden_act": "relu"}},  # same weights, other features
        {"architecture": {"num_attention_heads": 2}},
        {"max_tokens": 64},
    ],
)
def test_the_fingerprint_changes_with_what_changes_features(text_encoder: Build, change: dict[str, Any]) -> None:
    assert text_encoder(**change).fingerprint() != text_encoder().fingerprint()


def test_the_fingerprint_changes_with_the_tokenizer(text_encoder: Build, resources: Resources) -> None:
    other = Resources(resources.cache, ["something else altogether"])
    assert text_encoder(resources=other).fingerprint() != text_encoder().fingerprint()


def test_the_fingerprint_changes_with_any_weight(text_encoder: Build) -> None:
    encoder = text_encoder()
    first = encoder.fingerprint()
    for parameter in encoder.parameters():
        with torch.no_grad():
            old = parameter.flatten()[0].item()
            parameter.view(-1)[0] += 1.0
            assert encoder.fingerprint() != first
            parameter.view(-1)[0] = old
    assert encoder.fingerprint() == first


def test_the_fingerprint_does_not_change_with_regularisation(text_encoder: Build) -> None:
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.2}
    assert text_encoder(architecture=rates).fingerprint() == text_encoder().fingerprint()


def test_the_fingerprint_does_not_change_with_use(text_encoder: Build) -> None:
    encoder = text_encoder()
    before = encoder.fingerprint()
    encoder.eval()(encoder.collate([encoder.frontend("calm"), encoder.frontend("")]))
    assert encoder.fingerprint() == before


@pytest.mark.parametrize(("model_type", "own"), [("bert", 0), ("roberta", 1), ("xlm-roberta", 1), ("mpnet", 1)])
def test_a_trained_tokenizer_pads_with_the_model_s_own_id_from_which_its_positions_count(
    text_encoder: Build, model_type: str, own: int
) -> None:
    encoder = text_encoder(model_type, {"pad_token_id": own})
    tokenizer, model = encoder.frontend.tokenizer, encoder.stem.model  # type: ignore[attr-defined]
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.embeddings.word_embeddings.padding_idx == own
    assert own not in encoder.frontend("calm zzz door")["ids"].tolist()  # nor is a word that it does not know padding
    seen = []
    model.embeddings.position_embeddings.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    encoder.eval()(encoder.collate([encoder.frontend("calm door"), encoder.frontend("")]))
    first = own + 1 if own else 0
    assert seen[0][0].tolist() == list(range(first, first + len(seen[0][0])))


def test_the_options_whose_positions_hang_on_padding_name_their_own(composed: Compose) -> None:
    for option in ("roberta", "xlm_roberta", "mpnet"):
        assert composed(f"encoder/text={option}").encoder.text.architecture.pad_token_id == 1
