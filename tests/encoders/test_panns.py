"""Cnn14: equal to panns_inference, exact under padding, batch norms that never learn a batch, what is saved."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from fourm_ser.encoders import panns
from fourm_ser.encoders.base import Encoder, Resources, Unfreeze
from fourm_ser.encoders.panns import PannsEncoder
from fourm_ser.errors import InputError
from fourm_ser.models.directory import Conditions, Model, load_model, save_model
from fourm_ser.models.network import build_network

Build = Callable[..., PannsEncoder]

URL = "http://127.0.0.1:9/Cnn14_16k_mAP%3D0.438.pth"
FILE = "Cnn14_16k_mAP=0.438.pth"


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    """A recording: noise whose loudness comes and goes, so that its frames differ."""
    count = round(16_000 * seconds)
    envelope = np.sin(np.arange(count) / 7_000) ** 2 + 0.01
    return (np.random.default_rng(count).normal(0, level, count) * envelope).astype(np.float32)


LENGTHS = (0.01, 0.32, 0.95, 2.07, 3.333, 20.0)


def liven(network: nn.Module) -> None:
    """Give batch norms statistics and scales that keep frames apart through twelve convolutions."""
    torch.manual_seed(5)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            first = name == "bn0"
            nn.init.normal_(module.running_mean, -30.0 if first else 0.0, 2.0 if first else 0.02)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, *((200.0, 300.0) if first else (0.4, 0.6)))  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 1.2, 1.7)
            nn.init.normal_(module.bias, 0.0, 0.1)


def make(cache: Path, **arguments: Any) -> PannsEncoder:
    settings: dict[str, Any] = {
        "name": "panns",
        "weights": "random",
        "init_seed": 0,
        "url": URL,
        "digest": None,
        "dropout": 0.2,
        "resources": Resources(cache),
    }
    return PannsEncoder(**{**settings, **arguments})


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Build:
    """Builds a narrow Cnn14; arguments change it."""
    monkeypatch.setattr(panns, "WIDTHS", (4, 8, 8, 12, 16, 24))
    return lambda **arguments: make(tmp_path, **arguments)


@pytest.fixture
def lively(build: Build) -> PannsEncoder:
    """A narrow Cnn14 whose norms do something."""
    encoder = build()
    liven(encoder.stem.network)
    return encoder


@pytest.fixture(scope="module")
def reference() -> Any:
    """panns_inference's own Cnn14 with the settings of 16 kHz, with random weights."""
    found = importlib.util.find_spec("panns_inference")
    if found is None:
        pytest.skip("panns_inference is not installed")
    # Its __init__ downloads a list of labels: the module beside it is imported without it.
    package = ModuleType("panns_inference")
    package.__path__ = list(found.submodule_search_locations or [])
    sys.modules["panns_inference"] = package
    settings = {"sample_rate": 16_000, "window_size": 512, "hop_size": 160, "mel_bins": 64, "fmin": 50, "fmax": 8000}
    torch.manual_seed(6)
    network = importlib.import_module("panns_inference.models").Cnn14(**settings, classes_num=527).eval()
    del sys.modules["panns_inference"]
    liven(network)
    return network


@pytest.fixture(scope="module")
def loaded(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> PannsEncoder:
    """A Cnn14 of full size out of a file like the official one, found by its folder."""
    folder = tmp_path_factory.mktemp("official")
    sampler = {"indexes": [np.arange(3)], "pointer": np.int64(2)}
    torch.save({"iteration": 600_000, "model": reference.state_dict(), "sampler": sampler}, folder / FILE)
    encoder = make(folder, weights=str(folder)).eval()
    (folder / FILE).unlink()
    return encoder


def test_filters_are_librosa_s(build: Build) -> None:
    expected = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=64, fmin=50, fmax=8000).T
    found = build().frontend.power.mel_scale.fb.numpy()  # type: ignore[attr-defined]
    assert (expected.max(0) > 1e-3).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("seconds", [0.311, 0.5, 2.0, 3.333])
