"""What the config's `augment` does to a run: copies in the store, versions on the fly, refusals, what is told."""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from fourm_ser.config import build, upgrade
from fourm_ser.data.audio import read_audio
from fourm_ser.data.batch import Batch
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.data.waveforms import RawVersions, StoredVersions, Waveforms
from fourm_ser.encoders.base import Features, Resources
from fourm_ser.errors import InputError
from fourm_ser.models.features import Encoding
from fourm_ser.models.frozen import with_features
from fourm_ser.models.network import EmotionNetwork, build_network
from fourm_ser.models.sources import make_sources
from fourm_ser.report.axes import find_axes
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.training import experiment
from fourm_ser.training.augmentation import Augmentation
from fourm_ser.training.record import record
from fourm_ser.training.stages import read_stages
from tests.conftest import Compose

pytestmark = pytest.mark.usefixtures("no_figures")

CHANGED = ["fusion=audio_attention", "augment=waveform", "augment.copies=2", "data.utterances=40", "data.workers=0"]


class Work:
    """A small corpus and a network that hears it, under a config."""

    def __init__(self, config: DictConfig, root: Path) -> None:
        config = config.copy()
        config.cache = str(root)
        self.config = record(config, RunDirectory(root / f"run {len(list(root.glob('run*')))}"))
        self.encoding = Encoding.of(self.config)
        corpus = build(self.config.data, cache=root)
        self.data = EmotionDataModule(corpus, pin_memory=False, seed=self.config.seed)
        self.data.prepare_data()
        self.data.setup()
        self.network: EmotionNetwork = build_network(self.config, 4, Resources(root, corpus.training_texts))
        self.network.eval()

    def serve(self, unfreeze: str = "none") -> int:
        self.network.by_modality["audio"].unfreeze(unfreeze)
        variation = Augmentation.of(self.config).variation
        sources, encoded = make_sources(self.network, self.data, self.encoding, variation)
        self.data.serve(sources, 8, versions=variation is not None)
        return encoded["audio"]

    def batches(self, epoch: int = 0) -> list[Batch]:
        """The batches of training, as the network is given them."""
        loader: Any = self.data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        return [with_features(self.network, batch.to(torch.device("cpu")), self.encoding) for batch in loader]


def heard(batches: list[Batch]) -> dict[int, np.ndarray]:
    """Each utterance's own features, by its position."""
    found = {}
    for batch in batches:
        assert isinstance(batch.audio, Features)
        for row, features, own in zip(batch.rows.tolist(), batch.audio.features, batch.audio.mask, strict=True):
            found[row] = features[own].detach().numpy()
    return found


@pytest.fixture(scope="module")
def config(composed: Compose, slice_of_demo: list[str]) -> DictConfig:
    return composed(*slice_of_demo, *CHANGED)


@pytest.fixture
def work(config: DictConfig, tmp_path: Path) -> Work:
    return Work(config, tmp_path)


def test_the_store_holds_what_the_encoder_makes_of_the_changed_recordings_once(
    work: Work, config: DictConfig, tmp_path: Path
) -> None:
    frame, train = work.data.corpus.frame, work.data.corpus.split.train
    assert work.serve() == len(frame) + 2 * len(train)
    assert work.serve() == Work(config, tmp_path).serve() == 0
    more = config.copy()
    more.augment.copies = 3
    assert Work(more, tmp_path).serve() == len(train)  # the third of each
    more.seed = 7
    assert Work(more, tmp_path).serve() == 0
    more.augment.seed = 7
    assert Work(more, tmp_path).serve() == 3 * len(train)
    source = work.data.sources["audio"]
    assert isinstance(source, StoredVersions)
    encoder = work.network.by_modality["audio"]
    waveforms = Waveforms(build(work.config.augment.waveform), OmegaConf.to_container(work.config.augment.waveform))  # type: ignore[arg-type]
    keys = work.data.keys()["audio"]
    for row in train[:4].tolist():
        recording = read_audio(frame["file"][row], frame["start"][row], frame["end"][row])
        for version in range(3):
            key = source.versions.key(row, version)
            by_hand = waveforms(recording, key) if version else recording
            with torch.no_grad():
                alone = encoder.stem_features(encoder.collate([encoder.frontend(by_hand)])).features[0]
            torch.testing.assert_close(source.store.read(key), alone, rtol=0, atol=1e-4)
        assert source.versions.key(row, 0) == keys[row]
    others = np.setdiff1d(np.arange(len(frame)), train)
    assert not any(source.versions.key(row, 1) in source.store for row in others.tolist())


