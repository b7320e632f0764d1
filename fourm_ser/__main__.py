"""All commands under one name: fourm_ser train encoder=bert_wav2vec, fourm_ser predict model=DIR audio=FILE."""

import ast
import importlib
import sys
from difflib import get_close_matches
from pathlib import Path

from fourm_ser import __version__

COMMANDS = {
    "train": "train",
    "prepare": "prepare",
    "evaluate": "evaluate",
    "predict": "predict",
    "push": "push",
    "export": "export",
    "serve": "serve",
    "analyze": "analyze",
    "report": "report.__main__",
    "completion": "completion",
}


def main() -> None:
    """The console command: its first word names one of the commands, the rest is that command's."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("--version", "-V"):
        print(f"fourm_ser {__version__}")
    elif name in ("--help", "-h", "help"):
        print(overview())
    elif name in COMMANDS:
        sys.argv = [f"{Path(sys.argv[0]).name} {name}", *words]
        importlib.import_module(f"fourm_ser.{COMMANDS[name]}").main()
    else:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Expected one of {', '.join(COMMANDS)}."
        sys.exit(f"error: {name}: no such command. {hint}")


def overview() -> str:
    """The commands, a line each."""
    lines = [f"fourm_ser {__version__}: experiments in multi-modal speech emotion recognition", ""]
    lines += ["usage: fourm_ser COMMAND key=value ...        help on one: fourm_ser COMMAND --help", ""]
    for name, module in COMMANDS.items():
        path = Path(__file__).parent / f"{module.replace('.', '/')}.py"
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        about, _, example = said.partition("\n")[0].partition(": ")
        lines += [f"  {name:<12}{about}", f"  {'':<12}{example.rstrip('.')}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
