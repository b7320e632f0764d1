"""VGGish: equal to torchvggish on its own examples, exact in batches, what trains, what is saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from fourm_ser.encoders import vggish
from fourm_ser.encoders.base import Encoder, Resources, Unfreeze
from fourm_ser.encoders.vggish import VggishEncoder
from fourm_ser.errors import InputError
from fourm_ser.models.directory import Conditions, Model, load_model, save_model
from fourm_ser.models.network import build_network

Build = Callable[..., VggishEncoder]

URL = "http://127.0.0.1:9/vggish-10086976.pth"
PCA_URL = "http://127.0.0.1:9/vggish_pca_params-970ea276.pth"


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    """A recording: noise whose loudness comes and goes, so that its examples differ."""
    count = round(16_000 * seconds)
    envelope = np.sin(np.arange(count) / 7_000) ** 2 + 0.01
    return (np.random.default_rng(count).normal(0, level, count) * envelope).astype(np.float32)


LENGTHS = (0.01, 0.3, 0.975, 2.0, 20.0)

CONTENT = {
    "noise": noise(3.1),
    "loud": noise(2.0, 3.0),
    "quiet": noise(2.0, 1e-5),
    "silence": np.zeros(16_000, dtype=np.float32),
    "low": np.sin(2 * np.pi * 40 / 16_000 * np.arange(20_000)).astype(np.float32),
    "sweep": np.sin(np.cumsum(np.linspace(0.001, np.pi, 33_333))).astype(np.float32),
    "clicks": np.where(np.arange(16_000) % 4_001 == 0, 1.0, 0.0).astype(np.float32),
    "constant": np.full(16_000, 0.5, dtype=np.float32),
    "one example": noise(0.975),
    "one sample less than two": noise(1.935)[:-1],
    "double": noise(1.5).astype(np.float64),
}


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Build:
    """Builds a narrow VGGish; arguments change it."""
    monkeypatch.setattr(vggish, "STAGES", ((4,), (8,), (8, 8), (16, 16)))
    monkeypatch.setattr(vggish, "CONNECTED", (32, 32, 128))
    return lambda **arguments: make(tmp_path, **arguments)


def make(cache: Path, **arguments: Any) -> VggishEncoder:
    settings: dict[str, Any] = {
        "name": "vggish",
        "weights": "random",
        "init_seed": 0,
        "url": URL,
        "digest": "10086976",
        "pca": False,
        "pca_url": PCA_URL,
        "pca_digest": "970ea276",
        "drop_tail": False,
        "resources": Resources(cache),
    }
    return VggishEncoder(**{**settings, **arguments})


@pytest.fixture(scope="module")
def reference() -> Any:
    """torchvggish's own network, with random weights that keep examples apart."""
    network = pytest.importorskip("torchvggish.torchvggish")._vgg(postprocess=False).eval()
    torch.manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            nn.init.uniform_(module.bias, -0.1, 0.1)  # type: ignore[arg-type]
    return network


