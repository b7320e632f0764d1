"""How loud recordings are: measured alike in any blocks, and judged alike wherever they are read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourm_ser.data.levels import (
    SILENCE,
    TOP,
    Levels,
    Meter,
    SilentError,
    is_silent,
    refuse_scale,
    refuse_silence,
)
from fourm_ser.errors import InputError

RATE = 1000  # a pause is remembered from 20 samples on
VALUES = [0.0, SILENCE / 2, -SILENCE / 2, SILENCE, -0.3, 0.5, TOP, -1.0, 1.5]

stretches = st.lists(st.tuples(st.sampled_from(VALUES), st.integers(1, 60)), min_size=1, max_size=12)
"""A sound as stretches of one value."""


def measured(samples: np.ndarray, *cuts: int, subtype: str = "PCM_16") -> Levels:
    """Levels of [samples, channels] that are heard in blocks."""
    meter = Meter(RATE, subtype)
    for block in np.split(samples, sorted({cut for cut in cuts if 0 < cut < len(samples)})):
        meter.hear(block)
    return meter.levels()


def sound(parts: list[tuple[float, int]]) -> np.ndarray:
    return np.concatenate([np.full(length, value, np.float32) for value, length in parts])


@given(parts=stretches, cuts=st.lists(st.integers(1, 700), max_size=5))
def test_levels_are_those_of_plain_loops_however_the_sound_is_cut_into_blocks(
    parts: list[tuple[float, int]], cuts: list[int]
) -> None:
    samples = sound(parts)
    levels = measured(samples[:, None], *cuts)
    runs, quiet, begin = 0, [], None
    for place in range(len(samples) + 1):
        heard = place == len(samples) or abs(float(samples[place])) >= np.float32(SILENCE)
        if not heard and begin is None:
            begin = place
        if heard and begin is not None:
            if place - begin >= 20 or place - begin == len(samples):
                quiet.append((begin / RATE, place / RATE))
            begin = None
        if 2 <= place < len(samples):
            runs += all(TOP <= abs(float(sample)) <= 1 for sample in samples[place - 2 : place + 1])
    assert levels.seconds == len(samples) / RATE
    assert levels.peak == np.abs(samples).max()
    assert levels.clipped == runs
    ends = [float(end) for span in levels.quiet.split() for end in span.split("-")]
    assert ends == pytest.approx([end for span in quiet for end in span])


@given(parts=stretches, first=st.integers(0, 400), length=st.integers(20, 400))
def test_a_segment_is_silent_by_what_is_remembered_as_by_its_samples(
    parts: list[tuple[float, int]], first: int, length: int
) -> None:
    samples = sound(parts)
    segment = samples[first : first + length]
    if len(segment) < 20:
        return
    quiet = measured(samples[:, None]).quiet
    remembered = is_silent(quiet, first / RATE, (first + len(segment)) / RATE)
    try:
        refuse_silence(segment, "a.wav")
        heard = True
    except SilentError:
        heard = False
    assert remembered != heard


def test_channels_that_cancel_each_other_are_silent() -> None:
    wave = np.sin(np.arange(500))
    levels = measured(np.stack([wave, -wave], axis=1).astype(np.float32))
    assert levels.peak == 0.0
    assert levels.quiet == "0-0.5"
    assert measured(np.stack([wave, 0 * wave], axis=1).astype(np.float32)).quiet == ""


@pytest.mark.parametrize(
    ("subtype", "top"),
    [
        ("PCM_16", 32767 / 2**15),
        ("PCM_U8", 127 / 2**7),
        ("ULAW", 32124 / 2**15),
        ("ALAW", 32256 / 2**15),
        ("FLOAT", 1.0),
    ],
)
def test_three_samples_in_a_row_at_the_end_of_the_scale_are_clipped(subtype: str, top: float) -> None:
    for values, clipped in (
        ([top, top, 0.0, top, top], 0),  # a peak that just fits
        ([0.1, top, top, top, 0.1], 1),
        ([top] * 5, 3),
        ([-1.0, -1.0, -1.0, -1.0], 2),
        ([top - 0.01] * 9, 0),
        ([1.1] * 9, 0),
    ):
        both = np.stack([values, np.zeros(len(values))], axis=1).astype(np.float32)  # in one channel of two
        assert measured(both, subtype=subtype).clipped == clipped


def test_another_scale_is_named_with_its_factor() -> None:
    def refused(peak: float, message: str) -> None:
        with pytest.raises(InputError, match=rf"a\.wav: samples reach .*{message}"):
            refuse_scale(peak, "a.wav")

    factors = {17: "32768", 19_000: "32768", 32_768: "32768", 8e6: "8388608", 2.0**31: "2147483648"}
    for peak, factor in factors.items():
        refused(peak, f"full scale at 1: divide by {factor} ")
    refused(1e12, "scale them")
    for peak in (0.0, 0.5, 1.0, 1.4, 16.0):  # a little over full scale is on it
        refuse_scale(peak, "a.wav")


def test_where_nothing_is_heard_is_said() -> None:
    with pytest.raises(SilentError, match=r"a\.wav: silent: no sample is louder than -80 dB"):
        refuse_silence(np.zeros(10), "a.wav")
    with pytest.raises(SilentError, match=r"a\.wav: silent from 1 s to 2\.5 s"):
        refuse_silence(np.zeros(10), "a.wav", 1.0, 2.5)
