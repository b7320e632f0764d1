"""Grad-CAM of the last convolution, over the spectrogram."""

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fourm_ser.analysis.examples import Example, choose_examples
from fourm_ser.analysis.findings import UnsuitedError, write_finding
from fourm_ser.analysis.gradcam import Activation, _draw, activate, gradcam, refuse_unsuited, stretch
from fourm_ser.analysis.spectrogram import Spectrogram, read_spectrogram
from fourm_ser.config import build
from fourm_ser.encoders.base import Encoder, Features, Resources
from fourm_ser.encoders.vggish import DIM, VggishEncoder, Whitening
from fourm_ser.fusion.unimodal import UnimodalFusion
from fourm_ser.models.network import EmotionNetwork, Head
from fourm_ser.runs.finished import OpenRun
from tests.conftest import Compose
from tests.drawn import Drawn, lightness, names, pixels

SECONDS = 1.5
SAMPLES = (np.random.default_rng(0).normal(0, 0.1, 24_000) * np.sin(np.arange(24_000) / 900)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder(composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Encoder]:
    """Builds an audio encoder with random weights, as a config does."""
    folder = tmp_path_factory.mktemp("cache")

    @cache  # the large ones take a second each
    def build_encoder(name: str, *overrides: str) -> Encoder:
        config = composed("fusion=audio_attention", f"encoder/audio={name}", "encoder.weights=random", *overrides)
        made: Encoder = build(config.encoder.audio, resources=Resources(folder)).eval()
        made.unfreeze("none")
        return made

    return build_encoder


def network_of(encoder: Encoder) -> EmotionNetwork:
    torch.manual_seed(0)
    fusion = UnimodalFusion(dims={"audio": encoder.dim}, modalities=["audio"], dim=8, heads=1, dropout=0.0, pool="mean")
    return EmotionNetwork(
        {"audio": encoder}, fusion, Head(dim=8, classes=4, layers=[], dropout=0.0, activation="relu", last_dropout=0.0)
    ).eval()


def backwards(network: EmotionNetwork, layer: nn.Module, target: int) -> tuple[list[Tensor], list[Tensor]]:
    """A convolution's output and its gradient, part by part: a plain backward pass through all parameters."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        output.retain_grad()
        kept.append(output)
        return output * 1  # what comes next may change its own copy

    encoder = network.by_modality["audio"]
    hook = layer.register_forward_hook(keep)
    network.requires_grad_(True)
    network(None, encoder.collate([encoder.frontend(SAMPLES)])).logits[0, target].backward()
    hook.remove()
    assert kept[0].grad is not None
    gradients = kept[0].grad.clone()
    network.zero_grad()
    network.requires_grad_(False)
    return list(kept[0].detach()), list(gradients)


@pytest.mark.slow(but=["tiny", "cnn"])
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("tiny", "convolutions.1"),
        ("mel_cnn", "convolutions.3.convolution"),
        ("prosody_cnn", "convolution"),
        ("vggish", "network.features.13"),
        ("panns", "network.conv_block6.conv2"),
    ],
)
def test_the_map_follows_the_paper(encoder: Callable[..., Encoder], name: str, layer: str) -> None:
    network = network_of(encoder(name))
    audio = network.by_modality["audio"]
    inputs = audio.frontend(SAMPLES)
    target = next(label for label in range(4) if activate(network, None, inputs, label).map.any())
    found = activate(network, None, inputs, target)
    assert found.name == layer
    assert audio.frozen
    assert all(parameter.grad is None for parameter in network.parameters())
    values, gradients = backwards(network, audio.get_submodule(f"stem.{layer}"), target)
    # By loops: a channel's weight is its mean gradient over all places of all parts of the utterance.
    rows = []
    weights = torch.stack(
        [torch.cat([part[channel].flatten() for part in gradients]).mean() for channel in range(len(values[0]))]
    )
    for part in values:
        for step in range(part.shape[1]):
            rows.append(torch.relu(sum(weight * own[step] for weight, own in zip(weights, part, strict=True))))
    expected = torch.stack([row.reshape(-1) for row in rows]).numpy()
    assert found.map.shape == expected.shape
    assert expected.max() > 0
    assert found.map == pytest.approx(expected, rel=1e-3, abs=float(1e-4 * expected.max()))


def test_a_channel_s_weight_is_what_the_logit_gains_by_it(encoder: Callable[..., Encoder]) -> None:
    network = network_of(encoder("tiny"))
    audio = network.by_modality["audio"]
    found = activate(network, None, audio.frontend(SAMPLES), target=2)
    inputs = audio.collate([audio.frontend(SAMPLES)])
    layer = audio.get_submodule("stem.convolutions.1")
    weights = found.gradients.mean((1, 2))
    places = found.values[0].size

    def logit(channel: int, more: float) -> float:
        raised = torch.zeros(1, len(weights), 1)
        raised[0, channel] = more
        hook = layer.register_forward_hook(lambda _, __, output: output + raised)
        with torch.no_grad():
            result = float(network(None, inputs).logits[0, 2])
        hook.remove()
        return result

    for channel in np.argsort(-np.abs(weights))[:3].tolist():
        slope = (logit(channel, 0.02) - logit(channel, -0.02)) / 0.04
        assert slope / places == pytest.approx(weights[channel], rel=0.05)


def test_hooks_leave_the_network_as_it_was(encoder: Callable[..., Encoder]) -> None:
    network = network_of(encoder("tiny"))
    audio = network.by_modality["audio"]
    inputs = audio.frontend(SAMPLES)
    with torch.no_grad():
        before = network(None, audio.collate([inputs])).logits
    found = activate(network, None, inputs, target=3)
    with torch.no_grad():
        after = network(None, audio.collate([inputs])).logits
    assert torch.equal(before, after)
    assert found.logit == pytest.approx(float(before[0, 3]))


def test_panns_s_map_ends_where_its_pooling_does(encoder: Callable[..., Encoder]) -> None:
    audio = encoder("panns")
    inputs = audio.frontend(SAMPLES)
    frames = audio(audio.collate([inputs])).features.shape[1]
    assert read_spectrogram(audio, SAMPLES, inputs).seen == 32 * frames < len(inputs["frames"])


def test_a_map_is_stretched_in_lines() -> None:
    small = np.array([[0.0, 2.0], [4.0, 6.0]])
    large = stretch(small, 8, 2)
    assert large.shape == (8, 2)
    assert large[[0, 1, 6, 7], 0].tolist() == [0.0, 0.0, 4.0, 4.0]  # halves of the outer values' own places
    assert np.diff(large[1:7, 0]).tolist() == pytest.approx([0.5, 1, 1, 1, 0.5])


@pytest.fixture(scope="module")
def opened(two_stage_run: Path) -> OpenRun:
    return OpenRun(two_stage_run)


@pytest.fixture(scope="module")
def examples(opened: OpenRun) -> list[Example]:
    return choose_examples(opened, "test", [], 1, 1)[:2]


def test_a_run_s_findings_have_its_texts(opened: OpenRun, examples: list[Example], tmp_path: Path) -> None:
    findings = gradcam(opened, examples, "test")
    text, audio = (opened.network.by_modality[modality] for modality in ("text", "audio"))
    for finding, example in zip(findings, examples, strict=True):
        target = opened.emotions.index(example.predicted)
        inputs = text.collate([text.frontend(example.text)])
        with torch.no_grad():
            sequence: Features = text.stem(inputs)
        samples = opened.data.readers()["audio"](example.row)
        found = activate(opened.network, sequence, audio.frontend(samples), target)
        assert finding.table["value"].to_numpy() == pytest.approx(found.map.flatten(), rel=1e-3, abs=1e-7)
        assert found.logit == pytest.approx(
            float(opened.features(opened.trained, "test").logits[_place(opened, example), target]), abs=1e-4
        )
        assert finding.table["second"].between(0, example.seconds).all()
        assert example.text in str(finding.figure.get_suptitle()).replace("\n", " ")  # type: ignore[union-attr]
        assert "The convolution runs along time alone" in finding.caption
    write_finding(findings[0], tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".png", ".svg"]


def _place(opened: OpenRun, example: Example) -> int:
    return opened.corpus.rows("test").tolist().index(example.row)


def test_what_cannot_have_a_map_is_named(
    encoder: Callable[..., Encoder], two_stage_run: Path, examples: list[Example]
) -> None:
    small = ["encoder.audio.architecture.num_hidden_layers=1", "encoder.audio.architecture.hidden_size=32"]
    small += ["encoder.audio.architecture.num_attention_heads=4"]
    with pytest.raises(UnsuitedError, match=r"wav2vec: there is no spectrogram .* Waveform"):
        refuse_unsuited(encoder("wav2vec", *small))
    with pytest.raises(UnsuitedError, match="lstm_mel has no convolution"):
        refuse_unsuited(encoder("lstm_mel"))
    vggish = encoder("vggish")
    assert isinstance(vggish, VggishEncoder)
    vggish.stem.whitening = Whitening(torch.eye(DIM), torch.zeros(DIM))
    with pytest.raises(UnsuitedError, match="which rounds"):
        refuse_unsuited(vggish)
    vggish.stem.whitening = None
    silent = OpenRun(two_stage_run)
    del silent.network.encoders["audio"]
    with pytest.raises(UnsuitedError, match="reads no audio"):
        gradcam(silent, examples, "test")


def test_the_spectrogram_and_the_map_over_it_stand_at_their_seconds_and_hertz() -> None:
    generator = np.random.default_rng(0)
    hertz = np.array([50.0, 100, 250, 500, 1000, 2000, 4000, 8000])
    times = 0.2 + 0.1 * np.arange(10)
    values, looked = generator.uniform(-3.0, 2.0, (10, 8)), generator.uniform(0.1, 1.0, (8, 8))
    spectrogram = Spectrogram(values, np.append(times, 1.2) - 0.05, hertz, seen=8)
    found = Activation(looked[None].astype(np.float32), np.ones((1, 8, 8), dtype=np.float32), 1.5, "conv")
    example = Example(0, "u1", "so it is", 1.4, "anger", "anger", 0.9, "the surest anger")
    samples = generator.normal(size=22_400).astype(np.float32)
    finding = _draw(cast(Encoder, SimpleNamespace(name="mel")), 1, example, samples, spectrogram, found)
    assert finding.figure is not None
    drawn = Drawn(finding.figure)
    _, plain, marked = finding.figure.axes
    greys, oranges = [], []
    for frame, band in product(range(10), range(1, 8)):  # the axis names no band below 100 Hz
        colours = []
        for axes in (plain, marked):
            x, y = float(pixels(axes.xaxis, times[frame])), names(axes.yaxis)[f"{hertz[band]:.0f}"]
            colours.append(drawn.colour(x, y))
        greys.append((values[frame, band], lightness(colours[0])))
        orange = colours[1][0] - colours[1][2]
        if frame < 8:
            oranges.append((looked[frame, band], orange))
        else:
            assert abs(orange) < 0.02  # behind the last part that the map stands for
    dark = np.array([grey for _, grey in sorted(greys)])
    assert (np.diff(dark) < 0.01).all()
    assert dark[0] - dark[-1] > 0.5
    strong = np.array([orange for _, orange in sorted(oranges)])
    assert (np.diff(strong) > -0.01).all()
    assert strong[-1] - strong[0] > 0.3
    bottom, *_, top = sorted(names(marked.yaxis).items(), key=lambda name: name[1])
    assert (bottom[0], top[0]) == ("100", "8000")
