"""What a pass takes of disk and time, told by its first batches."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fourm_ser.errors import InputError
from fourm_ser.models.forecast import Forecast, told_size, told_time

BATCHES = [[0, 1], [2, 3], [4], [5]]
LENGTHS = np.array([1.0, 1.0, 4.0, 4.0, 29.0, 29.0])  # and one more each: 2 + 2, 5 + 5, 30, 30: 74 in all


def forecast(folder: Path, pooling: str = "none", processes: int = 1) -> Forecast:
    encoder: Any = SimpleNamespace(name="wavlm_large", pooling=pooling)
    about: dict[str, Any] = {"batches": BATCHES, "lengths": LENGTHS, "count": 5531, "processes": processes}
    return Forecast(folder=folder, encoder=encoder, **about)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that goes on when it is told to."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=310e9))
    return clock


@pytest.mark.parametrize(
    ("pooling", "processes", "told"),
    [("none", 1, "74.0 GB"), ("none", 2, "148.0 GB"), ("mean", 1, "12.0 GB")],  # pooled: 6 utterances of like size
)
def test_disk_is_told_by_the_first_batch_and_time_by_those_behind_it(
    pooling: str, processes: int, told: str, tmp_path: Path, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    work = forecast(tmp_path, pooling, processes)
    work.measure([0, 1], 4_000_000_000)
    clock.now += 500  # warming up tells nothing
    assert not work.add([0, 1])
    work.measure([2, 3], 1)
    clock.now += 20  # ten of 74 in 20 seconds
    assert work.add([2, 3])
    with caplog.at_level(logging.INFO):
        work.tell()
    expected = f"store: 5,531 utterances to encode with wavlm_large: about {told} of disk (310.0 GB are free)"
    assert f"{expected}, about 2 minutes" in caplog.text
    assert not work.add([4])
    assert not work.add([5])


def test_a_pass_of_one_batch_tells_no_time(
    tmp_path: Path, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    work = forecast(tmp_path)
    work.utterances = 2
    work.measure([0, 1], 1_000)
    assert work.add([0, 1])
    with caplog.at_level(logging.INFO):
        work.tell()
    assert caplog.messages == [
        "store: 5,531 utterances to encode with wavlm_large: about 0.0 MB of disk (310.0 GB are free)"
    ]


@pytest.mark.parametrize(("pooling", "advised"), [("none", True), ("mean_std", False)])
def test_no_room_is_said_with_what_to_do(pooling: str, advised: bool, tmp_path: Path, clock: SimpleNamespace) -> None:
    with pytest.raises(InputError, match=r"encoding needs about \d+\.\d\d GB, 310\.00 GB are free\. Make room") as said:
        forecast(tmp_path, pooling).measure([0, 1], 200_000_000_000)
    assert "another cache" in str(said.value)
    assert "encode.store=false" in str(said.value)
    assert ("encode.pool=mean_std" in str(said.value)) is advised


def test_amounts_are_told_in_units_of_their_size() -> None:
    assert [told_size(size) for size in (123_400, 65.2e9, 1_230e9)] == ["0.1 MB", "65.2 GB", "1,230.0 GB"]
    assert [told_time(seconds) for seconds in (0, 40, 41 * 60, 3.5 * 3600)] == [
        "1 s",
        "40 s",
        "41 minutes",
        "3.5 hours",
    ]
