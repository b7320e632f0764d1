"""Runs are told apart by what their corpora hold, never by where these lie or by leaving that out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fourm_ser.data.content import COLUMNS, digest_of
from fourm_ser.report.cells import make_sections
from fourm_ser.runs.collect import collect
from tests.report.runs import write_run

CORPUS = pd.DataFrame(
    [(f"u{n}", "train", "manifest", f"s{n % 3}", "", "anger", f"t{n}", f"a{n}") for n in range(9)],
    columns=list(COLUMNS),
)
NOISY = CORPUS.assign(audio="noisy " + CORPUS["audio"])
CORRECTED = CORPUS.assign(emotion=["sadness", *CORPUS["emotion"][1:]])
RENAMED = CORPUS.assign(speaker=["s7", *CORPUS["speaker"][1:]])
LONGER = pd.concat([CORPUS, CORPUS.assign(id="more " + CORPUS["id"])])


def write(folder: Path, corpus: pd.DataFrame | None, seed: int = 0, **places: Any) -> None:
    write_run(folder, seed=seed, changes={f"data.{key}": value for key, value in places.items()})
    if corpus is not None:
        corpus.to_csv(folder / "corpus.csv", index=False)
        path = folder / "metrics.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "corpus_hash": digest_of(corpus)}))


def test_copies_of_a_corpus_are_one(tmp_path: Path) -> None:
    for seed, place in enumerate(("here", "there", "elsewhere")):
        write(tmp_path / place, CORPUS, seed, root=f"/{place}", manifest=f"{place}.csv", audio_root=f"/{place}/wav")
    ((section,), problems) = make_sections(collect([tmp_path]).runs)
    assert [len(cell.runs) for cell in section.cells] == [3]
    assert not problems


@pytest.mark.parametrize("key", ["root", "audio_root", "manifest"])
def test_other_recordings_of_the_same_utterances_are_another_cell(tmp_path: Path, key: str) -> None:
    for seed in range(2):
        write(tmp_path / f"clean{seed}", CORPUS, seed, **{key: "/data/clean/wav"})
        write(tmp_path / f"noisy{seed}", NOISY, seed, **{key: "/data/noisy/wav"})
    ((section,), problems) = make_sections(collect([tmp_path]).runs)
    assert section.axes == {f"data.{key}": ["clean/wav", "noisy/wav"]}
    assert [len(cell.runs) for cell in section.cells] == [2, 2]
    assert "9 recordings changed (u0, u1, u2 and 6 more)" in " ".join(section.notes)
    assert not problems


def test_recordings_replaced_in_place_are_another_cell(tmp_path: Path) -> None:
    write(tmp_path / "before", CORPUS, seed=0, root="/here")
    write(tmp_path / "after", NOISY, seed=1, root="/here")
    ((section,), _) = make_sections(collect([tmp_path]).runs)
    assert [len(cell.runs) for cell in section.cells] == [1, 1]
    assert section.axes == {"data.recordings": [digest_of(NOISY)[:8], digest_of(CORPUS)[:8]]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (CORRECTED, "1 label changed (u0: anger, now sadness)"),
        (RENAMED, "1 speaker changed (u0: s0, now s7)"),
        (LONGER, "9 utterances new (more u0, more u1, more u2 and 6 more)"),
    ],
    ids=["labels", "speakers", "rows"],
)
@pytest.mark.parametrize("moved", [False, True])
def test_a_changed_table_is_another_section(tmp_path: Path, change: pd.DataFrame, told: str, moved: bool) -> None:
    write(tmp_path / "a", CORPUS, seed=0, manifest="corpus.csv")
    write(tmp_path / "b", change, seed=1, manifest="other.csv" if moved else "corpus.csv")
    sections, problems = make_sections(collect([tmp_path]).runs)
    assert [len(section.table) for section in sections] == [1, 1]
    assert len({json.dumps(section.protocol) for section in sections}) == 2
    assert told in " ".join(problems)


@pytest.mark.parametrize("key", ["root", "audio_root", "manifest"])
def test_what_recorded_no_content_is_told_apart_by_its_places(tmp_path: Path, key: str) -> None:
    write(tmp_path / "a", None, seed=0, **{key: "/here"})
    write(tmp_path / "b", None, seed=1, **{key: "/there"})
    write(tmp_path / "c", None, seed=2, **{key: "/there"})
    sections, _ = make_sections(collect([tmp_path]).runs)
    assert sorted(len(section.table) for section in sections) == [1, 2]


def test_an_unfinished_run_is_of_the_corpus_at_its_place(tmp_path: Path) -> None:
    write(tmp_path / "a", CORPUS, seed=0, root="/here")
    write_run(tmp_path / "b", seed=1, finished=False, changes={"data.root": "/here"})
    ((section,), _) = make_sections(collect([tmp_path]).runs)
    assert [(len(cell.runs), len(cell.others)) for cell in section.cells] == [(1, 1)]


def test_where_runs_are_done_is_no_axis(tmp_path: Path) -> None:
    changes: Callable[[str], dict[str, Any]] = lambda name: {"cache": f"/{name}", "data.workers": len(name)}  # noqa: E731
    for seed, name in enumerate(("a", "bb")):
        write_run(tmp_path / name, seed=seed, changes=changes(name))
    ((section,), _) = make_sections(collect([tmp_path]).runs)
    assert [len(cell.runs) for cell in section.cells] == [2]