@pytest.mark.parametrize("level", [1e-5, 0.1, 2.0])
def test_frames_are_those_of_torchlibrosa_and_librosa(
    build: Build, reference: Any, seconds: float, level: float
) -> None:
    raw = noise(seconds, level)
    found = build().frontend(raw)["frames"]
    with torch.no_grad():
        expected = reference.logmel_extractor(reference.spectrogram_extractor(torch.from_numpy(raw)[None]))[0, 0]
    assert found.shape == (1 + len(raw) // 160, 64)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # dB
    spectrum = np.abs(librosa.stft(raw.astype(float), n_fft=512, hop_length=160, pad_mode="reflect")) ** 2
    filters = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=64, fmin=50, fmax=8000)
    decibels = librosa.power_to_db(filters @ spectrum, top_db=None).T
    np.testing.assert_allclose(found.numpy(), decibels, rtol=0, atol=2e-3)


def test_silence_is_a_hundred_decibels_down(build: Build) -> None:
    assert (build().frontend(np.zeros(16_000, dtype=np.float32))["frames"] == -100).all()


def test_a_short_recording_is_padded_to_one_frame_of_features(lively: PannsEncoder) -> None:
    frontend = lively.eval().frontend
    for count in (1, 160, 4_959, 4_960):
        raw = noise(0.31)[:count]
        frames = frontend(raw)["frames"]
        assert frames.shape == (32, 64)
        assert torch.equal(frames, frontend(np.concatenate([raw, np.zeros(4_960 - count, np.float32)]))["frames"])
        with torch.no_grad():
            features, mask = lively(lively.collate([{"frames": frames}]))
        assert features.shape == (1, 1, 24)
        assert mask.all()


