"""Small networks of the real classes, what they read, and how near the accelerator's numbers are to be to the CPU's."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fourm_ser.encoders import panns, vggish
from fourm_ser.encoders.base import Encoder, Inputs, Resources
from fourm_ser.models.network import EmotionNetwork, build_network
from tests.accelerator.device import NAME, Pretend
from tests.conftest import CONF, Compose

CPU = torch.device("cpu")
PRECISIONS = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCES = {None: 1e-5, torch.bfloat16: 0.2, torch.float16: 0.05}
EMOTIONS = ["anger", "happiness", "sadness", "neutral"]
LABELS = torch.tensor([0, 1, 2, 3])

RNG = np.random.default_rng(0)
WORDS = ["angry", "ball", "calm", "door", "every", "fire", "green", "happy"]
TEXTS = ["", "calm", " ".join(RNG.choice(WORDS, 40)), "every green ball"]
WAVES = [RNG.normal(0, 0.1, count).astype(np.float32) for count in (400, 4_800, 16_000, 32_000)]
RAW: dict[str, list[Any]] = {"text": TEXTS, "audio": WAVES}


def narrow(modality: str, **more: int) -> list[str]:
    """A transformer of two layers, 32 wide."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, **more}
    return [f"++encoder.{modality}.architecture.{field}={value}" for field, value in sizes.items()]


WORDPIECE = ["encoder.text.tokenizer=wordpiece", "encoder.text.vocabulary=150"]
TEXT = [*WORDPIECE, *narrow("text", vocab_size=150)]
DISTILBERT = [f"encoder.text.architecture.{field}" for field in ("dim=32", "n_layers=2", "n_heads=4", "hidden_dim=64")]
T5_FIELDS = ("d_model=32", "num_layers=2", "num_heads=4", "d_kv=8", "d_ff=64")
T5 = [f"encoder.text.architecture.{field}" for field in T5_FIELDS]
SPEECH = [*narrow("audio"), "++encoder.audio.architecture.conv_dim=[8,8,8,8,8,8,8]"]
WAV2VEC = ["encoder/audio=wav2vec", *SPEECH]
WHISPER = [
    "encoder.audio.layer=last",
    *(f"encoder.audio.architecture.{field}" for field in ("d_model=32", "encoder_layers=2", "encoder_ffn_dim=64")),
    "encoder.audio.architecture.encoder_attention_heads=4",
    "++encoder.audio.architecture.max_source_positions=75",  # 1.5 s: the longest recording has two stretches
]
SEW = "++encoder.audio.architecture.conv_dim=[8,8,8,8,8,8,8,8,8,8,8,8,8]"
SMALL = {
    "text": {
        **dict.fromkeys(("tiny", "bert", "roberta", "modernbert"), TEXT),
        "distilbert": [*WORDPIECE, *DISTILBERT],
        "qwen3_embedding": [*WORDPIECE, *narrow("text", vocab_size=150, num_key_value_heads=2, head_dim=8)],
        "t5": [*WORDPIECE, *T5],
    },
    "audio": {
        "tiny": ["encoder.audio.channels=[16,24]", "encoder.audio.hidden=16"],
        "lstm_mel": ["encoder.audio.hidden=16", "encoder.audio.frontend.hop=1600"],
        "data2vec": SPEECH,
        "w2v_bert": narrow("audio"),
        **{f"{name}{size}": SPEECH for name in ("hubert", "wav2vec", "wavlm") for size in ("", "_large")},
        **{f"whisper_{size}": WHISPER for size in ("tiny", "base", "small", "large_v3")},
    },
}
KIN = ("albert", "deberta", "minilm", "mpnet", "xlm_roberta")  # of BERT and RoBERTa, which stand for them
PUBLISHED = ("_server", "_3m_ser", "_4m_ser")  # other numbers of the options that they begin with
VARIANTS = {
    **{
        f"{modality}/{path.stem}": [f"encoder/{modality}={path.stem}", *small.get(path.stem, [])]
        for modality, small in SMALL.items()
        for path in sorted((CONF / "encoder" / modality).glob("*.yaml"))
        if path.stem not in KIN and not path.stem.endswith(PUBLISHED)
    },
    "text/weighted": [*TEXT, "encoder.text.layer=weighted"],
    "text/checkpointing": [*TEXT, "encoder.text.gradient_checkpointing=true"],
    "audio/weighted": [*WAV2VEC, "encoder.audio.layer=weighted"],
    "audio/checkpointing": [*WAV2VEC, "encoder.audio.gradient_checkpointing=true"],
    "audio/whisper-own": ["encoder/audio=whisper_base", *WHISPER, "encoder.audio.context=own"],
    "audio/several": ["encoder/audio=whisper_base", *WHISPER[1:], "encoder.audio.layer=[0,2]"],
    "audio/convolutions": [*WAV2VEC, "encoder.audio.train_convolutions=true"],
    "audio/conformer": [*WAV2VEC, "encoder.audio.architecture.model_type=wav2vec2-conformer"],
    "audio/sew": [*WAV2VEC, "encoder.audio.architecture.model_type=sew", SEW],
    "audio/sew-d": [*WAV2VEC, "encoder.audio.architecture.model_type=sew-d", SEW, "encoder.audio.layerdrop=0"],
}
"""Every encoder option but for `KIN` and `PUBLISHED`, and some more, as words of a command line that make it small."""


