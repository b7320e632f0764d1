"""Whole networks: an utterance's logits are the same alone and in any padded batch."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fourm_ser.config import build as build_node
from fourm_ser.encoders.base import Features, Inputs, Resources
from fourm_ser.errors import InputError
from fourm_ser.models.network import ACTIVATIONS, EmotionNetwork, Head, ViewHeads, build_network, known_widths

Compose = Callable[..., DictConfig]

CLASSES = 4
SPEECH = [(model_type, norm) for model_type in ("wav2vec2", "hubert", "wavlm") for norm in ("group", "layer")]
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def shrunk(modality: str) -> list[str]:
    return [f"encoder.{modality}.architecture.{field}={value}" for field, value in TRANSFORMER.items()]


TEXT = ["encoder.text.tokenizer=wordpiece", "encoder.text.vocabulary=150", "encoder.text.architecture.vocab_size=150"]
TINY_TEXT = ["encoder=tiny", *shrunk("text"), *TEXT[1:]]
TINY_AUDIO = ["encoder.audio.channels=[16,24]", "encoder.audio.hidden=16", "encoder.audio.frontend.mels=20"]
ENCODERS: dict[str, list[str]] = {
    "bert-lstm": [*TINY_TEXT, *TINY_AUDIO],
    "roberta-lstm": [*TINY_TEXT, *TINY_AUDIO, "encoder/text=roberta", *TEXT],
    **{
        f"{text}-{model_type}-{norm}": [
            f"encoder={text}_wav2vec",
            "encoder.weights=random",
            *shrunk("text"),
            *TEXT,
            *shrunk("audio"),
            "+encoder.audio.architecture.conv_dim=[8,8,8,8,8,8,8]",
            f"encoder.audio.architecture.model_type={model_type}",
            f"encoder.audio.architecture.feat_extract_norm={norm}",
            f"+encoder.audio.architecture.do_stable_layer_norm={str(norm == 'layer').lower()}",
        ]
        for (model_type, norm), text in zip(SPEECH, itertools.cycle(("bert", "roberta")), strict=False)
    },
}
WEIGHTED = "bert-wav2vec2-group-weighted"
ENCODERS[WEIGHTED] = [
    *ENCODERS["bert-wav2vec2-group"],
    *(f"encoder.{modality}.layer=weighted" for modality in ("text", "audio")),
]
SEVERAL = "bert-wav2vec2-group-several"
ENCODERS[SEVERAL] = [*ENCODERS["bert-wav2vec2-group"], "encoder.audio.layer=[0,2]"]
FUSIONS: dict[str, list[str]] = {
    "self_attention": ["fusion=self_attention", "fusion.dim=16", "fusion.heads=4"],
    "self_attention-min_max": ["fusion=self_attention", "fusion.dim=16", "fusion.heads=4", "fusion.audio_norm=min_max"],
    "cross_attention": ["fusion=cross_attention", "fusion.dim=16", "fusion.heads=4"],
    "concat": ["fusion=concat", "fusion.project={text: 8, audio: null}", "fusion.pool={text: first, audio: max}"],
    "statistics": ["fusion=statistics", "fusion.dim=16"],
    "text_attention": ["fusion=text_attention", "fusion.dim=16", "fusion.heads=4"],
    "audio_attention": ["fusion=audio_attention", "fusion.dim=16", "fusion.heads=4"],
}
PAIRS = pytest.mark.parametrize(("encoder", "fusion"), list(itertools.product(ENCODERS, FUSIONS)))

rng = np.random.default_rng(0)
WORDS = ["angry", "ball", "calm", "door", "every", "fire", "green", "happy"]
TEXTS = ["", "calm", " ".join(rng.choice(WORDS, 60)), "every green ball"]
WAVEFORMS = [rng.normal(0, 0.1, count).astype(np.float32) for count in (400, 4_800, 16_000, 32_000)]


@pytest.fixture(scope="module")
def build(composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EmotionNetwork]:
    """Builds a network from the config, in evaluation mode; composing is most of the work and done once a choice."""
    resources = Resources(tmp_path_factory.mktemp("cache"), TEXTS)

    @functools.cache
    def chosen(node: str, *overrides: str) -> dict[str, Any]:
        container = OmegaConf.to_container(composed(*overrides)[node], resolve=True)
        assert isinstance(container, dict)
        return {str(key): value for key, value in container.items()}

    def built(encoder: str, fusion: str, *overrides: str) -> EmotionNetwork:
        torch.manual_seed(0)
        own = {node: tuple(one for one in overrides if node in one) for node in ("encoder", "fusion")}
        assert {one for ones in own.values() for one in ones} == set(overrides)
        nodes = {
            "encoder": chosen("encoder", *ENCODERS[encoder], *own["encoder"]),
            "fusion": chosen("fusion", *FUSIONS[fusion], *own["fusion"]),
            "head": chosen("head"),
        }
        return build_network(OmegaConf.create(nodes), CLASSES, resources).eval()

    return built


def batch(network: EmotionNetwork, rows: list[int]) -> dict[str, Inputs | None]:
    """The raw inputs of some utterances, for the modalities that the network reads."""
    raws: dict[str, list[Any]] = {"text": TEXTS, "audio": WAVEFORMS}
    inputs: dict[str, Inputs | None] = {"text": None, "audio": None}
    for modality, encoder in network.by_modality.items():
        inputs[modality] = encoder.collate([encoder.frontend(raws[modality][row]) for row in rows])
    return inputs


def logits(network: EmotionNetwork, rows: list[int]) -> Tensor:
    with torch.no_grad():
        return network(**batch(network, rows)).logits


@pytest.mark.slow(
    but=["roberta-lstm-statistics", "roberta-lstm-concat", "layer-cross", "layer-self", "layer-text", "layer-audio"]
)
@PAIRS
def test_logits_alone_are_the_logits_in_a_padded_batch(
    build: Callable[..., EmotionNetwork], encoder: str, fusion: str
) -> None:
    network = build(encoder, fusion)
    together = logits(network, [0, 1, 2, 3])
    assert together.shape == (4, CLASSES)
    assert torch.isfinite(together).all()
    for row in range(4):
        torch.testing.assert_close(together[row], logits(network, [row])[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(network, [2, 0, 3, 1]), together[[2, 0, 3, 1]], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(network, [1, 0]), together[[1, 0]], rtol=0, atol=1e-4)
    # Far more than the tolerance lies between the utterances.
    assert (together[2] - together[3]).abs().max() > 1e-3


@pytest.mark.parametrize("encoder", ["bert-lstm", WEIGHTED, SEVERAL])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_stored_features_give_the_logits_of_raw_inputs(
    build: Callable[..., EmotionNetwork], encoder: str, fusion: str
) -> None:
    network = build(encoder, fusion)
    raw = batch(network, [0, 1, 2, 3])
    with torch.no_grad():
        expected = network(**raw).logits
        stored = {
            modality: None if inputs is None else network.by_modality[modality].stem_features(inputs)
            for modality, inputs in raw.items()
        }
        assert all(isinstance(part, Features) for part in stored.values() if part is not None)
        torch.testing.assert_close(network(**stored).logits, expected, rtol=0, atol=1e-6)
        garbage = {
            modality: None
            if part is None
            else Features(part.features.masked_fill(~part.mask[..., None], 1e6), part.mask)
            for modality, part in stored.items()
        }
        torch.testing.assert_close(network(**garbage).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_maps_are_returned_when_they_are_asked_for(build: Callable[..., EmotionNetwork], fusion: str) -> None:
    network = build("bert-lstm", fusion)
    inputs = batch(network, [0, 1, 2, 3])
    with torch.no_grad():
        without, asked = network(**inputs), network(**inputs, return_attention=True)
    torch.testing.assert_close(asked.embedding, without.embedding, rtol=0, atol=1e-5)
    torch.testing.assert_close(asked.logits, without.logits, rtol=0, atol=1e-5)
    assert without.attention == {}
    assert bool(asked.attention) == (fusion not in ("concat", "statistics"))
    assert without.embedding.shape == (4, network.fusion.dim)


def test_several_hidden_states_have_a_head_each_and_their_mean_probabilities(
    build: Callable[..., EmotionNetwork],
) -> None:
    network = build(SEVERAL, "statistics")
    assert isinstance(network.head, ViewHeads)
    with torch.no_grad():
        output = network(**batch(network, [0, 1, 2]))
    assert output.embedding.shape == (3, 2 * 16)
    own = [head(output.embedding[:, 16 * view : 16 * view + 16]) for view, head in enumerate(network.head.heads)]
    assert output.views is not None
    torch.testing.assert_close(output.views, torch.stack(own))
    torch.testing.assert_close(output.logits.exp(), (own[0].softmax(-1) + own[1].softmax(-1)) / 2)
    torch.testing.assert_close(network.head(output.embedding), output.logits)
    assert (own[0] - own[1]).abs().max() > 1e-3
    # Of the same states side by side another fusion makes one view.
    beside = build(SEVERAL, "concat")
    assert beside.fusion.widths["audio"] == 2 * 32
    assert not isinstance(beside.head, ViewHeads)
    assert build("bert-wav2vec2-group", "statistics")(**batch(network, [0])).views is None


def test_features_are_the_embedding_and_means_over_own_frames(build: Callable[..., EmotionNetwork]) -> None:
    network = build("bert-lstm", "self_attention")
    with torch.no_grad():
        output = network(**batch(network, [0, 1, 2, 3]))
    found = output.features(["audio", "embedding", "text"])
    assert {name: vectors.shape for name, vectors in found.items()} == {
        name: (4, width) for name, width in network.widths.items()
    }
    assert torch.equal(found["embedding"], output.embedding)
    for name, sequence in (("text", output.text), ("audio", output.audio)):
        for row, length in enumerate(sequence.mask.sum(1)):
            torch.testing.assert_close(found[name][row], sequence.features[row, :length].mean(0), rtol=0, atol=1e-5)
    assert output.features([]) == {}


def test_encoders_of_modalities_that_are_not_read_are_not_built(build: Callable[..., EmotionNetwork]) -> None:
    assert set(build("bert-lstm", "text_attention").encoders) == {"text"}
    assert set(build("bert-lstm", "audio_attention").encoders) == {"audio"}
    assert set(build("bert-lstm", "concat").encoders) == {"text", "audio"}


def test_an_unknown_modality_is_refused(build: Callable[..., EmotionNetwork]) -> None:
    with pytest.raises(InputError, match=r"fusion\.modalities=\['video'\]"):
        build("bert-lstm", "text_attention", "fusion.modalities=[video]")


def test_a_key_that_nothing_takes_is_refused(build: Callable[..., EmotionNetwork]) -> None:
    with pytest.raises(InputError, match="hedas"):
        build("bert-lstm", "self_attention", "+fusion.hedas=4")
    with pytest.raises(InputError, match=r"fusion\.heads=5"):
        build("bert-lstm", "self_attention", "fusion.heads=5")


@pytest.mark.parametrize("encoder", ["bert-lstm", "bert-wav2vec2-group"])
def test_the_stems_part_of_the_state(build: Callable[..., EmotionNetwork], encoder: str) -> None:
    network = build(encoder, "concat")
    state = set(network.state_dict())
    assert network.stem_state([]) == set()
    assert network.stem_state(["text"]) == {name for name in state if name.startswith("encoders.text.")}
    audio = {name for name in state if name.startswith("encoders.audio.") and ".top." not in name}
    assert audio
    assert network.stem_state(["audio", "text"]) == audio | network.stem_state(["text"])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_frozen_encoders_are_quiet_while_the_rest_trains(build: Callable[..., EmotionNetwork], fusion: str) -> None:
    network = build("bert-wav2vec2-group", fusion)
    for encoder in network.by_modality.values():
        encoder.unfreeze("none")
    network.train()
    inputs = batch(network, [0, 1, 2, 3])
    for modality, encoder in network.by_modality.items():
        part = inputs[modality]
        assert part is not None
        assert torch.equal(encoder(part).features, encoder(part).features)
    loss = network(**inputs).logits.square().sum()
    torch.autograd.backward(loss)
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in network.named_parameters() if not name.startswith("encoders.")}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_head_is_layers_with_an_activation_each(activation: str) -> None:
    torch.manual_seed(0)
    head = Head(dim=6, classes=3, layers=[5, 4], dropout=0.5, activation=activation, last_dropout=0.0)
    embedding = torch.randn(7, 6)
    first, second, last = (module for module in head.modules() if isinstance(module, torch.nn.Linear))
    function = ACTIVATIONS[activation]()
    expected = last(function(second(function(first(embedding)))))
    torch.testing.assert_close(head.eval()(embedding), expected)
    assert not torch.equal(head.train()(embedding), head(embedding))
    assert (first.out_features, second.out_features, last.out_features) == (5, 4, 3)


def test_a_head_without_hidden_layers_is_linear() -> None:
    head = Head(dim=6, classes=3, layers=[], dropout=0.0, activation="relu", last_dropout=0.0)
    (layer,) = (module for module in head.modules() if isinstance(module, torch.nn.Linear))
    embedding = torch.randn(2, 6)
    torch.testing.assert_close(head(embedding), layer(embedding))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(InputError, match=r"head\.activation=swish: expected one of relu"):
        Head(dim=6, classes=3, layers=[], dropout=0.0, activation="swish", last_dropout=0.0)


def test_the_same_seed_builds_the_same_network_whatever_the_encoders_seed(
    build: Callable[..., EmotionNetwork],
) -> None:
    one, two = (build("bert-wav2vec2-group", "concat", f"encoder.init_seed={seed}") for seed in (0, 1))
    for (name, first), second in zip(one.named_parameters(), two.parameters(), strict=True):
        if not name.startswith("encoders."):
            assert torch.equal(first, second)
    assert one.by_modality["text"].fingerprint() != two.by_modality["text"].fingerprint()
    assert one.by_modality["audio"].fingerprint() != two.by_modality["audio"].fingerprint()


@pytest.mark.slow(but=["tiny", "bert_vggish"])
@pytest.mark.parametrize(
    "encoder",
    [
        "tiny",
        "bert_vggish",
        "bert_panns",
        "roberta_lstm_mel",
        "bert_mel_cnn",
        "distilbert_wav2vec",
        "prosody_cnn",
        "descriptors",
    ],
)
def test_widths_are_known_before_encoders_are_built(composed: Compose, tmp_path: Path, encoder: str) -> None:
    small = ["num_hidden_layers=1", "intermediate_size=32"] if encoder != "tiny" else []
    text = [f"encoder.text.architecture.{word}" for word in small if encoder.startswith(("bert", "roberta"))]
    config = composed(f"encoder={encoder}", "encoder.weights=random", "fusion=concat", *text)
    widths = known_widths(config)
    for modality, width in widths.items():
        if encoder.startswith("distilbert") and modality == "audio":
            assert width == config.encoder.audio.architecture.hidden_size
            continue
        built = build_node(config.encoder[modality], resources=Resources(tmp_path, ["every calm word"]))
        assert built.dim == width


@pytest.mark.parametrize(
    ("pool", "factors"),
    [("none", (1, 1)), ("mean", (1, 1)), ("mean_std", (2, 2)), ("{audio: mean_std}", (1, 2))],
)
def test_pooled_features_are_known_and_built_as_wide(
    composed: Compose, tmp_path: Path, pool: str, factors: tuple[int, int]
) -> None:
    before = known_widths(composed("encoder=tiny"))
    config = composed("encoder=tiny", f"encode.pool={pool}", "fusion=concat")
    expected = {
        modality: factor * (before[modality] or 0) for modality, factor in zip(("text", "audio"), factors, strict=True)
    }
    assert known_widths(config) == expected
    network = build_network(config, 4, Resources(tmp_path, ["every calm word"]))
    assert {modality: encoder.dim for modality, encoder in network.by_modality.items()} == expected
    with pytest.raises(InputError, match=r"encode\.pool=max: expected one of none, mean, mean_std"):
        build_network(composed("encoder=tiny", "encode.pool=max"), 4, Resources(tmp_path, ["every calm word"]))
