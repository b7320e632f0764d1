"""The command that predicts, as a user meets it."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from omegaconf import OmegaConf

from fourm_ser.commandline import quoted
from fourm_ser.errors import InputError
from fourm_ser.predict import LITERAL, run
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.prediction.table_file import table_path
from fourm_ser.prediction.transcriber import Transcriber
from tests import processes
from tests.conftest import CONF, Compose
from tests.data.test_decoding import film
from tests.prediction.predictors import EMOTIONS, RATE, ctc, model, noise, recording, whisper

REPOSITORY = Path(__file__).resolve().parent.parent
TEXTS = [
    "I can't, no!",
    "he said \"no\" and 'yes'",
    "a=b,c d",
    "C:\\folder\\",
    "\\",
    "\\'",
    "{a: [1, (2)]}",
    "costs $5 ${oc.env:HOME}",
    "${",
    "\\${x}\\\\${y}",
    "üß 你好 🙂",
    "",
    "  two  blanks\tand\na new line ",
    "null and void",
    "~+@:/#%",
    "text=audio=",
]


class Command(Protocol):
    def __call__(self, *arguments: str) -> int: ...


class Folders(Protocol):
    def __call__(self, kind: str) -> Path: ...


def composed_predict(*arguments: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("predict", quoted(arguments, LITERAL))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, composed: Compose) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    alone = {kind: [f"fusion={kind}_attention", "fusion.heads=4"] for kind in ("audio", "text")}
    return {
        "both": model(folder / "both", composed, max_seconds=6.0),
        **{kind: model(folder / kind, composed, *chosen, max_seconds=6.0) for kind, chosen in alone.items()},
    }


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command in an empty folder, in this process."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run(composed_predict("workers=0", f"cache={tmp_path / 'cache'}", *arguments))


def alone(folder: Path, *given: Any) -> Prediction:
    result = Predictor.load(folder)(*given)
    assert isinstance(result, Prediction)
    return result


def beside(given: Path) -> str:
    """Where predictions on a manifest or folder go."""
    return str(given.with_name(f"{given.stem if given.is_file() else given.name}-emotions.csv"))


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


class TestQuoting:
    @pytest.mark.parametrize("text", TEXTS)
    def test_a_text_arrives_as_it_is(self, text: str) -> None:
        keys = ("text", "audio", "model", "manifest", "output", "embeddings", "asr")
        config = composed_predict(*(f"{key}={text}" for key in keys))
        assert [config[key] for key in keys] == [text] * len(keys)

    @settings(max_examples=30, deadline=None)
    @given(
        st.text(
            st.sampled_from("ab\\'\"${}=, :[]()~#\n") | st.characters(codec="utf-8", exclude_characters="\0"),
            max_size=12,
        )
    )
    def test_any_text_arrives_as_it_is(self, text: str) -> None:
        if text != "null":
            assert composed_predict(f"text={text}").text == text

    def test_null_is_not_given_and_empty_is(self) -> None:
        assert composed_predict("text=null").text is None
        assert composed_predict().text is None
        assert composed_predict("text=").text == ""
        assert composed_predict("++text=NULL").text == "NULL"

    def test_other_keys_are_hydra_s(self) -> None:
        given = ["format=json", "hydra.run.dir=x", "+extra={a: 1}", "--help", "window=null"]
        assert quoted(given, LITERAL) == given
        assert composed_predict("window=null").window is None
        assert composed_predict("window=2.5").window == 2.5


class TestOne:
    def test_a_table_of_probabilities(
        self, command: Command, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = recording(tmp_path / "it's = [a], ${b}.wav", noise(1.0))
        assert command(f"model={models['both']}", f"audio={file}", "text=I can't, no") == 0
        shown = capsys.readouterr().out
        expected = alone(models["both"], file, "I can't, no")
        for emotion, share in expected.probabilities.items():
            assert re.search(rf"{emotion} +{share:.4f}", shown)
        assert f"emotion: {expected.emotion}" in shown
        assert "text: I can't, no" in shown
        assert "it's = [a], ${b}.wav" in shown
        assert not list(Path().iterdir())

    def test_a_text_alone_for_a_model_that_reads_no_audio(
        self, command: Command, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        command(f"model={models['text']}", "text=calm", "format=json", "output=one.csv")
        printed = json.loads(capsys.readouterr().out)
        expected = alone(models["text"], None, "calm")
        assert printed["probabilities"] == pytest.approx(expected.probabilities)
        assert (printed["emotion"], printed["text"], printed["error"]) == (expected.emotion, "calm", None)
        (row,) = rows_of("one.csv")
        assert (row["emotion"], row["text"], row["start"]) == (expected.emotion, "calm", "")

    def test_json_is_all_that_stands_on_stdout(self, models: dict[str, Path], tmp_path: Path) -> None:
        recording(tmp_path / "a b.wav", noise(7.0))
        text = 'I can\'t say "${no}", a=b\\'
        arguments = [f"model={models['both']}", "audio=a b.wav", f"text={text}", "format=json", "window=null"]
        done = processes.command("predict", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        printed = json.loads(done.stdout)
        assert printed["text"] == text
        assert printed["probabilities"] == pytest.approx(
            alone(models["both"], noise(7.0), text).probabilities, abs=1e-5
        )
        assert "1 recording is longer than 6 s" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["a b.wav"]


class TestOverTime:
    def test_windows_make_a_table_and_a_figure(
        self, command: Command, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        samples = np.concatenate([noise(4.0), np.zeros(2 * RATE, dtype=np.float32), noise(3.0, 1)])
        file = recording(tmp_path / "a.wav", samples)
        command(f"model={models['audio']}", f"audio={file}", "window=2", "hop=2", "output=out/along.csv")
        shown = capsys.readouterr().out
        table = pd.read_csv("out/along.csv", keep_default_na=False)
        assert list(table.columns) == ["id", "start", "end", "emotion", *EMOTIONS, "text", "error"]
        assert table["start"].tolist() == [0.0, 2.0, 4.0, 6.0, 7.0]
        assert table["end"].tolist() == [2.0, 4.0, 6.0, 8.0, 9.0]
        for place in (0, 1, 3, 4):
            part = samples[round(table["start"][place] * RATE) : round(table["end"][place] * RATE)]
            expected = alone(models["audio"], part)
            found = [float(table[emotion][place]) for emotion in EMOTIONS]
            assert found == pytest.approx(list(expected.probabilities.values()), abs=1e-5)
            assert table["emotion"][place] == expected.emotion
        assert table["emotion"][2] == ""
        assert "silent from 4 s to 6 s" in table["error"][2]
        assert "silent from 4 s to 6 s" in shown
        assert "written: out/along.png" in shown
        assert min(imread("out/along.png").shape[:2]) > 300

    def test_auto_cuts_what_is_longer_than_in_training(
        self, command: Command, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for seconds, windows in ((6.0, 1), (6.5, 4)):
            file = recording(tmp_path / f"{seconds}.wav", noise(seconds))
            command(f"model={models['audio']}", f"audio={file}", "format=json", "auto_window=3")
            printed = json.loads(capsys.readouterr().out)
            assert len(printed if isinstance(printed, list) else [printed]) == windows
        # 10 s, as auto_window has it, are longer than in training.
        command(f"model={models['audio']}", f"audio={file}", "format=json", "overwrite=true")
        assert [row["end"] for row in json.loads(capsys.readouterr().out)] == [6.0, 6.5]

    def test_a_text_model_needs_a_recogniser_for_windows(
        self, command: Command, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = recording(tmp_path / "a.wav", noise(4.0))
        with pytest.raises(InputError, match="cannot be divided over 3 windows"):
            command(f"model={models['both']}", f"audio={file}", "text=calm", "window=2")
        with pytest.raises(InputError, match="asr="):
            command(f"model={models['both']}", f"audio={file}", "window=2")
        command(f"model={models['both']}", f"audio={file}", f"asr={ctc(tmp_path / 'ctc')}", "window=2", "format=json")
        rows = json.loads(capsys.readouterr().out)
        texts = [row["text"] for row in rows]
        assert len(set(texts)) == 3
        for row in rows:
            part = noise(4.0)[round(row["start"] * RATE) : round(row["end"] * RATE)]
            assert row["probabilities"] == pytest.approx(
                alone(models["both"], part, row["text"]).probabilities, abs=1e-5
            )

    def test_a_whisper_is_told_the_language_of_a_folder(
        self, command: Command, models: dict[str, Path], tmp_path: Path
    ) -> None:
        samples = [noise(length, place) for place, length in enumerate((0.5, 1.5, 1.0, 3.0))]
        for place, one in enumerate(samples):
            recording(tmp_path / "takes" / f"{place}.wav", one)
        checkpoint = whisper(tmp_path / "asr", ["en", "no"])
        given = [f"model={models['both']}", f"audio={tmp_path / 'takes'}"]
        command(*given, f"asr={checkpoint}", "asr_language=no")
        transcriber = Transcriber(str(checkpoint), torch.device("cpu"), language="norwegian")
        assert [row["text"] for row in rows_of(beside(tmp_path / "takes"))] == transcriber(samples)
        with pytest.raises(InputError, match=r"asr_language=no: there is no recogniser\. Add asr="):
            command(*given, "asr_language=no", "overwrite=true")

    @pytest.mark.parametrize(
        ("numbers", "message"),
        [
            (["window=long"], "window=long: expected a number above 0 or auto or null"),
            (["window=true"], "window=true: expected a number"),
            (["window=-1"], "window=-1: expected a number above 0"),
            (["window=nan"], "window=nan: expected a number"),
            (["hop=often"], "hop=often: expected a number above 0 or null"),
            (["window=null", "hop=1"], "hop=1: with window=null there are no windows"),
            (["window=20"], "at most 6 s"),
            (["window=2", "hop=3"], "hop=3: expected"),
            (["auto_window=null"], "auto_window=null: expected a number"),
        ],
    )
    def test_numbers_that_make_no_windows_are_refused(
        self, command: Command, models: dict[str, Path], tmp_path: Path, numbers: list[str], message: str
    ) -> None:
        file = recording(tmp_path / "a.wav", noise(1.0))
        with pytest.raises(InputError, match=message):
            command(f"model={models['audio']}", f"audio={file}", *numbers)


class TestMany:
    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        """A manifest of good rows and bad ones."""
        for place in range(3):
            recording(tmp_path / "wav" / f"{place}.wav", noise(1.0 + place, place))
        (tmp_path / "wav" / "bad.wav").write_bytes(b"no sound")
        rows = [
            ("first", "wav/0.wav", "calm", "", ""),
            ("bad", "wav/bad.wav", "calm", "", ""),
            ("part", "wav/2.wav", "I can't, no", "0.5", "1.5"),
            ("gone", "wav/gone.wav", "calm", "", ""),
            ("wordless", "wav/1.wav", "", "", ""),
            ("unnamed", "", "calm", "", ""),
            ("backwards", "wav/0.wav", "calm", "0.8", "0.4"),
            ("later", "wav/0.wav", "calm", "soon", ""),
        ]
        pd.DataFrame(rows, columns=["id", "audio", "text", "start", "end"]).to_csv(tmp_path / "rows.csv", index=False)
        return tmp_path / "rows.csv"

    def test_every_row_of_a_manifest_has_its_prediction_or_why_there_is_none(
        self,
        command: Command,
        models: dict[str, Path],
        table: Path,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        assert command(f"model={models['both']}", f"manifest={table}") == 5
        assert "5 of 8 recordings could not be predicted on" in caplog.text
        assert "1 of 8 rows have an empty text" in caplog.text
        assert f"written: {beside(table)}" in capsys.readouterr().out
        rows = {row["id"]: row for row in rows_of(beside(table))}
        assert list(rows) == ["first", "bad", "part", "gone", "wordless", "unnamed", "backwards", "later"]
        whole = {"first": (noise(1.0), "calm"), "wordless": (noise(2.0, 1), "")}
        part = {"part": (noise(3.0, 2)[RATE // 2 : RATE * 3 // 2], "I can't, no")}
        for name, (samples, text) in {**whole, **part}.items():
            expected = alone(models["both"], samples, text)
            found = [float(rows[name][emotion]) for emotion in EMOTIONS]
            assert found == pytest.approx(list(expected.probabilities.values()), abs=1e-5)
            assert (rows[name]["emotion"], rows[name]["text"], rows[name]["error"]) == (expected.emotion, text, "")
        assert (rows["part"]["start"], rows["part"]["end"]) == ("0.5", "1.5")
        reasons = {
            "bad": "cannot be decoded",
            "gone": "no such recording",
            "unnamed": "audio is empty",
            "backwards": "end=0.4 is not after start=0.8",
            "later": "start=soon is no number",
        }
        for name, reason in reasons.items():
            assert reason in rows[name]["error"]
            assert not rows[name]["emotion"]
            assert not rows[name]["anger"]

    def test_json_of_many_is_a_list(
        self, command: Command, models: dict[str, Path], table: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command(f"model={models['both']}", f"manifest={table}", "format=json")
        printed = json.loads(capsys.readouterr().out)
        rows = rows_of(beside(table))
        assert [(row["id"], row["emotion"] or "", row["error"] or "") for row in printed] == [
            (row["id"], row["emotion"], row["error"]) for row in rows
        ]

    def test_a_folder_is_predicted_on_in_the_order_of_its_names(
        self,
        command: Command,
        models: dict[str, Path],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = tmp_path / "sounds, and ${more}"
        for name in ("b/2.wav", "a.FLAC", "c.mp3", "b/1.ogg"):
            target = recording(folder / name.lower(), noise(1.0))
            target.rename(folder / name)
        film(folder / "d.mp4", noise(1.0)[None], RATE)
        recording(folder / "e.wav", noise(8.0))
        recording(folder / "._a.wav", noise(1.0))
        (folder / "notes.txt").write_text("no sound")
        assert command(f"model={models['audio']}", f"audio={folder}", "window=4", "hop=4") == 0
        table = pd.read_csv(beside(folder), keep_default_na=False)
        assert table["id"].tolist() == ["a.FLAC", "b/1.ogg", "b/2.wav", "c.mp3", "d.mp4", "e.wav", "e.wav"]
        assert table["start"].tolist()[-2:] == [0.0, 4.0]
        shown = capsys.readouterr().out
        assert "6 recordings, in 7 rows" in shown
        (tmp_path / "none").mkdir()
        with pytest.raises(InputError, match="no recording there"):
            command(f"model={models['audio']}", f"audio={tmp_path / 'none'}")
        with pytest.raises(InputError, match="a text belongs to one recording"):
            command(f"model={models['audio']}", f"audio={folder}", "text=calm", "overwrite=true")
        with pytest.raises(InputError, match="reads text, and no recording comes with any"):
            command(f"model={models['both']}", f"audio={folder}", "overwrite=true")

    def test_whatever_is_in_a_folder_has_its_row(
        self, command: Command, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "takes"
        latin, broken = (os.fsdecode(name) for name in (b"caf\xe9.wav", b"\xff.mp3"))
        recording(folder / "good.wav", noise(1.0)).rename(folder / latin)
        recording(folder / "good.ogg", noise(1.0))
        recording(folder / "silent.wav", np.zeros(RATE))
        recording(folder / "torn.flac", noise(1.0))
        recording(folder / "torn.mp3", noise(1.0))
        soundfile.write(folder / "loud.wav", 32768 * noise(1.0), RATE, subtype="FLOAT")
        for name in ("torn.flac", "torn.mp3"):
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) // 2])
        (folder / "gone.wav").symlink_to("nowhere.wav")
        for name, content in (("text.wav", b"no sound"), ("empty.mp4", b""), (broken, b"\0" * 999)):
            (folder / name).write_bytes(content)
        reasons = {
            "silent.wav": "silent",
            "torn.flac": "truncated|cannot be decoded",
            "torn.mp3": "truncated",
            "loud.wav": "divide by 32768",
            "gone.wav": "a link to nowhere.wav",
            "text.wav": "cannot be decoded",
            "empty.mp4": "cannot be decoded",
            r"\xff.mp3": r"\\xff\.mp3: cannot be decoded",
        }
        assert command(f"model={models['audio']}", f"audio={folder}", "format=json") == len(reasons)
        printed = json.loads(capsys.readouterr().out)
        rows = {row["id"]: row for row in rows_of(beside(folder))}
        assert [row["id"] for row in printed] == list(rows)
        assert rows.keys() == {r"caf\xe9.wav", "good.ogg", *reasons}
        for name, row in rows.items():
            assert bool(row["emotion"]) == (name not in reasons)
            assert re.search(reasons.get(name, "^$"), row["error"])
            assert str(tmp_path / "work") not in row["error"]
            assert "/tmp" not in row["error"].replace(str(tmp_path), "")  # not the file that it was decoded to
        command(f"model={models['audio']}", f"audio={folder / latin}", "window=0.5", f"output={latin}.csv")
        assert r"caf\xe9.wav" in capsys.readouterr().out

    def test_columns_that_a_model_does_not_read_are_named(
        self, command: Command, models: dict[str, Path], table: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        command(f"model={models['audio']}", f"manifest={table}")
        assert "the column text is not read" in caplog.text
        assert set(pd.read_csv(beside(table), keep_default_na=False)["text"]) == {""}
        command(f"model={models['text']}", f"manifest={table}", "overwrite=true")
        assert "the column audio is not read" in caplog.text

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("audio,text\na.wav,calm\n", "has no column id"),
            ("id,text\n1,calm\n", "has no column audio"),
            ("id,audio,text\n", "has no rows"),
            ("id,audio,text\n1,a.wav,calm\n1,b.wav,calm\n", "row 3 repeats the id 1"),
            ("id,audio,text\n1,a.wav,calm\n ,b.wav,calm\n", "id is empty in row 3"),
            ("", "not a readable CSV"),
            ("id,audio,text\n1,a.wav,caf\udce9\n", "not UTF-8"),
        ],
    )
    def test_a_table_that_is_none_is_refused(
        self, command: Command, models: dict[str, Path], tmp_path: Path, content: str, message: str
    ) -> None:
        (tmp_path / "rows.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(InputError, match=message):
            command(f"model={models['both']}", f"manifest={tmp_path / 'rows.csv'}")

    def test_a_table_appears_whole_or_not_at_all(
        self, command: Command, models: dict[str, Path], table: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("out.csv").write_text("as it was")

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("fourm_ser.prediction.output.print_counts", stop)
        monkeypatch.setattr("fourm_ser.prediction.predictor.Inference.__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            command(f"model={models['both']}", f"manifest={table}", "output=out.csv", "overwrite=true")
        assert Path("out.csv").read_text() == "as it was"
        assert [path.name for path in Path().iterdir()] == ["out.csv"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["text=calm"], "model: nothing is given"),
            (["model=DIR"], "nothing is given to predict on"),
            (["model=DIR", "audio=a.wav", "manifest=b.csv"], "audio and manifest: expected either"),
            (["model=DIR", "text=", "manifest=b.csv"], "text and manifest: expected either"),
            (["model=DIR", "audio="], "audio: the path is empty"),
            (["model=DIR", "text=caf\udce9"], r"text: caf\\xe9 is not UTF-8"),
            (["model=DIR", "audio=a.wav", "format=xml"], "format=xml: expected table or json"),
            (["model=DIR", "manifest=b.csv", "output=c.txt"], r"output=c\.txt: expected a file that ends in \.csv"),
            (["model=DIR", "manifest=b.csv", "output=./b.csv"], "would replace the manifest"),
            (["model=nowhere", "audio=a.wav"], "nowhere: no such folder"),
        ],
    )
    def test_keys_that_do_not_fit_are_refused(
        self, command: Command, models: dict[str, Path], arguments: list[str], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            command(*[word.replace("DIR", str(models["both"])) for word in arguments])

    @pytest.mark.parametrize("name", ["predictions", "confusions", "speakers", "confusion_matrix"])
    def test_a_run_s_own_files_are_not_replaced(self, command: Command, models: dict[str, Path], name: str) -> None:
        Path("metrics.json").write_text("{}")
        own = Path(f"{name}.png" if name == "confusion_matrix" else f"{name}.csv")
        own.write_text("as it was")
        with pytest.raises(InputError, match=f"replace a run's own {own}"):
            command(f"model={models['audio']}", "audio=a.wav", f"output={name}.csv", "overwrite=true")
        assert own.read_text() == "as it was"

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (["audio=takes"], "takes-emotions.csv"),
            (["audio=takes/"], "takes-emotions.csv"),
            (["audio=v1.2"], "v1.2-emotions.csv"),
            (["audio=takes/a.b.wav"], "takes/a.b-emotions.csv"),
            (["audio=takes", "window=null"], "takes-emotions.csv"),
            (["audio=takes/a.b.wav", "window=null"], None),
            (["manifest=takes/list.csv"], "takes/list-emotions.csv"),
            (["manifest=takes/list.csv", "window=null"], "takes/list-emotions.csv"),
            (["manifest=list.csv", "output=~/x.csv"], "HOME/x.csv"),
            (["text=calm"], None),
            (["audio=."], "../work-emotions.csv"),
            (["audio=takes/.."], "../work-emotions.csv"),
        ],
    )
    def test_a_table_lies_beside_what_was_predicted_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], expected: str | None
    ) -> None:
        for name in ("takes", "v1.2"):
            (tmp_path / "work" / name).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "work")
        config = composed_predict(*given)
        is_cut = config.manifest is not None or config.window is not None
        found = table_path(config.output, config.manifest or config.audio, is_cut)
        if expected is None:
            assert found is None
        else:
            wanted = Path(expected.replace("HOME", str(Path.home())))
            assert found is not None
            assert found.resolve() == wanted.resolve()

    @pytest.mark.parametrize("suffix", [".csv", ".png"])
    @pytest.mark.parametrize("given", ["audio=takes/a.wav", "manifest=takes/a.csv", "output=takes/a-emotions.csv"])
    def test_what_is_there_is_replaced_only_where_that_is_said(
        self, command: Command, models: dict[str, Path], suffix: str, given: str
    ) -> None:
        there = Path("takes/a-emotions").with_suffix(suffix)
        there.parent.mkdir()
        there.write_text("as it was")
        words = ["model=nowhere", *(["audio=a.wav"] if given.startswith("output") else []), given]
        with pytest.raises(InputError, match=rf"output={there}: is there already.*overwrite=true"):
            command(*words)
        with pytest.raises(InputError, match="nowhere: no such folder"):  # said when the model is loaded
            command(*words, "overwrite=true")
        assert there.read_text() == "as it was"

    def test_a_place_that_cannot_be_written_to_is_said_before_the_model_is_loaded(self, command: Command) -> None:
        Path("file").write_text("no folder")
        with pytest.raises(InputError, match=r"nothing can be written there .*output=FILE"):
            command("model=nowhere", "audio=a.wav", "output=file/out.csv")

    def test_a_recording_that_is_not_cut_may_lie_where_nothing_can_be_written(
        self, command: Command, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(**_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("fourm_ser.prediction.table_file.tempfile.TemporaryFile", refuse)
        monkeypatch.setattr("fourm_ser.files.os.replace", lambda *_: refuse())
        recording(tmp_path / "takes" / "a.wav", noise(3.0))
        assert command(f"model={models['audio']}", f"audio={tmp_path / 'takes' / 'a.wav'}") == 0
        for case in (["audio=TAKES/a.wav", "window=2"], ["audio=TAKES"]):
            words = [word.replace("TAKES", str(tmp_path / "takes")) for word in case]
            with pytest.raises(InputError, match=r"output=.*-emotions\.csv: nothing can be written there .*denied"):
                command(f"model={models['audio']}", *words)

    def test_a_table_and_its_figure_are_replaced(
        self, command: Command, models: dict[str, Path], tmp_path: Path
    ) -> None:
        file = recording(tmp_path / "a.wav", noise(3.0))
        words = [f"model={models['audio']}", f"audio={file}", "window=2"]
        assert command(*words) == 0
        table, figure = tmp_path / "a-emotions.csv", tmp_path / "a-emotions.png"
        before = table.read_text(), figure.stat().st_mtime_ns
        with pytest.raises(InputError, match="is there already"):
            command(*words)
        assert command(*words, "hop=0.5", "overwrite=true") == 0
        assert len(table.read_text()) > len(before[0])
        assert figure.stat().st_mtime_ns > before[1]

    def test_help_shows_every_key(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "fourm_ser.predict", "--help"], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0
        keys = set(OmegaConf.load(CONF / "predict.yaml")) - {"defaults", "hydra"}
        assert all(f"\n  {key}=" in done.stdout for key in keys)


def test_the_figure_shows_each_window_s_probabilities(models: dict[str, Path]) -> None:
    from fourm_ser.prediction.timeline import timeline_figure

    samples = np.concatenate([noise(2.0), np.zeros(2 * RATE, dtype=np.float32), noise(2.0, 1)])
    moments = Predictor.load(models["audio"]).over_time(samples, window=2.0, hop=2.0)
    band, axes = timeline_figure(moments, EMOTIONS).axes[:2]
    heights = []
    for patch in axes.patches:
        top, edges, base = patch.get_data()  # type: ignore[attr-defined]
        assert edges.tolist() == [0.0, 2.0, 4.0, 6.0]
        heights.append(top - base)
    for place, moment in enumerate(moments):
        shares = None if moment.prediction is None else list(moment.prediction.probabilities.values())
        assert [height[place] for height in heights] == pytest.approx(shares or [0.0] * 4)
    legend = axes.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == set(EMOTIONS)
    named = [text.get_text() for text in band.texts]
    assert named == [moment.prediction.emotion for moment in moments if moment.prediction is not None]