@pytest.mark.parametrize(("count", "frames"), [(10_079, 1), (10_080, 2), (16_000, 3), (15_199, 2), (15_200, 3)])
def test_frames_are_counted_by_floors(lively: PannsEncoder, count: int, frames: int) -> None:
    encoder = lively.eval()
    inputs = encoder.collate([encoder.frontend(noise(1.0)[:count])])
    with torch.no_grad():
        assert encoder(inputs).features.shape == (1, frames, 24)
    assert (1 + count // 160) // 32 == frames


def test_features_and_embedding_are_those_of_the_original(loaded: PannsEncoder, reference: Any) -> None:
    last: list[Tensor] = []
    hook = reference.conv_block6.register_forward_hook(lambda module, inputs, output: last.append(output))
    raws = [noise(0.4), noise(2.1)]
    with torch.no_grad():
        features, mask = loaded(loaded.collate([loaded.frontend(raw) for raw in raws]))
        for row, raw in enumerate(raws):
            expected = reference(torch.from_numpy(raw)[None])["embedding"]
            own = features[row, mask[row]]
            assert own.std() > 0.1
            torch.testing.assert_close(own, last[row][0].mean(2).T, rtol=0, atol=1e-4)
            found = torch.relu(reference.fc1(own.amax(0) + own.mean(0)))
            assert found.std() > 0.1
            torch.testing.assert_close(found[None], expected, rtol=0, atol=1e-4)
    hook.remove()


def test_alone_and_in_a_padded_batch(lively: PannsEncoder, check_padding: Callable[..., None]) -> None:
    check_padding(lively, [noise(seconds) for seconds in LENGTHS])


def test_alone_and_in_a_padded_batch_at_full_size(loaded: PannsEncoder, check_padding: Callable[..., None]) -> None:
    check_padding(loaded, [noise(seconds) for seconds in (0.01, 0.5, 0.75)])


@pytest.mark.parametrize("seconds", [0.96 + 0.01 * step for step in range(0, 33, 3)])
def test_whatever_frames_the_floors_leave_out(lively: PannsEncoder, seconds: float) -> None:
    encoder = lively.eval()
    items = [encoder.frontend(noise(length)) for length in (seconds, 2.0)]
    with torch.no_grad():
        alone = encoder(encoder.collate(items[:1])).features[0]
        features, mask = encoder(encoder.collate(items))
    torch.testing.assert_close(features[0, mask[0]], alone, rtol=0, atol=1e-5)


def test_what_stands_in_the_padding_means_nothing(lively: PannsEncoder) -> None:
    encoder = lively.eval()
    inputs = encoder.collate([encoder.frontend(noise(seconds)) for seconds in (0.7, 2.0)])
    with torch.no_grad():
        expected, mask = encoder(inputs)
        inputs["frames"][0, inputs["lengths"][0] :] = 1e4
        found = encoder(inputs).features
    assert torch.equal(found[mask], expected[mask])


def test_another_file_is_refused(build: Build, tmp_path: Path) -> None:
    state = official_state(build())
    torch.save({"model": state}, tmp_path / FILE)
    build(weights=str(tmp_path))
    state["att_block.att.weight"] = state.pop("bn0.running_mean")
    state["conv_block2.conv1.weight"] = torch.zeros(8, 4, 5, 5)
    torch.save({"model": state}, tmp_path / FILE)
    with pytest.raises(
        InputError,
        match=r"1 missing: bn0\.running_mean; 1 unexpected: att_block\.att\.weight; 1 of another shape: conv_block2",
    ):
        build(weights=str(tmp_path))
    with pytest.raises(InputError, match=rf"encoder\.audio\.weights=elsewhere: no such file.*{FILE}"):
        build(weights="elsewhere")
    with pytest.raises(InputError, match=r"cannot be downloaded.*weights=PATH"):
        build(weights="pretrained")


def test_a_checkpoint_of_another_sample_rate_is_refused(build: Build, tmp_path: Path) -> None:
    state = official_state(build())
    for filters in (torch.rand(513, 64), state["logmel_extractor.melW"].roll(1, 0)):
        state["logmel_extractor.melW"] = filters
        torch.save({"model": state}, tmp_path / FILE)
        with pytest.raises(InputError, match=r"logmel_extractor\.melW .* sample rate"):
            build(weights=str(tmp_path))


def official_state(encoder: PannsEncoder) -> dict[str, Tensor]:
    """The encoder's state as the official file has it, unused parts included."""
    unused = {
        "spectrogram_extractor.stft.conv_real.weight": torch.zeros(257, 1, 512),
        "spectrogram_extractor.stft.conv_imag.weight": torch.zeros(257, 1, 512),
        "logmel_extractor.melW": encoder.frontend.power.mel_scale.fb.clone(),  # type: ignore[attr-defined]
        "fc1.weight": torch.zeros(24, 24),
        "fc1.bias": torch.zeros(24),
        "fc_audioset.weight": torch.zeros(527, 24),
        "fc_audioset.bias": torch.zeros(527),
    }
    return {**encoder.stem.network.state_dict(), **unused}


def test_random_weights_hang_on_init_seed_alone(build: Build) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    encoder = build()
    first = encoder.fingerprint()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert build().fingerprint() == first
    assert build(init_seed=1).fingerprint() != first
    assert build(dropout=0.5).fingerprint() == first  # of training alone
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            assert (module.running_mean == 0).all()
            assert (module.running_var == 1).all()
    weight = encoder.stem.network.get_submodule("conv_block3.conv1").weight
    assert isinstance(weight, Tensor)
    assert weight.abs().max() <= (6 / (9 * 16)) ** 0.5  # Xavier's bound


def test_the_fingerprint_changes_with_weights_and_statistics_and_not_with_use(
    lively: PannsEncoder, known_fingerprint: Callable[[Encoder], str]
) -> None:
    encoder = lively.eval()
    first = encoder.fingerprint()
    encoder(encoder.collate([encoder.frontend(noise(1.0))]))
    assert encoder.fingerprint() == first
    encoder.stem.network.get_submodule("conv_block6.bn2").running_mean[0] += 1.0  # type: ignore[index, operator]
    assert encoder.fingerprint() != first
    assert known_fingerprint(encoder) == "723496e20c97d3239c40192b"


@pytest.mark.parametrize("what", ["none", "all", 1, 4, 7])
def test_what_is_unfrozen_trains(lively: PannsEncoder, what: Unfreeze) -> None:
    encoder = lively
    encoder.unfreeze(what)
    blocks = encoder.blocks()
    trains = {"none": 0, "all": 7}.get(str(what), what)
    found = [{parameter.requires_grad for parameter in block.parameters()} for block in blocks]
    assert found == [{place >= 7 - int(trains)} for place in range(7)]
    inside = [id(parameter) for block in blocks for parameter in block.parameters()]
    assert sorted(inside) == sorted(id(parameter) for parameter in encoder.parameters())
    assert encoder.frozen == (what == "none")
    if what == "none":
        return
    encoder.train()
    inputs = encoder.collate([encoder.frontend(noise(seconds)) for seconds in (0.5, 2.0)])
    features, mask = encoder(inputs)
    features[mask].square().sum().backward()
    for parameter in encoder.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad


@pytest.mark.parametrize("what", ["some", 0, 8, True])
def test_nonsense_is_refused(build: Build, what: Any) -> None:
    with pytest.raises(InputError, match=r"unfreeze\.audio=.*1 to 7 for panns"):
        build().unfreeze(what)


def test_batch_norms_never_learn_a_batch(build: Build) -> None:
    encoder = build(dropout=0.0)
    liven(encoder.stem.network)
    encoder.unfreeze("all")
    inputs = encoder.collate([encoder.frontend(noise(seconds)) for seconds in (0.5, 2.0)])
    with torch.no_grad():
        expected = encoder.eval()(inputs).features
    buffers = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder.train()
    assert encoder.stem.network.training
    assert torch.equal(encoder(inputs).features, expected)
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_dropout_only_while_the_stem_trains(build: Build) -> None:
    encoder = build(dropout=0.5)
    liven(encoder.stem.network)
    inputs = encoder.collate([encoder.frontend(noise(seconds)) for seconds in (0.5, 2.0)])
    with torch.no_grad():
        expected = encoder.eval()(inputs).features
        encoder.unfreeze("none")
        assert torch.equal(encoder.train()(inputs).features, expected)
        encoder.unfreeze(1)
        encoder.train()
        assert not torch.equal(encoder(inputs).features, encoder(inputs).features)


@pytest.mark.parametrize(("weights", "left_out"), [("random", True), ("file", True), ("file", False)])
def test_what_was_saved_is_what_is_loaded(
    build: Build, composed: Callable[..., DictConfig], tmp_path: Path, weights: str, left_out: bool
) -> None:
    official = tmp_path / "weights"
    official.mkdir()
    torch.save({"model": official_state(build(init_seed=9))}, official / FILE)
    config = composed(
        "encoder=tiny",
        "encoder/audio=panns",
        "fusion=audio_attention",
        f"encoder.audio.weights={official if weights == 'file' else 'random'}",
    )
    torch.manual_seed(1)
    network = build_network(config, 4, Resources(tmp_path / "cache")).eval()
    encoder = network.by_modality["audio"]
    if not left_out:
        liven(encoder)
    inputs = encoder.collate([encoder.frontend(noise(seconds)) for seconds in (0.5, 3.0)])
    expected = network(text=None, audio=inputs).logits
    fingerprints = {"audio": encoder.fingerprint()} if left_out else {}
    save_model(
        tmp_path / "model", Model(network, list("abcd"), Conditions([], "32", "32-true", None)), config, fingerprints
    )
    if not left_out:
        (official / FILE).unlink()
    saved = sorted(path.name for path in (tmp_path / "model").rglob("*"))
    assert saved == ["config.yaml", "labels.json", "model.safetensors"]
    again = load_model(tmp_path / "model", tmp_path / "cache").network
    assert torch.equal(again(text=None, audio=inputs).logits, expected)
    assert again.by_modality["audio"].fingerprint() == encoder.fingerprint()
    state = load_file(tmp_path / "model" / "model.safetensors")
    assert any(name.startswith("encoders.audio.") for name in state) != left_out
