"""The model directory: what was saved is what is loaded, from wherever it lies."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fourm_ser.data.transcripts import Cleaning
from fourm_ser.encoders.base import Inputs, Resources
from fourm_ser.errors import InputError
from fourm_ser.models.directory import Conditions, Model, load_model, save_model
from fourm_ser.models.network import EmotionNetwork, build_network

Compose = Callable[..., DictConfig]

EMOTIONS = ["anger", "happiness", "sadness", "neutral"]
CONDITIONS = Conditions([], "32", "32-true", 30.0)
TEXTS = ["", "calm", "every green ball and every happy door", "fire"]
WAVEFORMS = [
    np.random.default_rng(count).normal(0, 0.1, count).astype(np.float32) for count in (400, 4_800, 9_000, 16_000)
]
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def shrunk(modality: str) -> list[str]:
    return [f"encoder.{modality}.architecture.{field}={value}" for field, value in TRANSFORMER.items()]


SMALL = ["encoder.text.vocabulary=150", "encoder.text.architecture.vocab_size=150", "fusion.dim=16"]
TINY = ["encoder=tiny", *shrunk("text"), *SMALL, "encoder.audio.channels=[16,24]", "encoder.audio.hidden=16"]


def speech(model_type: str, norm: str) -> list[str]:
    return [
        "encoder=roberta_wav2vec",
        "encoder.weights=random",
        "encoder.text.tokenizer=wordpiece",
        *shrunk("text"),
        *SMALL,
        *shrunk("audio"),
        "+encoder.audio.architecture.conv_dim=[8,8,8,8,8,8,8]",
        f"encoder.audio.architecture.model_type={model_type}",
        f"encoder.audio.architecture.feat_extract_norm={norm}",
    ]


DISTILBERT = [
    "encoder/text=distilbert",
    "encoder.text.architecture.dim=32",
    "encoder.text.architecture.n_layers=2",
    "encoder.text.architecture.n_heads=4",
    "encoder.text.architecture.hidden_dim=64",
]


WORDPIECE = ["encoder=tiny", "encoder.text.tokenizer=wordpiece", *SMALL]
T5_FIELDS = ("d_model=32", "num_layers=2", "num_heads=4", "d_kv=8", "d_ff=64")
T5 = [f"encoder.text.architecture.{field}" for field in T5_FIELDS]
QWEN = [*shrunk("text"), *(f"encoder.text.architecture.{field}" for field in ("num_key_value_heads=2", "head_dim=8"))]


def layered(layer: str) -> list[str]:
    return [f"encoder.{modality}.layer={layer}" for modality in ("text", "audio")]


CONFIGS = {
    "tiny": TINY,
    "tiny-text_attention": [*TINY, "fusion=text_attention", "fusion.heads=4"],
    "tiny-audio_attention": [*TINY, "fusion=audio_attention", "fusion.heads=4"],
    "t5-text_attention": [*WORDPIECE, "encoder/text=t5", *T5, "fusion=text_attention", "encoder.text.layer=1"],
    "qwen3-text_attention": [*WORDPIECE, "encoder/text=qwen3_embedding", *QWEN, "fusion=text_attention"],
    "tiny-pooled": [*TINY, "encode.pool={text: mean, audio: mean_std}"],
    "wav2vec2": speech("wav2vec2", "group"),
    "hubert": speech("hubert", "layer"),
    "wavlm": speech("wavlm", "group"),
    "hubert-layer_1": [*speech("hubert", "layer"), *layered("1")],
    "wavlm-weighted": [
        *(choice for choice in speech("wavlm", "group") if choice not in shrunk("text")),
        *DISTILBERT,
        *layered("weighted"),
    ],
    "hubert-several": [*speech("hubert", "layer"), *layered("[1,2]")],
}


class Trained:
    """A network with its config, and its logits on a few utterances."""

    def __init__(self, config: DictConfig, cache: Path) -> None:
        self.config = config
        torch.manual_seed(1)
        self.network = build_network(config, len(EMOTIONS), Resources(cache, TEXTS)).eval()

    def fingerprints(self, *modalities: str) -> dict[str, str]:
        return {modality: self.network.by_modality[modality].fingerprint() for modality in modalities}

    def move(self, trained: tuple[str, ...]) -> None:
        """Change all weights but those of the stems of modalities not in `trained`."""
        kept = self.network.stem_state([one for one in self.network.by_modality if one not in trained])
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                if name not in kept:
                    parameter.add_(0.05 * torch.randn_like(parameter))


def logits(network: EmotionNetwork) -> Tensor:
    raws: dict[str, list[Any]] = {"text": TEXTS, "audio": WAVEFORMS}
    inputs: dict[str, Inputs | None] = {"text": None, "audio": None}
    for modality, encoder in network.by_modality.items():
        inputs[modality] = encoder.collate([encoder.frontend(raw) for raw in raws[modality]])
    with torch.no_grad():
        return network(**inputs).logits


@pytest.fixture(scope="module")
def configs(composed: Compose) -> Compose:
    """Composes each config once, for composing is most of the work."""
    return functools.cache(composed)


@pytest.fixture
def trained(configs: Compose, tmp_path: Path) -> Callable[..., Trained]:
    def build(name: str = "tiny", *overrides: str) -> Trained:
        return Trained(configs(*CONFIGS[name], *overrides), tmp_path / "cache")

    return build


def left_out_of(name: str) -> list[tuple[str, ...]]:
    if name.endswith("_attention"):
        return [(), (name.partition("-")[2].removesuffix("_attention"),)]
    if name.endswith(("-layer_1", "-weighted", "-pooled", "-several")):
        return [(), ("text", "audio")]
    return [(), ("text",), ("audio",), ("text", "audio")]


@pytest.mark.slow(
    but=[
        "out0",
        "tiny-text_attention-left_out4",
        "tiny-audio_attention-left_out6",
        "left_out12",
        "left_out22",
        "left_out25",
        "left_out31",
    ]
)
@pytest.mark.parametrize(("name", "left_out"), [(name, left_out) for name in CONFIGS for left_out in left_out_of(name)])
def test_what_was_saved_is_what_is_loaded(
    trained: Callable[..., Trained], tmp_path: Path, name: str, left_out: tuple[str, ...]
) -> None:
    model = trained(name)
    untouched = logits(model.network)
    modalities = tuple(model.network.by_modality)
    model.move(tuple(modality for modality in modalities if modality not in left_out))
    expected = logits(model.network)
    assert not torch.equal(expected, untouched)
    save_model(
        tmp_path / "model", Model(model.network, EMOTIONS, CONDITIONS), model.config, model.fingerprints(*left_out)
    )
    written = set(load_file(tmp_path / "model" / "model.safetensors"))
    assert written == set(model.network.state_dict()) - model.network.stem_state(list(left_out))
    # Nothing but the folder itself is there, and it lies elsewhere.
    shutil.copytree(tmp_path / "model", tmp_path / "elsewhere" / "copy")
    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    torch.manual_seed(2)
    network, emotions, _ = load_model(tmp_path / "elsewhere" / "copy", tmp_path / "other_cache")
    assert emotions == EMOTIONS
    assert not any(module.training for module in network.modules())
    assert torch.equal(logits(network), expected)
    for (key, one), (other_key, other) in zip(
        model.network.state_dict().items(), network.state_dict().items(), strict=True
    ):
        assert key == other_key
        assert torch.equal(one, other)


def test_a_loaded_model_is_saved_and_loaded_again(trained: Callable[..., Trained], tmp_path: Path) -> None:
    model = trained()
    save_model(tmp_path / "one", Model(model.network, EMOTIONS, CONDITIONS), model.config, {})
    network = load_model(tmp_path / "one", tmp_path / "cache").network
    config = OmegaConf.merge({"folder": str(tmp_path / "one")}, OmegaConf.load(tmp_path / "one" / "config.yaml"))
    assert isinstance(config, DictConfig)
    save_model(tmp_path / "two", Model(network, EMOTIONS, CONDITIONS), config, {})
    shutil.rmtree(tmp_path / "one")
    again = load_model(tmp_path / "two", tmp_path / "cache").network
    assert torch.equal(logits(again), logits(model.network))


def test_weights_may_lie_in_memory_in_any_order(trained: Callable[..., Trained], tmp_path: Path) -> None:
    model = trained()
    for parameter in model.network.parameters():
        parameter.data = parameter.data.T.contiguous().T if parameter.ndim == 2 else parameter.data
    save_model(tmp_path / "model", Model(model.network, EMOTIONS, CONDITIONS), model.config, {})
    again = load_model(tmp_path / "model", tmp_path / "cache").network.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.network.state_dict().items())


@pytest.mark.parametrize("left_out", [(), ("text", "audio")])
def test_weights_from_a_folder(trained: Callable[..., Trained], tmp_path: Path, left_out: tuple[str, ...]) -> None:
    source = trained("wav2vec2", "encoder.init_seed=5")
    folder = tmp_path / "weights"
    for modality, encoder in source.network.by_modality.items():
        assert isinstance(encoder.stem.model, nn.Module)
        encoder.stem.model.save_pretrained(folder / modality)  # type: ignore[operator]
    model = trained("wav2vec2", *(f"encoder.{modality}.weights={folder / modality}" for modality in ("text", "audio")))
    model.move(tuple({"text", "audio"} - set(left_out)))
    expected = logits(model.network)
    save_model(
        tmp_path / "model", Model(model.network, EMOTIONS, CONDITIONS), model.config, model.fingerprints(*left_out)
    )
    if not left_out:
        shutil.rmtree(folder)  # all weights are in the model's own folder
    network = load_model(tmp_path / "model", tmp_path / "cache").network
    assert torch.equal(logits(network), expected)
    if left_out:
        changed = folder / "audio" / "model.safetensors"
        state = load_file(changed)
        state["encoder.layer_norm.bias"] += 0.1
        save_file(state, changed, {"format": "pt"})
        with pytest.raises(InputError, match="audio encoder wav2vec with the fingerprint"):
            load_model(tmp_path / "model", tmp_path / "cache")


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_another_encoder_than_in_training_is_refused(
    trained: Callable[..., Trained], tmp_path: Path, modality: str
) -> None:
    model = trained()
    fingerprints = model.fingerprints("text", "audio")
    save_model(tmp_path / "model", Model(model.network, EMOTIONS, CONDITIONS), model.config, fingerprints)
    path = tmp_path / "model" / "config.yaml"
    config = OmegaConf.load(path)
    config.encoder[modality].init_seed += 1
    config.digests = {}
    OmegaConf.save(config, path)
    with pytest.raises(InputError, match=f"{modality} encoder .* with the fingerprint {fingerprints[modality]}"):
        load_model(tmp_path / "model", tmp_path / "cache")


def test_fingerprints_taken_before_and_after_use_fit(trained: Callable[..., Trained], tmp_path: Path) -> None:
    model = trained()
    before = model.fingerprints("text", "audio")
    expected = logits(model.network)
    save_model(tmp_path / "model", Model(model.network, EMOTIONS, CONDITIONS), model.config, before)
    network = load_model(tmp_path / "model", tmp_path / "cache").network
    assert torch.equal(logits(network), expected)
    assert {modality: encoder.fingerprint() for modality, encoder in network.by_modality.items()} == before


def test_the_folder_holds_no_pickle(trained: Callable[..., Trained], tmp_path: Path) -> None:
    model = trained()
    save_model(tmp_path / "model", Model(model.network, EMOTIONS, CONDITIONS), model.config, {})
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".yaml", ".json", ".txt"}
    assert {"model.safetensors", "config.yaml", "labels.json"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert content[:1] != b"\x80"  # a pickle's first byte
        assert content[:2] != b"PK"  # a torch archive's
        if path.suffix != ".safetensors":
            content.decode("utf-8")
    assert json.loads((tmp_path / "model" / "labels.json").read_text()) == EMOTIONS
    assert set(OmegaConf.load(tmp_path / "model" / "config.yaml")) == {
        "encode",
        "encoder",
        "fusion",
        "head",
        "fingerprints",
        "digests",
        "use",
    }
    text = (tmp_path / "model" / "config.yaml").read_text()
    assert str(tmp_path) not in text


def test_any_names_and_any_rule_of_cleaning_are_what_they_were(trained: Callable[..., Trained], tmp_path: Path) -> None:
    model = trained()
    words = ["yes", "null", "01", "1.0"]
    conditions = CONDITIONS._replace(clean=[r"\[\w+\]", "no", "~"])
    save_model(tmp_path / "model", Model(model.network, words, conditions), model.config, {})
    _, emotions, again = load_model(tmp_path / "model", tmp_path / "cache")
    assert emotions == words
    assert again == conditions


def test_a_model_directory_of_before_says_nothing_of_cleaning_and_means_all_brackets(
    trained: Callable[..., Trained], tmp_path: Path
) -> None:
    model = trained()
    save_model(tmp_path / "model", Model(model.network, EMOTIONS, CONDITIONS._replace(clean=[])), model.config, {})
    config = OmegaConf.load(tmp_path / "model" / "config.yaml")
    del config.use["clean"]
    config.digests = {}
    OmegaConf.save(config, tmp_path / "model" / "config.yaml")
    conditions = load_model(tmp_path / "model", tmp_path / "cache").conditions
    assert Cleaning(conditions.clean)("a [so] <3 b> c") == "a c"


def test_a_model_that_stands_there_is_replaced(trained: Callable[..., Trained], tmp_path: Path) -> None:
    model = trained()
    save_model(tmp_path / "model", Model(model.network, EMOTIONS, CONDITIONS), model.config, {})
    (tmp_path / "model" / "stale.txt").touch()
    model.move(("text", "audio"))
    save_model(tmp_path / "model", Model(model.network, EMOTIONS, CONDITIONS), model.config, {})
    assert not (tmp_path / "model" / "stale.txt").exists()
    assert torch.equal(logits(load_model(tmp_path / "model", tmp_path / "cache")[0]), logits(model.network))
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "model"}


def test_a_save_that_fails_leaves_the_old_model(
    trained: Callable[..., Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained()
    save_model(tmp_path / "model", Model(model.network, EMOTIONS, CONDITIONS), model.config, {})
    expected = logits(model.network)
    model.move(("text", "audio"))

    def full(*arguments: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("fourm_ser.models.directory.write_json", full)
    with pytest.raises(OSError, match="no space left"):
        save_model(tmp_path / "model", Model(model.network, EMOTIONS, CONDITIONS), model.config, {})
    assert torch.equal(logits(load_model(tmp_path / "model", tmp_path / "cache")[0]), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "model"}


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=f"{folder}: no model.safetensors there"):
            load_model(folder, tmp_path / "cache")
