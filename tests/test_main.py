"""The console command: its commands, version, completion, and answers to what is no key=value."""

import contextlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fourm_ser import __version__
from fourm_ser.__main__ import COMMANDS, main, overview
from fourm_ser.commandline import answer
from fourm_ser.completion import completions
from fourm_ser.mistakes import mistake

ROOT = Path(__file__).resolve().parent.parent


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fourm_ser", *words])
    main()


def test_without_words_the_commands_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    printed = capsys.readouterr().out
    assert printed == overview() + "\n"
    for name, module in COMMANDS.items():
        assert f"\n  {name} " in printed
        assert callable(importlib.import_module(f"fourm_ser.{module}").main)


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS if name != "completion"), ["train", "resume=x"]])
def test_every_command_tells_our_version(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        run(monkeypatch, *words, "--version")
    assert capsys.readouterr().out == f"fourm_ser {__version__}\n"


def test_a_misspelt_command_answers_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"error: trian: no such command. Did you mean train\?"):
        run(monkeypatch, "trian", "seed=1")


def test_a_module_is_the_same_command() -> None:
    for words in (["fourm_ser.predict", "a.wav"], ["fourm_ser", "predict", "a.wav"]):
        done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr == "error: a.wav: expected key=value. Did you mean audio=a.wav?\n"


@pytest.mark.parametrize(
    ("command", "words", "meant"),
    [
        ("predict", "RUN a.wav", "model=RUN audio=a.wav"),
        ("predict", "RUN FOLDER", "model=RUN audio=FOLDER"),
        ("predict", "model=RUN new.csv", "manifest=new.csv"),
        ("predict", "--model RUN --audio a.wav", "model=RUN audio=a.wav"),
        ("predict", "--model=RUN", "model=RUN"),
        ("predict", "--modle RUN", "model=RUN"),
        ("predict", "model=RUN audio=a.wav text=oh no", "'text=oh no'"),
        ("evaluate", "RUN", "run=RUN"),
        ("analyze", "multirun/x/y", "run=multirun/x/y"),
        ("train", "RUN", "resume=RUN"),
        ("train", "resume RUN", "resume=RUN"),
        ("train", "bert_vggish seed=1", "encoder=bert_vggish"),
        ("train", "table.csv", "'data=manifest data.manifest=table.csv'"),
        ("train", "seed", "seed=..."),
        ("train", "sede", "seed=..."),
        ("train", "--epochs 3", "stage.transfer.epochs=3"),
        ("train", "--multirn seed=1,2", "--multirun"),
        ("prepare", "FOLDER", "data.root=FOLDER"),
    ],
)
def test_what_is_no_key_value_is_answered_with_how_it_is_written(
    command: str, words: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN" / "model").mkdir(parents=True)
    (tmp_path / "FOLDER").mkdir()
    assert mistake(command, words.split()).endswith(f": expected key=value. Did you mean {meant}?")
    monkeypatch.setattr(sys, "argv", ["fourm_ser", *words.split()])
    with pytest.raises(SystemExit, match=r"error: "):
        answer(command)


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "seed=0,1", "~lora", "+x=1"],
        ["--cfg", "job", "--resolve", "-p", "data"],
        ["--config-dir", "my_conf", "--config-dir=mine", "fusion=max"],
        ["-sc", "install=bash"],
        ["--info", "defaults"],
        ["--info"],
        ["text=--model"],
    ],
)
def test_what_is_hydra_s_is_let_through(words: list[str]) -> None:
    assert mistake("train", words) == ""


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("fourm_ser ", {"train ", "predict "}),
        ("fourm_ser ev", {"evaluate "}),
        ("fourm_ser train en", {"encoder=", "encoder/text=", "encoder.", "encode."}),
        ("fourm_ser train -m encoder=bert_v", {"encoder=bert_vggish "}),
        ("fourm_ser train +experiment=mem", {"+experiment=memocmt "}),
        ("fourm_ser train loss=ce_center loss.terms.center.f", {"loss.terms.center.form="}),
        ("fourm_ser train stage.fine", {"stage.finetune."}),
        ("fourm_ser train seed=1 fusion.dr", {"fusion.dropout="}),
        ("fourm_ser train trainer.tf32=", {"trainer.tf32=true ", "trainer.tf32=false "}),
        ("fourm_ser evaluate resample=s", {"resample=speakers "}),
        ("fourm_ser predict mod", {"model="}),
        ("fourm_ser completion z", {"zsh"}),
    ],
)
def test_words_are_completed(line: str, some: set[str]) -> None:
    found = completions(line)
    assert some <= set(found)
    assert all(word.startswith(line.rpartition(" ")[2]) for word in found)


def test_paths_are_left_to_the_shell() -> None:
    assert completions("fourm_ser predict model=outputs/") == []
    assert completions("fourm_ser predict audio=./a") == []


def test_bash_completes_in_place() -> None:
    script = f"""
fourm_ser() {{ {sys.executable} -m fourm_ser "$@"; }}
eval "$(fourm_ser completion bash)"
COMP_LINE="fourm_ser train encoder=bert_vg" COMP_POINT=31 COMP_WORDS=(fourm_ser train encoder = bert_vg) COMP_CWORD=4
_fourm_ser; printf '%s|' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "bert_vggish |", done.stderr