@pytest.fixture(scope="module")
def official(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's state dict, where the official file would be."""
    path = tmp_path_factory.mktemp("official") / "vggish-10086976.pth"
    torch.save(reference.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def loaded(official: Path) -> VggishEncoder:
    """A VGGish of full size out of the official file."""
    return make(official.parent, weights=str(official)).eval()


def made_up_pca(outputs: Tensor) -> dict[str, np.ndarray]:
    """PCA parameters that spread the outputs over all of [-2, 2] and beyond."""
    rng = np.random.default_rng(3)
    rotation, _ = np.linalg.qr(rng.normal(size=(128, 128)))
    return {
        "pca_eigen_vectors": rotation / float(outputs.std()),
        "pca_means": outputs.numpy().mean(0, dtype=np.float64) + rng.normal(0, 0.1, 128),
    }


@pytest.fixture
def pca_file(tmp_path: Path) -> Path:
    """PCA parameters as the official file has them; the vectors lie in memory column after column."""
    path = tmp_path / "vggish_pca_params-970ea276.pth"
    parameters = {name: torch.from_numpy(values) for name, values in made_up_pca(torch.rand(50, 128)).items()}
    parameters["pca_eigen_vectors"] = parameters["pca_eigen_vectors"].T.contiguous().T
    torch.save(parameters, path)
    return path


@pytest.mark.parametrize("name", CONTENT)
def test_examples_are_those_of_the_original(build: Build, name: str) -> None:
    original = pytest.importorskip("torchvggish.vggish_input").waveform_to_examples
    expected = original(CONTENT[name], 16_000).detach()[:, 0]
    found = build(drop_tail=True).frontend(CONTENT[name])["examples"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    kept = build().frontend(CONTENT[name])["examples"]
    assert torch.equal(kept[: len(expected)], found)


def test_filters_are_those_of_the_original(build: Build) -> None:
    original = pytest.importorskip("torchvggish.mel_features").spectrogram_to_mel_matrix(64, 257, 16_000, 125, 7500)
    np.testing.assert_allclose(build().frontend.filters, original, rtol=0, atol=1e-12)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("frames", "kept", "dropped"), [(1, 1, 1), (95, 1, 1), (96, 1, 1), (97, 2, 1), (192, 2, 2), (200, 3, 2)]
)
def test_the_tail_is_filled_up_with_zeros_or_dropped(build: Build, frames: int, kept: int, dropped: int) -> None:
    raw = np.full(400 + 160 * (frames - 1) + 159, 0.3, dtype=np.float32)
    examples = build().frontend(raw)["examples"]
    assert examples.shape == (kept, 96, 64)
    rows = examples.flatten(0, 1)
    assert (rows[frames:] == 0).all()
    assert (rows[:frames] != 0).all()
    original = build(drop_tail=True).frontend(raw)["examples"]
    assert original.shape == (dropped, 96, 64)
    assert torch.equal(original, examples[:dropped])


def test_a_recording_shorter_than_a_window_is_padded(build: Build) -> None:
    frontend = build().frontend
    short = noise(0.01)
    padded = np.concatenate([short, np.zeros(240, dtype=np.float32)])
    for raw in (short, short[::-1], short[:1]):
        assert frontend(raw)["examples"].shape == (1, 96, 64)
    assert torch.equal(frontend(short)["examples"], frontend(padded)["examples"])


def test_embeddings_are_those_of_the_original(loaded: VggishEncoder, reference: nn.Module) -> None:
    items = [loaded.frontend(noise(seconds)) for seconds in (0.5, 2.9, 1.0)]
    with torch.no_grad():
        features, mask = loaded(loaded.collate(items))
        for row, item in enumerate(items):
            expected = reference(item["examples"][:, None])
            assert expected.std() > 0.1
            torch.testing.assert_close(features[row, mask[row]], expected, rtol=0, atol=1e-4)
    assert mask.sum(1).tolist() == [1, 3, 2]


def test_postprocessing_is_that_of_the_original(loaded: VggishEncoder, reference: nn.Module, tmp_path: Path) -> None:
    examples = loaded.frontend(noise(6.0))["examples"]
    with torch.no_grad():
        plain = reference(examples[:, None])
    parameters = made_up_pca(plain)
    torch.save(parameters, tmp_path / "pca.pth")
    whitening = vggish.load_whitening(tmp_path / "pca.pth")
    original = pytest.importorskip("torchvggish.torchvggish").Postprocessor
    processor = original.__new__(original)  # its constructor downloads
    processor._pca_matrix = torch.as_tensor(parameters["pca_eigen_vectors"]).float()
    processor._pca_means = torch.as_tensor(parameters["pca_means"].reshape(-1, 1)).float()
    expected, found = processor.postprocess(plain), whitening(plain)
    exact = (plain.double().numpy() - parameters["pca_means"]) @ parameters["pca_eigen_vectors"].T
    steps = (np.clip(exact, -2, 2) + 2) * 255 / 4
    assert (np.abs(exact) > 2).any()
    assert len(np.unique(np.round(steps))) > 100
    # Where two steps meet, the roundings of two ways to compute the same decide.
    clear = torch.from_numpy(np.abs(steps - np.floor(steps) - 0.5) > 1e-3)
    assert clear.float().mean() > 0.99
    assert torch.equal(found[clear], expected[clear])
    assert torch.equal(found[clear].double(), torch.from_numpy(np.round(steps))[clear])
    assert (found - expected).abs().max() <= 1
    assert found.shape == (7, 128)
    assert whitening(plain[:1]).shape == (1, 128)  # the original would drop the axis


def test_features_are_whole_numbers_with_pca(build: Build, pca_file: Path) -> None:
    plain, whitened = build().eval(), build(pca=str(pca_file)).eval()
    inputs = plain.collate([plain.frontend(noise(seconds)) for seconds in (0.5, 3.0)])
    with torch.no_grad():
        features, mask = whitened(inputs)
        expected = whitened.stem.whitening(plain(inputs).features[mask])  # type: ignore[misc]
    assert torch.equal(features[mask], expected)
    assert torch.equal(features, features.round())
    assert features.min() >= 0
    assert features.max() <= 255


@pytest.mark.parametrize("drop_tail", [False, True])
def test_alone_and_in_a_padded_batch(build: Build, check_padding: Callable[..., None], drop_tail: bool) -> None:
    check_padding(build(drop_tail=drop_tail), [noise(seconds) for seconds in LENGTHS])


def test_alone_and_in_a_padded_batch_at_full_size(loaded: VggishEncoder, check_padding: Callable[..., None]) -> None:
    check_padding(loaded, [noise(seconds) for seconds in (0.01, 2.0, 3.5)])


def test_a_batch_is_one_pass(build: Build) -> None:
    encoder = build().eval()
    passes: list[int] = []
    encoder.stem.network.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    items = [encoder.frontend(noise(seconds)) for seconds in LENGTHS]
    batch = encoder.collate(items)
    assert batch["examples"].shape == (27, 96, 64)
    assert batch["counts"].tolist() == [1, 1, 1, 3, 21]
    encoder(batch)
    assert passes == [27]


def test_a_program_traced_on_few_examples_computes_many(build: Build) -> None:
    network = build().stem.network.requires_grad_(False)
    with torch.no_grad():
        program = torch.export.export(network, (torch.randn(2, 96, 64),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        for count in (1, 7, 31):
            examples = torch.randn(count, 96, 64)
            torch.testing.assert_close(program.module()(examples), network(examples), rtol=1e-4, atol=1e-5)


def test_the_official_file_may_be_given_by_its_folder(build: Build, tmp_path: Path) -> None:
    source = build(init_seed=4)
    torch.save(source.stem.network.state_dict(), tmp_path / "vggish-10086976.pth")
    for weights in (tmp_path, tmp_path / "vggish-10086976.pth"):
        assert build(weights=str(weights)).fingerprint() == source.fingerprint()
    names = set(source.stem.network.state_dict())
    assert {"features.0.weight", "features.13.bias", "embeddings.4.weight"} <= names
    assert len(names) == 18


def test_another_file_is_refused(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "vggish-10086976.pth"
    state = build().stem.network.state_dict()
    state["pproc.eigen"] = state.pop("embeddings.4.bias")
    state["features.3.weight"] = torch.zeros(2, 2)
    torch.save(state, path)
    with pytest.raises(
        InputError,
        match=r"1 missing: embeddings\.4\.bias; 1 unexpected: pproc\.eigen; 1 of another shape: features\.3\.weight",
    ):
        build(weights=str(tmp_path))
    with pytest.raises(InputError, match=r"encoder\.audio\.weights=elsewhere: no such file.*vggish-10086976\.pth"):
        build(weights="elsewhere")


def test_what_cannot_be_downloaded_is_named(build: Build) -> None:
    with pytest.raises(InputError, match=r"vggish-10086976\.pth: cannot be downloaded.*weights=PATH"):
        build(weights="pretrained")
    with pytest.raises(InputError, match=r"pca_params-970ea276\.pth: cannot be downloaded.*encoder\.audio\.pca=PATH"):
        build(pca=True)


@pytest.mark.parametrize(
    "content",
    [
        {"pca_eigen_vectors": torch.zeros(128, 128)},
        {"pca_eigen_vectors": torch.zeros(64, 128), "pca_means": torch.zeros(128)},
        {"features.0.weight": torch.zeros(3)},
    ],
)
def test_other_pca_parameters_are_refused(build: Build, tmp_path: Path, content: dict[str, Tensor]) -> None:
    torch.save(content, tmp_path / "pca.pth")
    with pytest.raises(InputError, match=rf"pca\.pth: holds {next(iter(content))} .*pca_means"):
        build(pca=str(tmp_path / "pca.pth"))
    (tmp_path / "pca.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"pca\.safetensors: no safetensors file"):
        build(pca=str(tmp_path / "pca.safetensors"))


def test_random_weights_hang_on_init_seed_alone(build: Build) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build().fingerprint()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert build().fingerprint() == first
    assert build(init_seed=1).fingerprint() != first


def test_random_weights_keep_examples_apart(build: Build) -> None:
    encoder = build().eval()
    with torch.no_grad():
        features = encoder(encoder.collate([encoder.frontend(noise(5.0))])).features[0]
    assert features.std() > 0.1
    assert torch.cdist(features, features).fill_diagonal_(1).min() > 0.1


@pytest.mark.parametrize("what", ["none", "all", 1, 3, 5, 7])
def test_what_is_unfrozen_trains(build: Build, what: Unfreeze) -> None:
    encoder = build()
    encoder.unfreeze(what)
    blocks = encoder.blocks()
    layers = [[type(layer).__name__ for layer in block.children()].count("Conv2d") for block in blocks]
    assert layers == [1, 1, 2, 2, 0, 0, 0]
    trains = {"none": 0, "all": 7}.get(str(what), what)
    found = [{parameter.requires_grad for parameter in block.parameters()} for block in blocks]
    assert found == [{place >= 7 - int(trains)} for place in range(7)]
    inside = [id(parameter) for block in blocks for parameter in block.parameters()]
    assert sorted(inside) == sorted(id(parameter) for parameter in encoder.parameters())
    assert encoder.frozen == (what == "none")
    encoder.train()
    assert encoder.stem.network.training == (what != "none")
    if what == "none":
        return
    inputs = encoder.collate([encoder.frontend(noise(seconds)) for seconds in (0.5, 2.0)])
    encoder(inputs).features.square().sum().backward()
    for parameter in encoder.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad


@pytest.mark.parametrize("what", ["some", 0, 8, True])
def test_nonsense_is_refused(build: Build, what: Any) -> None:
    with pytest.raises(InputError, match=r"unfreeze\.audio=.*1 to 7 for vggish"):
        build().unfreeze(what)


@pytest.mark.parametrize("what", ["all", 1])
def test_pca_refuses_to_train(build: Build, pca_file: Path, what: Unfreeze) -> None:
    encoder = build(pca=str(pca_file))
    with pytest.raises(InputError, match=rf"unfreeze\.audio={what}: .*no gradient.*encoder\.audio\.pca=false"):
        encoder.unfreeze(what)
    encoder.unfreeze("none")
    assert encoder.frozen


def test_the_fingerprint_changes_with_what_changes_features(
    build: Build, pca_file: Path, tmp_path: Path, known_fingerprint: Callable[[Encoder], str]
) -> None:
    parameters = made_up_pca(torch.rand(50, 128))
    parameters["pca_means"][0] += 0.01
    torch.save(parameters, tmp_path / "other.pth")
    encoders = {
        "plain": build(),
        "drop_tail": build(drop_tail=True),
        "pca": build(pca=str(pca_file)),
        "other pca": build(pca=str(tmp_path / "other.pth")),
        "moved": build(),
    }
    with torch.no_grad():
        encoders["moved"].stem.network.embeddings[4].bias[0] += 0.01  # type: ignore[index, operator]
    found = {name: encoder.fingerprint() for name, encoder in encoders.items()}
    assert len(set(found.values())) == len(found)
    plain = encoders["plain"].eval()
    plain(plain.collate([plain.frontend(noise(1.0))]))
    assert plain.fingerprint() == found["plain"]
    assert build(pca=str(tmp_path)).fingerprint() == found["pca"]  # by the folder of the file
    assert known_fingerprint(encoders["plain"]) == "0e3630ad7cd9867bf3c4f523"
    assert known_fingerprint(encoders["pca"]) == "4a48c48f546f6dc6729bb42f"


@pytest.mark.parametrize(
    ("weights", "pca", "left_out"),
    [
        ("random", False, True),
        ("file", False, False),
        ("file", False, True),
        ("random", True, True),
        ("file", True, False),
    ],
)
def test_what_was_saved_is_what_is_loaded(
    build: Build,
    composed: Callable[..., DictConfig],
    tmp_path: Path,
    pca_file: Path,
    weights: str,
    pca: bool,
    left_out: bool,
) -> None:
    official = tmp_path / "weights" / "vggish-10086976.pth"
    official.parent.mkdir()
    torch.save(build(init_seed=9).stem.network.state_dict(), official)
    config = composed(
        "encoder=tiny",
        "encoder/audio=vggish",
        "fusion=audio_attention",
        "encoder.audio.drop_tail=true",
        f"encoder.audio.weights={official if weights == 'file' else 'random'}",
        f"encoder.audio.pca={pca_file if pca else 'false'}",
    )
    torch.manual_seed(1)
    network = build_network(config, 4, Resources(tmp_path / "cache")).eval()
    encoder = network.by_modality["audio"]
    if not left_out and not pca:
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    inputs = encoder.collate([encoder.frontend(noise(seconds)) for seconds in (0.5, 3.0)])
    expected = network(text=None, audio=inputs).logits
    fingerprints = {"audio": encoder.fingerprint()} if left_out else {}
    save_model(
        tmp_path / "model", Model(network, list("abcd"), Conditions([], "32", "32-true", None)), config, fingerprints
    )
    pca_file.unlink()
    if not left_out:
        official.unlink()
    saved = sorted(path.name for path in (tmp_path / "model").rglob("*") if path.is_file())
    assert saved == sorted(["config.yaml", "labels.json", "model.safetensors", *["pca.safetensors"] * pca])
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    again = load_model(tmp_path / "elsewhere", tmp_path / "cache").network
    assert torch.equal(again(text=None, audio=inputs).logits, expected)
    assert again.by_modality["audio"].fingerprint() == encoder.fingerprint()
    state = load_file(tmp_path / "elsewhere" / "model.safetensors")
    assert any(name.startswith("encoders.audio.") for name in state) != left_out
    if pca:  # and once more, from the directory's own parameters
        fields = DictConfig({"folder": str(tmp_path / "elsewhere"), **config})
        fields.encoder.audio.pca = "${folder}/audio/pca.safetensors"
        save_model(
            tmp_path / "model", Model(again, list("abcd"), Conditions([], "32", "32-true", None)), fields, fingerprints
        )
        assert load_model(tmp_path / "model", tmp_path)[0].by_modality["audio"].fingerprint() == encoder.fingerprint()
