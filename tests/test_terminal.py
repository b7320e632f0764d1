"""The terminal: nothing that may be copied is folded."""

import io
import shlex
import sys
from pathlib import Path

import pytest
from rich import get_console, reconfigure
from rich.console import Console
from rich.progress import Progress, track

from fourm_ser import terminal
from fourm_ser.terminal import busy, command_line, many, near, say

LONG = "fourm_ser train resume='outputs/a folder/" + "x" * 200 + "' [bold] 'a=1'"


def test_a_long_line_is_one_line_above_a_bar_too(capsys: pytest.CaptureFixture[str]) -> None:
    reconfigure(width=40)
    try:
        say(LONG)
        with Progress(console=get_console(), transient=True) as bar:
            bar.add_task("x", total=2)
            say(LONG)
    finally:
        reconfigure()
    assert capsys.readouterr().out.splitlines().count(LONG) == 2


def test_what_takes_long_is_shown_on_a_terminal_and_nowhere_else(capsys: pytest.CaptureFixture[str]) -> None:
    with busy("testing"):
        pass
    assert capsys.readouterr().out == ""

    shown = Console(file=io.StringIO(), force_terminal=True, width=80)
    with busy("testing", shown):
        assert list(track(range(2), "a bar within", console=shown, transient=True)) == [0, 1]
    assert isinstance(shown.file, io.StringIO)
    assert "testing" in shown.file.getvalue()
    assert "a bar within" in shown.file.getvalue()


def test_a_command_names_what_a_shell_here_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".venv").mkdir()
    for name in ("python", "fourm_ser"):
        script = tmp_path / ".venv" / name
        script.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "python"))
    found: dict[str, str | None] = {}
    monkeypatch.setattr(terminal, "which", found.get)
    words = ["train", "resume=my run"]
    assert command_line(*words) == ".venv/fourm_ser train 'resume=my run'"
    found["fourm_ser"] = str(tmp_path / ".venv" / "fourm_ser")  # the environment is activated
    assert command_line(*words) == "fourm_ser train 'resume=my run'"
    found["fourm_ser"] = "/elsewhere/fourm_ser"
    assert command_line(*words) == ".venv/fourm_ser train 'resume=my run'"
    (tmp_path / ".venv" / "fourm_ser").unlink()  # not installed
    assert command_line(*words) == ".venv/python -m fourm_ser train 'resume=my run'"
    found["python"] = str(tmp_path / ".venv" / "python")
    assert shlex.split(command_line(*words)) == ["python", "-m", "fourm_ser", *words]


def test_paths_and_numbers_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert near(tmp_path / "outputs" / "x") == str(Path("outputs/x"))
    assert near(Path("/elsewhere/x")) == "/elsewhere/x"
    assert [many(number) for number in (0, 84_736, 460_000, 110_000_000)] == ["0", "84,736", "0.5 M", "110.0 M"]