def test_an_epoch_draws_one_version_of_each_and_without_a_store_it_is_the_same(
    work: Work, config: DictConfig, tmp_path: Path
) -> None:
    work.serve()
    plain = config.copy()
    plain.encode.store = False
    raw = Work(plain, tmp_path)
    assert raw.serve() == 0
    assert isinstance(raw.data.sources["audio"], RawVersions)
    epochs = []
    for epoch in (0, 1):
        stored, computed = heard(work.batches(epoch)), heard(raw.batches(epoch))
        assert stored.keys() == computed.keys() == set(work.data.corpus.split.train.tolist())
        for row, features in stored.items():
            np.testing.assert_allclose(features, computed[row], atol=1e-4)
        epochs.append(stored)
    same = [np.array_equal(epochs[0][row], epochs[1][row]) for row in epochs[0]]
    assert 0.1 < np.mean(same) < 0.7  # of three versions
    again = heard(work.batches(1))
    assert all(np.array_equal(again[row], epochs[1][row]) for row in again)


def test_validation_and_test_hear_the_recordings(work: Work, config: DictConfig, tmp_path: Path) -> None:
    never = config.copy()
    never.augment.waveform, never.augment.copies = None, 0
    plain = Work(never, tmp_path)
    for unfreeze in ("none", "all"):
        work.serve(unfreeze)
        plain.serve(unfreeze)
        for side in ("val_dataloader", "test_dataloader"):
            for one, other in zip(getattr(work.data, side)(), getattr(plain.data, side)(), strict=True):
                assert torch.equal(one.rows, other.rows)
                one, other = (batch.to(torch.device("cpu")).audio for batch in (one, other))
                if unfreeze == "none":
                    one, other = one._asdict(), other._asdict()
                assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_encoder_that_trains_hears_another_version_in_every_epoch_the_same_with_workers(
    work: Work, config: DictConfig, tmp_path: Path
) -> None:
    assert work.serve("all") == 0

    def inputs(of: Work, epoch: int) -> dict[int, float]:
        loader: Any = of.data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        return {
            row: float(values.sum())
            for batch in loader
            for row, values in zip(batch.rows.tolist(), next(iter(batch.audio.values())), strict=True)
        }

    first, second = inputs(work, 0), inputs(work, 1)
    assert np.mean([first[row] == second[row] for row in first]) < 0.3  # some draw no change at all
    other = config.copy()
    other.data.workers = 2
    parallel = Work(other, tmp_path)
    parallel.serve("all")
    assert inputs(parallel, 1) == second


def test_a_run_counts_what_it_encoded(config: DictConfig, tmp_path: Path) -> None:
    short = config.copy()
    short.cache = str(tmp_path)
    short.stage = {"transfer": {**short.stage.transfer, "epochs": 1}}
    short.augment.mixup, short.augment.spec.time, short.augment.spec.feature = 0.2, 0.2, 0.2
    metrics = experiment.run(short, tmp_path / "run")
    corpus = build(short.data, cache=tmp_path)
    corpus.setup()
    assert metrics["encoded/audio"] == len(corpus.frame) + 2 * len(corpus.split.train)
    recorded = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert recorded.augment == short.augment


