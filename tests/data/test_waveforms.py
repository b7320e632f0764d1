"""Changes of waveforms: each does what it says, drawn by a word alone; which version an utterance is heard in."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourm_ser.data.batch import Utterances
from fourm_ser.data.buckets import BucketBatchSampler, VersionSampler
from fourm_ser.data.waveforms import (
    Gain,
    Noise,
    RawVersions,
    Reverberation,
    Speed,
    StoredVersions,
    VersionReader,
    Versions,
    Waveforms,
)
from fourm_ser.encoders.base import Inputs
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError

RATE = 16000


def speech(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.1 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def changed(transform: nn.Module, waveform: np.ndarray, word: str = "") -> np.ndarray:
    return Waveforms({"it": transform}, {})(waveform, word)


def level(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


@pytest.mark.parametrize("factor", [0.8, 0.937, 1.25])
def test_speed_moves_length_and_pitch(factor: float) -> None:
    found = changed(Speed(1.0, [factor, factor]), tone(400.0))
    assert len(found) == pytest.approx(RATE / factor, abs=2)
    spectrum = np.abs(np.fft.rfft(found))
    assert np.fft.rfftfreq(len(found), 1 / RATE)[spectrum.argmax()] == pytest.approx(400 * factor, abs=1.5)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
@pytest.mark.parametrize("color", [-1.0, 0.0, 1.0, 2.0])
def test_noise_is_as_loud_and_as_coloured_as_said(snr: float, color: float) -> None:
    waveform = speech(4.001)
    noise = changed(Noise(1.0, [snr, snr], [color, color]), waveform) - waveform
    assert 20 * np.log10(level(waveform) / level(noise)) == pytest.approx(snr, abs=0.01)
    power = np.abs(np.fft.rfft(noise)) ** 2
    hertz = np.fft.rfftfreq(len(noise), 1 / RATE)
    bands = [(100, 200), (200, 400), (400, 800), (800, 1600), (1600, 3200)]
    densities = [np.log2(power[(hertz >= low) & (hertz < high)].mean()) for low, high in bands]
    assert np.polyfit(range(len(bands)), densities, 1)[0] == pytest.approx(-color, abs=0.25)  # an octave each


@pytest.mark.parametrize("ratio", [0.0, 10.0])
def test_a_room_answers_behind_the_sound_and_falls_by_60_db_in_its_time(ratio: float) -> None:
    click = np.zeros(RATE, np.float32)
    click[100] = 1.0
    found = changed(Reverberation(1.0, [0.5, 0.5], [ratio, ratio]), click)
    assert level(found) == pytest.approx(level(click), rel=1e-4)
    assert np.abs(found[:100]).max() < 1e-6
    direct, room = found[100], found[101:]
    assert 10 * np.log10(direct**2 / np.square(room).sum()) == pytest.approx(ratio, abs=0.05)
    decibels = [20 * np.log10(level(room[start : start + 800])) for start in range(0, 7200, 800)]
    assert np.polyfit(np.arange(9) * 0.05, decibels, 1)[0] == pytest.approx(-60 / 0.5, rel=0.1)
    assert np.abs(room[8000:]).max() < 1e-6


def test_gain_multiplies() -> None:
    np.testing.assert_allclose(changed(Gain(1.0, [6.0, 6.0]), speech()), speech() * 10**0.3, rtol=1e-6)


ALL: list[Callable[[float], nn.Module]] = [
    lambda p: Speed(p, [0.9, 1.1]),
    lambda p: Reverberation(p, [0.1, 0.6], [0.0, 15.0]),
    lambda p: Noise(p, [5.0, 30.0], [-1.0, 2.0]),
    lambda p: Gain(p, [-6.0, 6.0]),
]


@pytest.mark.parametrize("make", ALL)
def test_each_comes_as_often_as_said(make: Callable[[float], nn.Module]) -> None:
    waveform, often = speech(0.05), make(0.3)
    counts = {}
    for name, transform, tries in (("never", make(0.0), 20), ("always", make(1.0), 20), ("often", often, 300)):
        outcomes = [changed(transform, waveform, str(number)) for number in range(tries)]
        counts[name] = sum(not np.array_equal(outcome, waveform) for outcome in outcomes)
    assert (counts["never"], counts["always"]) == (0, 20)
    assert 55 < counts["often"] < 125


@pytest.mark.parametrize("length", [1, 2, 17, 401])
@pytest.mark.parametrize("sound", [0.0, 0.1])
def test_the_shortest_and_the_silent_stay_finite(length: int, sound: float) -> None:
    for make in ALL:
        for word in "abc":
            found = changed(make(1.0), np.full(length, sound, np.float32), word)
            assert len(found) >= 1
            assert np.isfinite(found).all()


def every() -> Waveforms:
    return Waveforms({str(number): make(0.7) for number, make in enumerate(ALL)}, {})


def test_a_word_alone_says_what_is_drawn_and_no_generator_moves() -> None:
    waveform = speech(0.1)
    expected = {word: every()(waveform, word) for word in ("a", "b", "c")}
    assert not np.array_equal(expected["a"], expected["b"])
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    waveforms = every()
    for word in ("c", "a", "b", "a"):  # in whatever order, and however often
        np.testing.assert_array_equal(waveforms(waveform, word), expected[word])
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])
    assert random.getstate() == before[2]
    np.testing.assert_array_equal(waveform, speech(0.1))  # the recording itself stays


@pytest.mark.parametrize("name", ["PitchShift", "AddColoredNoise", "BandPassFilter", "PolarityInversion"])
def test_transforms_of_torch_audiomentations_take_part(name: str) -> None:
    import torch_audiomentations

    given: dict[str, Any] = {"sample_rate": RATE} if name == "PitchShift" else {}
    for kind in ("dict", "tensor"):
        with pytest.warns() if kind == "tensor" else _nothing():
            transform = getattr(torch_audiomentations, name)(p=1.0, output_type=kind, **given)
        once, again = (changed(transform, speech(0.3), "word") for _ in range(2))
        assert once.shape == (4800,)
        assert not np.array_equal(once, speech(0.3))
        np.testing.assert_array_equal(once, again)


class _nothing:  # noqa: N801
    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Speed(1.5, [0.9, 1.1]), "augment.p=1.5: expected a probability from 0 to 1"),
        (lambda: Speed(1.0, [1.1, 0.9]), "augment.factor=[1.1, 0.9]: the least number stands first: [0.9, 1.1]."),
        (lambda: Speed(1.0, [0.0, 1.0]), "augment.factor=0.0: expected numbers from 0.1 to 10."),
        (lambda: Noise(1.0, 5.0, [0.0, 1.0]), "augment.snr=5.0: expected the least and the greatest number"),  # type: ignore[arg-type]
        (lambda: Noise(1.0, [5.0], [0.0, 1.0]), "augment.snr=[5.0]: expected the least and the greatest number"),
        (lambda: Noise(1.0, [5.0, 9.0], ["a", 1.0]), "augment.color=a: expected numbers from -4 to 4"),  # type: ignore[list-item]
        (lambda: Reverberation(1.0, [0.1, 99.0], [0.0, 1.0]), "augment.seconds=99.0: expected numbers from"),
        (lambda: Gain(1.0, [-99.0, 0.0]), "augment.decibels=-99.0: expected numbers from -60 to 60."),
    ],
)
def test_numbers_out_of_range_are_refused(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(said)


# Versions


def versions(copies: int | None, seed: int = 0, settings: Any = None, longest: int | None = None) -> Versions:
    keys = [f"key {row}" for row in range(6)]
    return Versions(Waveforms(every().transforms, settings or {}), keys, seed, copies, longest)


def test_a_key_is_the_content_s_the_settings_the_seed_s_and_the_version_s() -> None:
    given = versions(3)
    assert [given.key(row, 0) for row in range(6)] == list(given.keys)  # the recording's own
    others = [versions(3, seed=1), versions(3, settings={"p": 1})]
    swapped = [versions(3, settings=json.loads(text)) for text in ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}')]
    every_one = [given.key(row, number) for row in range(6) for number in range(4)]
    every_one += [other.key(0, 1) for other in (*others, *swapped)]
    assert len(set(every_one)) == len(every_one)
    assert versions(5).key(2, 3) == given.key(2, 3)  # how many copies there are is no part of one


def test_what_is_frozen_hears_its_copies_and_the_recording_what_trains_another_version_each_turn() -> None:
    assert [versions(2).pick(turn) for turn in range(8)] == [0, 0, 1, 2, 0, 1, 2, 0]
    assert [versions(0).pick(turn) for turn in range(4)] == [0, 0, 0, 0]
    assert [versions(None).pick(turn) for turn in range(4)] == [0, 1, 2, 3]


class Samples:
    """A front end that does nothing."""

    def __call__(self, raw: np.ndarray) -> Inputs:
        return {"samples": torch.from_numpy(raw)}

    def collate(self, items: Any) -> Inputs:
        return {"samples": nn.utils.rnn.pad_sequence([item["samples"] for item in items], batch_first=True)}

    def describe(self) -> dict[str, Any]:
        return {}


def read(row: int) -> np.ndarray:
    return speech(0.02 * (row + 1), seed=row)


def test_a_version_is_made_of_the_recording_by_its_key_and_no_longer_than_allowed() -> None:
    given = versions(None, longest=500)
    source = RawVersions(read, Samples(), given)
    assert torch.equal(source.load(3)["samples"], torch.from_numpy(read(3)))  # what is no training is as it is
    for turn in (1, 7):
        by_hand = given.waveforms(read(3), given.key(3, turn))[:500]
        np.testing.assert_array_equal(source.load(3, turn)["samples"].numpy(), by_hand)
        np.testing.assert_array_equal(VersionReader(read, given, turn)(3), by_hand)


def test_stored_versions_are_those_that_raw_ones_are_made_of(tmp_path: Path) -> None:
    given = versions(2)
    store = FeatureStore(root=tmp_path, name="s", fingerprint="f", made_by={})
    features = {given.key(row, number): np.array([[row, number]]) for row in range(6) for number in range(3)}
    store.write({key: values.astype(np.float32) for key, values in features.items()})
    source = StoredVersions(store, given)
    for turn, number in enumerate([0, 0, 1, 2, 0]):
        assert store.read(source.load(4, turn)).tolist() == [[4, number]]


def sampler(kind: type[BucketBatchSampler], epoch: int = 0, batch_size: int = 4, **others: Any) -> Any:
    made = kind(np.arange(2, 20), np.arange(1.0, 21.0), batch_size, shuffle=True, seed=5, **others)
    made.set_epoch(epoch)
    return made


def turns(**others: Any) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for row, turn in (pair for batch in sampler(VersionSampler, **others) for pair in batch):
        found.setdefault(row, []).append(turn)
    return found


def test_a_turn_is_the_utterance_s_and_the_epoch_s_alone() -> None:
    whole = turns()
    assert set(whole) == set(range(2, 20))
    assert turns() == whole == turns(batch_size=7)
    assert turns(rank=0, world=2) | turns(rank=1, world=2) == whole
    other = turns(epoch=1)
    assert all(whole[row] != other[row] for row in whole)
    drawn = {versions(3).pick(turn[0]) for epoch in range(20) for turn in turns(epoch=epoch).values()}
    assert drawn == {0, 1, 2, 3}


def test_the_batches_are_those_without_versions() -> None:
    assert [[row for row, _ in batch] for batch in sampler(VersionSampler)] == list(sampler(BucketBatchSampler))


def test_what_comes_several_times_in_an_epoch_comes_in_other_versions() -> None:
    classes = np.array([0] * 18 + [1] * 2)  # two utterances of a class, as often as the sixteen others
    found = turns(classes=classes)
    repeated = [taken for taken in found.values() if len(taken) > 1]
    assert repeated
    for taken in repeated:
        assert sorted(taken) == list(range(min(taken), min(taken) + len(taken)))


def test_a_dataset_gives_the_position_and_the_source_s_version() -> None:
    given = versions(None)
    dataset = Utterances(np.arange(6), {"audio": RawVersions(read, Samples(), given)})
    row, loaded = dataset[(3, 9)]
    assert row == 3
    np.testing.assert_array_equal(loaded["audio"]["samples"], VersionReader(read, given, 9)(3))
    batch = dataset.collate([dataset[(3, 9)], dataset[5]])
    assert batch.rows.tolist() == [3, 5]
