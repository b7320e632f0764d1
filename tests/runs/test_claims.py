"""What a run recorded of its corpus is held against the corpus that is there."""

from pathlib import Path

import pandas as pd
import pytest

from fourm_ser.errors import InputError
from fourm_ser.runs.claims import record_content
from fourm_ser.runs.directory import RunDirectory
from tests.data.test_corpus import Make
from tests.data.test_corpus import make as make
from tests.data.test_corpus import recorded as recorded


def test_a_record_is_read_as_it_was_written(make: Make, tmp_path: Path, recorded: pd.DataFrame) -> None:
    corpus = make(recorded.assign(text=[["NA", "null", "", "01"][n % 4] for n in range(len(recorded))]))
    record_content(corpus.content, corpus.origin, RunDirectory(tmp_path))
    found = RunDirectory(tmp_path).read_corpus()
    assert found is not None
    pd.testing.assert_frame_equal(found, corpus.content, check_dtype=False)
    record_content(corpus.content, corpus.origin, RunDirectory(tmp_path))  # the same again
    assert found["side"].value_counts().to_dict() == {s: len(r) for s, r in corpus.split._asdict().items()}
    assert RunDirectory(tmp_path / "elsewhere").read_corpus() is None


def test_going_on_with_a_changed_corpus_is_refused(make: Make, tmp_path: Path, recorded: pd.DataFrame) -> None:
    record_content(make(recorded).content, "there", RunDirectory(tmp_path))
    corrected = recorded.assign(emotion=["anger", *recorded["emotion"][1:]])
    with pytest.raises(
        InputError, match=r"has changed since the run began: 1 label changed \(u00: sadness, now anger\)"
    ):
        record_content(make(corrected).content, "there", RunDirectory(tmp_path))


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpus.csv").write_text("id,side\nu0,train\n")
    with pytest.raises(InputError, match=r"corpus\.csv: expected the columns id, side, corpus"):
        RunDirectory(tmp_path).read_corpus()