# What is refused, and told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["augment.copies=2"], r"^augment\.copies=2: nothing says how the copies differ\. Add augment=waveform"),
        (["augment.copies=1.5"], r"^augment\.copies=1\.5: expected a whole number"),
        (["augment.mixup=-1"], r"^augment\.mixup=-1: expected a number of 0 or more"),
        (["augment.spec.time=1"], r"^augment\.spec\.time=1: expected a share"),
        (["+augment.spec.tiem=1"], r"^augment\.spec\.tiem: no such key\. Did you mean augment\.spec\.time\?"),
        (["+augment.mixpu=1"], r"^augment\.mixpu: no such key\. Did you mean augment\.mixup\?"),
        (
            ["augment=waveform", "augment.waveform.noise.snr=[9,1]"],
            r"^augment\.waveform\.noise\.snr=\[9, 1\]: the least",
        ),
        (["augment=waveform", "augment.waveform.gain=3"], r"^augment\.waveform\.gain: expected a transform"),
        (["augment=waveform", "+augment.waveform.x={p: 1}"], r"^augment\.waveform\.x: expected a transform"),
        (
            ["augment=waveform", "+augment.waveform.x={_target_: torch_audiomentations.Gain, p: 7, output_type: dict}"],
            r"^augment\.waveform\.x: ",
        ),
        (["augment=waveform", "+augment.waveform.x={_target_: nowhere.Gain}"], r"^augment\.waveform\.x: .*nowhere"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_any_work(
    words: list[str], said: str, composed: Compose, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        experiment.run(composed(f"cache={tmp_path / 'cache'}", "trainer=cpu", *words), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_where_torch_audiomentations_is_missing_it_is_said_how_to_install_it(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_audiomentations", None)
    band = "+augment.waveform.band={_target_: torch_audiomentations.BandPassFilter, p: 0.5, output_type: dict}"
    config = composed(f"cache={tmp_path / 'cache'}", "trainer=cpu", "augment=waveform", band)
    said = r'^augment\.waveform\.band: torch-audiomentations is not installed .*pip install "fourm_ser\[augment\]"$'
    with pytest.raises(InputError, match=said):
        experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "cache").exists()
    assert Augmentation.of(composed("augment=waveform")).variation is not None  # its own need none


def test_a_transform_can_be_switched_off_and_the_order_counts(composed: Compose) -> None:
    def made(*words: str) -> Waveforms:
        variation = Augmentation.of(composed("augment=waveform", *words)).variation
        assert variation is not None
        return variation.waveforms

    assert list(made().transforms) == ["speed", "reverberation", "noise", "gain"]
    assert list(made("augment.waveform.speed=null").transforms) == ["reverberation", "noise", "gain"]
    swapped = composed("augment=waveform")
    swapped.augment.waveform = dict(reversed(swapped.augment.waveform.items()))
    variation = Augmentation.of(swapped).variation
    assert variation is not None
    settings = {made().settings, made("augment.waveform.speed=null").settings, variation.waveforms.settings}
    assert len(settings) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["augment.mixup=0.2", "stage=transfer", "stage.transfer.batch_size=1"], "augment.mixup=0.2: batches of one"),
        (["augment=spec", "stage=finetune"], "augment.spec: no features of frozen encoders of audio in stage finetune"),
        (
            ["augment=spec", "stage=transfer", "fusion=text_attention"],
            "augment.spec: no features of frozen encoders of audio",
        ),
        (["augment=spec", "stage=transfer", "encode.pool=mean"], "augment.spec.time=0.1: encode.pool=mean leaves one"),
        (["augment=waveform", "augment.copies=0", "stage=transfer"], "augment.copies=0: stage transfer hears"),
        (["augment=waveform", "fusion=text_attention"], "augment.waveform: changes nothing"),
        (["augment=none", "stage=two_stage", "encode.pool=mean"], ""),
        (["augment=spec", "augment.mixup=0.2", "stage=transfer"], ""),
        (["augment=waveform", "stage=two_stage"], ""),
        (["augment=waveform", "augment.copies=0", "stage=finetune"], ""),
    ],
)
def test_what_does_nothing_in_a_run_is_told(
    words: list[str], said: str, composed: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed(*words)
    stages = read_stages(build(config.stage), build(config.optimizer), build(config.scheduler))
    with caplog.at_level(logging.INFO):
        Augmentation.of(config).tell(config, stages)
    assert len(caplog.messages) == bool(said)
    assert caplog.text.count(said) if said else not caplog.text


def test_a_record_that_says_nothing_of_it_is_that_of_a_run_without(composed: Compose) -> None:
    config = composed("augment=none")
    before = config.copy()
    OmegaConf.set_struct(before, False)
    del before["augment"]
    assert Augmentation.of(before) == Augmentation()
    upgraded = upgrade(before)
    assert upgraded.augment == config.augment
    augmentation = Augmentation.of(upgraded)
    assert (augmentation.mixup, augmentation.variation) == (0.0, None)


def test_reports_tell_runs_apart_by_it() -> None:
    alphas = {"none": "0", "mixup": "0.2"}
    settings = [{"augment": option, "augment.mixup": alpha, "seed": "0"} for option, alpha in alphas.items()]
    assert find_axes(settings, {"augment"}, {"augment"}) == ["augment"]
