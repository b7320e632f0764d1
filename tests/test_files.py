"""JSON that every reader reads, whatever the numbers are."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourm_ser.files import as_json, finite, is_spoilt, remove_temporary, whole, write_json, write_table
from fourm_ser.runs.results import undefined

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=4)
TREES = st.recursive(
    LEAVES,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=8,
)


def refuse(word: str) -> Any:
    raise AssertionError(f"{word} is no JSON")


@given(TREES)
def test_what_is_written_is_json_and_the_same_but_for_what_is_undefined(value: Any) -> None:
    assert json.loads(as_json(value), parse_constant=refuse) == finite(value)


@given(st.floats())
def test_undefined_numbers_are_null_and_others_stay(value: float) -> None:
    assert finite({"a": [value], "b": (value,)}) == (
        {"a": [value], "b": [value]} if math.isfinite(value) else {"a": [None], "b": [None]}
    )


def test_a_file_holds_no_word_that_is_no_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"test/intra_inter": math.inf, "test/recall/anger": math.nan, "test/ua": 0.5})
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"test/intra_inter": None, "test/recall/anger": None, "test/ua": 0.5}


def test_every_undefined_metric_has_its_reason() -> None:
    metrics = {"test/ua": 0.5, "test/recall/anger": math.nan, "val/intra_inter": math.nan, "test/loss": math.inf}
    assert undefined({**metrics, "corpus": "demo", "fold": None}) == [
        "test/recall/anger is null: no utterance has that emotion",
        "val/intra_inter is null: the means of the classes that occur coincide, or fewer than two occur",
        "test/loss is null: it is inf",
    ]


def test_what_is_renamed_was_flushed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    flush, replace = os.fsync, os.replace

    def noted(descriptor: int) -> None:
        done.append("flush")
        flush(descriptor)

    def renamed(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", renamed)
    write_json(tmp_path / "a.json", 1)
    assert done[:2] == ["flush", "rename"]


def test_what_killed_processes_were_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    kept = [".hydra.yaml", "a.json", ".lock", ".a.0123.json", "stages/.b.ckpt"]
    for name in kept:
        (tmp_path / name).write_text("x")
    with whole(tmp_path / "stages" / "last.ckpt") as left, whole(tmp_path / "model") as folder:
        left.write_text("half")
        folder.mkdir()
        (folder / "half").write_text("x")
        remove_temporary(tmp_path, older=60.0)
        assert left.is_file()
        remove_temporary(tmp_path)
        assert not left.exists()
        assert not folder.exists()
        left.write_text("x")
        folder.write_text("x")
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(found) == sorted([*kept, "model", "stages/last.ckpt"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process can be forked here")
def test_what_a_process_that_was_killed_was_writing_is_removed_however_young(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with whole(tmp_path / "shard.safetensors") as left:
            left.write_text("half")
            os._exit(0)
    os.waitpid(child, 0)
    with whole(tmp_path / "another.json") as own:
        own.write_text("x")
        assert len(list(tmp_path.iterdir())) == 2
        remove_temporary(tmp_path, older=3600.0)
        assert list(tmp_path.iterdir()) == [own]
    other = tmp_path / f".of-another-machine.{'0' * 16}{'1' * 16}.json"
    other.write_text("half")
    remove_temporary(tmp_path, older=3600.0)
    assert other.exists()


@pytest.mark.parametrize("seal", [True, False])
def test_damage_is_told_where_a_hash_is_kept(tmp_path: Path, seal: bool) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1, seal=seal)
    assert not is_spoilt(path)
    path.write_text("2")
    assert is_spoilt(path) == seal
    write_json(path, 3)  # written anew without one: nothing is kept of what was
    assert not is_spoilt(path)
    write_json(path, 4, seal=True)
    (tmp_path / ".a.json.xxh").write_text("")  # a machine that stopped may leave it empty
    assert not is_spoilt(path)
    path.unlink()
    assert not is_spoilt(path)


@pytest.mark.parametrize("text", ["=1+1", "+1-cmd", "-cmd", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_computes_nothing_of_a_table_for_people(tmp_path: Path, text: str) -> None:
    frame = pd.DataFrame({"text": [text, "so", "-1.5"], text: [1, 2, 3], "ua": [-0.5, 0.5, 1.0]})
    write_table(tmp_path / "a.csv", frame, inert=True)
    found = pd.read_csv(tmp_path / "a.csv", dtype=str)
    assert found["text"].tolist() == [f"'{text}", "so", "-1.5"]
    assert list(found) == ["text", f"'{text}", "ua"]
    assert found["ua"].tolist() == ["-0.5", "0.5", "1.0"]
    write_table(tmp_path / "b.csv", frame)
    assert pd.read_csv(tmp_path / "b.csv", dtype=str)["text"].iloc[0] == text
