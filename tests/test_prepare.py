"""A prepared corpus: what is written and printed, what is done again, and what a stop leaves behind."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import soundfile

from fourm_ser.data import recordings
from fourm_ser.data.audio import check_recording
from fourm_ser.data.levels import Levels
from fourm_ser.data.manifest import read_manifest
from fourm_ser.errors import InputError
from fourm_ser.prepare import check_split_file
from tests import releases
from tests.data.corpora.conftest import EVERY, MakeCorpus, found, line_of, meant, rewrite, sides_by_id, without
from tests.data.corpora.conftest import make_corpus as make_corpus
from tests.data.corpora.conftest import node as node
from tests.releases import Told

FILES = ["left_out.csv", "manifest.csv", "summary.json"]
SAY_TORCH = "import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))"
KILL = (
    "import os\nreplace = os.replace\n"
    "os.replace = lambda a, b: os.kill(os.getpid(), 9) if 'manifest.csv' in str(b) else replace(a, b)"
)
LABELS = {"ang": 12, "hap": 10, "exc": 10, "sad": 10, "neu": 11, "fru": 2, "xxx": 3}

Release = tuple[Path, list[Told]]

LOADING = "loading pandas ...\n"  # what is said first where something heavy is loaded


def call(*arguments: str, cwd: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, after some lines of Python."""
    run = ["-m", "fourm_ser.prepare"]
    if before:
        run = ["-c", f"{before}\nimport runpy\nrunpy.run_module('fourm_ser.prepare', run_name='__main__')"]
    return subprocess.run(
        [sys.executable, *run, *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A small release to change."""
    root = tmp_path / "IEMOCAP_full_release"
    return root, releases.iemocap(root, LABELS, seconds=0.05)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the recordings that are decoded, as they are."""
    names: list[str] = []

    def check(path: Path) -> Levels:
        names.append(path.name)
        return check_recording(path)

    monkeypatch.setattr(recordings, "check_recording", check)
    return names


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows_of(table: str, title: str) -> dict[str, list[str]]:
    """The rows of a printed table by their first cell."""
    lines = table[table.index(title) :].splitlines()[1:]
    rows = [line.split() for line in lines]
    last = next(place for place, row in enumerate(rows) if row and row[0] == "all" and place > 2)
    return {row[0]: row[1:] for row in rows[: last + 1] if row}


def test_the_command_writes_three_files_and_prints_what_is_in_them(
    release: Release, tmp_path: Path, make_corpus: MakeCorpus
) -> None:
    root, told = release
    (root / told[0].audio).unlink()
    work = tmp_path / "work"
    work.mkdir()
    ended = call(
        "data=iemocap",
        f"data.root={tmp_path}",
        "cache=../cache",
        "data.show_split=true",
        "data.fold=2",
        "write_split=split.csv",
        cwd=work,
        before=SAY_TORCH,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == LOADING + "data: left out 1: label without a recording\n"
    assert ended.stdout.splitlines()[-1] == "False"
    assert [path.name for path in work.iterdir()] == ["split.csv"]
    (folder,) = (tmp_path / "cache/manifests").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert str(folder.name) in ended.stdout.replace("\n", "")

    manifest = read_manifest(folder / "manifest.csv", root)
    expected = meant(told[1:], ["anger", "happiness", "sadness", "neutral"], {"excitement": "happiness"})
    assert sorted(manifest["id"]) == [entry.id for entry in expected]
    assert all(Path(audio).is_file() for audio in manifest["audio"])

    sessions = rows_of(ended.stdout, "utterances by session")
    for session, rows in manifest.groupby("session"):
        counts = [str((rows["emotion"] == emotion).sum()) for emotion in ("anger", "happiness", "sadness", "neutral")]
        assert sessions[str(session)] == [*counts, str(len(rows))]
    assert sessions["all"][-1] == str(len(manifest))
    speakers = rows_of(ended.stdout, "utterances by speaker")
    assert {name: int(row[-1]) for name, row in speakers.items() if name.startswith("Ses")} == Counter(
        manifest["speaker"]
    )
    assert "fault: label without a recording" in ended.stdout

    left_out = pd.read_csv(folder / "left_out.csv")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["utterances"] == len(manifest)
    assert {reason: entry["count"] for reason, entry in summary["left_out"].items()} == Counter(left_out["reason"])
    assert left_out["fault"].sum() == 1

    sides = pd.read_csv(work / "split.csv").set_index("id")["split"]
    assert sides.to_dict() == sides_by_id(make_corpus("iemocap", root, fold=2))
    assert sides.to_dict() == sides_by_id(make_corpus("iemocap", root, split_file=str(work / "split.csv")))
    by_session = manifest.set_index("id")["session"]
    assert set(by_session[sides.index[sides == "test"]]) == {"Ses03"}
    assert "split session, fold 2, validation by speakers" in ended.stdout
    split_table = ended.stdout[ended.stdout.index("split session, fold 2") :].splitlines()
    for side in ("train", "val", "test"):
        row = next(line.split() for line in split_table if line.strip().startswith(side))
        assert row[5] == str((sides == side).sum())
        assert {name.strip(",") for name in row[6:] if len(name.strip(",")) == 5} == set(
            by_session[sides.index[sides == side]]
        )


def test_what_cannot_be_prepared_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    for arguments, message in (
        (["data=iemocap"], "error: config: nothing is given for data.root. Add data.root=..."),
        (["data=esd", f"data.root={tmp_path}"], f"error: data.root={tmp_path}: not the ESD release."),
    ):
        failed = call(*arguments, "cache=cache", cwd=tmp_path)
        assert failed.returncode == 1
        assert failed.stdout == ""
        said = failed.stderr.removeprefix(LOADING)
        assert said.startswith(message)
        assert len(said.strip().splitlines()) == 1
        assert list(tmp_path.iterdir()) == []


def test_a_split_cannot_be_written_where_a_folder_is(release: Release, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    failed = call(
        "data=iemocap", f"data.root={release[0]}", f"cache={tmp_path}/cache", "write_split=folder", cwd=tmp_path
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,audio,text,emotion,speaker\n", "is no split file"),
        ("id\n", "is no split file"),
        ("", "is no split file"),
        ("RIFF\x00", "is no split file"),
        ("id,split\nu1,train\n", None),
        ("\ufeffid,split\r\n", None),
    ],
)
def test_a_split_replaces_a_split_and_nothing_else(tmp_path: Path, content: str, message: str | None) -> None:
    path = tmp_path / "mine.csv"
    check_split_file(path)
    path.write_text(content, encoding="utf-8")
    if message is None:
        check_split_file(path)
        return
    with pytest.raises(InputError, match=rf"write_split={path}: .*{message}"):
        check_split_file(path)
    with pytest.raises(InputError, match="is a folder"):
        check_split_file(tmp_path)


def test_help_is_shown_before_a_corpus_is_chosen(tmp_path: Path) -> None:
    shown = call("--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr[-500:]
    for group in ("iemocap", "esd", "meld", "emodb", "cross_corpus"):
        assert group in shown.stdout


def test_two_corpora_are_prepared_by_nested_keys(release: Release, tmp_path: Path) -> None:
    releases.emodb(tmp_path / "emodb", each=1, seconds=0.05)
    ended = call(
        "data=cross_corpus",
        "data@data.train=iemocap",
        "data@data.test=emodb",
        f"data.train.root={release[0]}",
        f"data.test.root={tmp_path}/emodb",
        "data.train.emotions=[anger,sadness,neutral]",
        "data.show_split=true",
        f"cache={tmp_path}/cache",
        cwd=tmp_path,
        before=SAY_TORCH,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "False"
    (folder,) = (tmp_path / "cache/manifests").glob("iemocap_to_emodb-*")
    manifest = pd.read_csv(folder / "manifest.csv")
    assert Counter(manifest["split"]) == {"train": 12 + 10 + 11, "test": 30}
    assert set(manifest["emotion"]) == {"anger", "sadness", "neutral"}


def test_a_second_prepare_decodes_nothing_and_writes_the_same_bytes(
    release: Release, tmp_path: Path, make_corpus: MakeCorpus, decoded: list[str]
) -> None:
    root, told = release
    for place, entry in enumerate(told):  # lengths that no short decimal number says
        samples, _ = soundfile.read(root / entry.audio)
        soundfile.write(root / entry.audio, samples[: 700 - place], 44_100)
    folder = make_corpus("iemocap", root, cache=tmp_path / "cache").prepare()
    first = contents(folder)
    assert sorted(first) == FILES
    assert len(decoded) == len(pd.read_csv(folder / "manifest.csv"))
    decoded.clear()
    assert make_corpus("iemocap", root, cache=tmp_path / "cache").prepare() == folder
    assert decoded == []
    assert contents(folder) == first
    five = make_corpus("iemocap", root, cache=tmp_path / "cache", emotions=None)  # only what is new to it
    assert five.prepare() != folder
    assert sorted(decoded) == sorted(Path(entry.audio).name for entry in told if entry.emotion == "frustration")


def test_what_is_added_changed_and_removed_is_seen_the_next_time(
    release: Release, tmp_path: Path, make_corpus: MakeCorpus, decoded: list[str]
) -> None:
    root, told = release
    labels, texts = root / "Session1/dialog/EmoEvaluation", root / "Session1/dialog/transcriptions"

    def prepared() -> list[Told]:
        decoded.clear()
        corpus = make_corpus("iemocap", root, cache=tmp_path / "cache", **EVERY)
        folder = corpus.prepare()
        written = read_manifest(folder / "manifest.csv", root)
        assert written["id"].tolist() == corpus.frame["id"].tolist()
        assert written["text"].tolist() == corpus.frame["text"].tolist()
        return found(corpus)

    assert prepared() == meant(told)
    first = told[0]
    # Another transcript and label of one utterance.
    dialog = first.id[:-5]
    rewrite(
        texts / f"{dialog}.txt",
        lambda lines: [line.replace(first.text, "Something new.") if first.id in line else line for line in lines],
    )
    place = line_of(labels / f"{dialog}.txt", first.id) - 1
    old = next(label for label, (emotion, _) in releases.IEMOCAP.items() if emotion == first.emotion)
    rewrite(
        labels / f"{dialog}.txt",
        lambda lines: [
            line.replace(f"\t{old}\t", "\tsur\t") if number == place else line for number, line in enumerate(lines)
        ],
    )
    told[0] = first._replace(text="Something new.", emotion="surprise")
    assert prepared() == meant(told)
    assert decoded == []
    # A recording of another length.
    soundfile.write(root / told[1].audio, [0.1, -0.1] * 4000, 16_000)
    assert prepared() == meant(told)
    assert decoded == [Path(told[1].audio).name]
    # A new utterance.
    new = first._replace(
        id=f"{dialog}_F099",
        audio=f"{Path(first.audio).parent}/{dialog}_F099.wav",
        speaker="Ses01F",
        text="New.",
        emotion="anger",
    )
    shutil.copy(root / first.audio, root / new.audio)
    rewrite(texts / f"{dialog}.txt", lambda lines: [*lines, f"{new.id} [1.0-2.0]: New.\n"])
    rewrite(labels / f"{dialog}.txt", lambda lines: [*lines, f"[1.0 - 2.0]\t{new.id}\tang\t[1, 1, 1]\n"])
    told.append(new)
    assert prepared() == meant(told)
    assert decoded == [f"{new.id}.wav"]
    # One utterance less.
    (root / new.audio).unlink()
    rewrite(texts / f"{dialog}.txt", without(new.id))
    rewrite(labels / f"{dialog}.txt", without(new.id))
    assert prepared() == meant(told[:-1])
    assert decoded == []


@pytest.mark.parametrize("stopped", FILES)
def test_an_interrupted_prepare_leaves_whole_files(
    stopped: str, release: Release, tmp_path: Path, make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, told = release
    folder = make_corpus("iemocap", root, cache=tmp_path / "cache").prepare()
    before = contents(folder)
    (root / told[0].audio).unlink()
    replace = os.replace

    def interrupt(source: Path, target: Path) -> None:
        if Path(target).name == stopped:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_corpus("iemocap", root, cache=tmp_path / "cache").prepare()
    monkeypatch.undo()
    left = contents(folder)
    assert sorted(left) == FILES
    assert left[stopped] == before[stopped]
    assert left["summary.json"] == before["summary.json"]
    make_corpus("iemocap", root, cache=tmp_path / "cache").prepare()
    again = contents(folder)
    assert all(again[name] != before[name] for name in FILES)


def test_a_killed_prepare_leaves_the_old_manifest(
    release: Release, tmp_path: Path, make_corpus: MakeCorpus, decoded: list[str]
) -> None:
    root, told = release
    folder = make_corpus("iemocap", root, cache=tmp_path / "cache").prepare()
    before = contents(folder)
    soundfile.write(root / told[0].audio, [0.1, -0.1] * 4000, 16_000)
    killed = call("data=iemocap", f"data.root={root}", f"cache={tmp_path}/cache", cwd=tmp_path, before=KILL)
    assert killed.returncode == -9
    assert {name: data for name, data in contents(folder).items() if name in FILES} == before
    decoded.clear()
    make_corpus("iemocap", root, cache=tmp_path / "cache").prepare()
    assert decoded == []  # the killed one has seen the new recording
    assert contents(folder)["manifest.csv"] != before["manifest.csv"]


def test_places_are_printed_as_they_are(
    tmp_path: Path, make_corpus: MakeCorpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fourm_ser.data.summary import print_summary

    monkeypatch.setenv("COLUMNS", "300")
    root = tmp_path / "[bold]"
    told = releases.esd(root, ["0011"], 30, seconds=0.02, shared=True)
    (root / told[99].audio).unlink()
    (root / told[99].audio).touch()
    folder = make_corpus("esd", root, emotions=None, cache=tmp_path / "cache").prepare()
    print_summary(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    assert f"{told[99].id} (0011/0011.txt:100: {root}/" in capsys.readouterr().out


def test_a_summary_counts_by_what_a_corpus_tells(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    makers: dict[str, Callable[[], list[Told]]] = {
        "esd": lambda: releases.esd(tmp_path / "esd", seconds=0.05, sentences=3, shared=True),
        "meld": lambda: releases.meld(tmp_path / "meld", (9, 8, 7), seconds=0.05, shared=True),
        "emodb": lambda: releases.emodb(tmp_path / "emodb", each=1, seconds=0.05, shared=True),
    }
    for name, make in makers.items():
        told = make()
        folder = make_corpus(name, tmp_path / name, cache=tmp_path / "cache", **EVERY).prepare()
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        assert summary["utterances"] == len(told)
        assert summary["emotions"] == Counter(entry.emotion for entry in told)
        assert summary["hours"] == pytest.approx(0.05 * len(told) / 3600, abs=1e-4)
        for column in ("session", "split", "speaker", "language"):
            values = Counter(getattr(entry, column) for entry in told)
            if set(values) == {""}:
                assert f"by_{column}" not in summary
            else:
                assert {value: sum(row.values()) for value, row in summary[f"by_{column}"].items()} == values
