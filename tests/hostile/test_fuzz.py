"""A few hundred mutated files of every kind: read, or refused in one line. `python -m benchmarks.fuzz` does more."""

import logging
from pathlib import Path

import pytest

from tests.hostile import fuzzing

CASES = 2  # of each kind


def test_mutated_files_are_read_or_refused_in_one_line(
    tmp_path: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    kinds = fuzzing.make_kinds(tmp_path, finished)
    assert len(kinds) > 35
    cheap = [kind for kind in kinds if kind.share == 1.0]
    faults = [fuzzing.try_case([kind], 1, number, tmp_path) for kind in cheap for number in range(CASES)]
    assert [fault for fault in faults if fault is not None] == []


def test_a_fault_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("so it is")
    reads = fuzzing.Kind("reader", path, lambda path: int(path.read_bytes()[:2].hex(), 99))
    found = fuzzing.try_case([reads], 0, 3, tmp_path)
    assert found is not None
    assert found[:2] == (3, "reader")
    assert "ValueError in test_fuzz.py" in found.said