def alone(name: str) -> list[str]:
    """A network of one of these alone."""
    return [*VARIANTS[name], f"fusion={name.split('/')[0]}_attention", "fusion.heads=1", "loss=ce_center"]


@contextmanager
def narrow_classes() -> Iterator[None]:
    """VGGish and Cnn14, whose widths no config knows, narrower meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vggish, "STAGES", ((4,), (8,), (8, 8), (8, 8)))
        patch.setattr(vggish, "CONNECTED", (32, 32, vggish.DIM))
        patch.setattr(panns, "WIDTHS", (4, 8, 8, 8, 16, 16))
        yield


def build(composed: Compose, cache: Path, words: Iterable[str]) -> tuple[DictConfig, EmotionNetwork]:
    """The network that words describe, and its config; what they say nothing of is tiny."""
    others = [word for name in ("text/tiny", "audio/tiny") if not names(words, name) for word in VARIANTS[name]]
    config = composed("encoder=tiny", f"cache={cache}", *others, *words)
    OmegaConf.resolve(config)
    torch.manual_seed(0)
    with narrow_classes():
        network = build_network(config, len(EMOTIONS), Resources(cache, TEXTS))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))  # biases are zeros at first
    return config, network


def names(words: Iterable[str], half: str) -> bool:
    """Whether words choose something else for a half of the encoders than `tiny`."""
    group = f"encoder/{half.split('/')[0]}="
    return any(word.startswith(group) for word in words)


def inputs_of(encoder: Encoder, raws: Iterable[Any] | None = None) -> Inputs:
    """A batch of this module's texts or recordings, or of others."""
    return encoder.frontend.collate([encoder.frontend(raw) for raw in (raws or RAW[encoder.modality])])


class Build(Protocol):
    def __call__(self, *words: str) -> tuple[DictConfig, EmotionNetwork]: ...


@contextmanager
def nothing_waits(pretend: Pretend) -> Iterator[None]:
    """The host does not wait for the accelerator meanwhile."""
    with pretend.watched() as seen:
        yield
    assert seen.runs
    assert not seen.waits, "\n".join(map(str, seen.waits))


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Mixed precision, or none."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def check_there(*tensors: Tensor | None) -> None:
    """Tensors are on the accelerator, and finite."""
    for tensor in tensors:
        assert tensor is not None
        assert tensor.device.type == NAME
        assert tensor.isfinite().all()


def check_near(
    found: Tensor, expected: Tensor, dtype: torch.dtype | None = None, name: str = "", larger: float = 1.0
) -> None:
    """What was computed there, in a precision, is what the CPU computed in float32; `larger` widens the tolerance."""
    check_there(found)
    there, here = found.detach().float().cpu(), expected.detach().float()
    scale = max(1.0, float(here.abs().max())) if here.numel() else 1.0
    torch.testing.assert_close(
        there / scale, here / scale, rtol=0, atol=larger * TOLERANCES[dtype], msg=lambda said: f"{name}: {said}"
    )


def gradients(*modules: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients by name."""
    return {
        f"{place}.{name}": parameter.grad.clone()
        for place, module in enumerate(modules)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def check_gradients(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype | None, larger: float = 1.0
) -> None:
    """The same parameters have gradients; in float32 they are the CPU's."""
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in found.items():
        if dtype is None:
            check_near(gradient, expected[name], name=name, larger=larger)
        else:
            check_there(gradient)
