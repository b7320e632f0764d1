"""Pages of the documentation that are made from other files: the home page, every key, the changelog."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from fourm_ser.options import Described, about_option, describe

ROOT = Path(__file__).parents[1]
COMMANDS = ("train", "prepare", "evaluate", "predict", "push", "export", "serve", "analyze")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that no file of docs/ holds."""
    made = {"index.md": home(), "keys.md": keys(), "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def home() -> str:
    """README.md, whose links into docs/ stay within the pages."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](").replace('"docs/', '"')
    return re.sub(r"\[([^\]]*)\]\((?:CONTRIBUTING\.md|LICENSE|CITATION\.cff)\)", r"\1", text)


def keys() -> str:
    """Every option of every group and every key of every command, from the comments in conf/."""
    lines = ["# Every key", "", "From the comments of `conf/`. `fourm_ser <command> --help` prints the same."]
    described = {command: describe(command) for command in COMMANDS}
    lines += ["", "## Options", ""]
    for group in described["train"].groups:
        name = group.name.partition("@")[0]
        if "@" in group.name:
            continue
        lines += [f"### {name}", "", group.comment, "", "| | |", "|---|---|"]
        lines += [f"| `{name}={option}` | {cell(about_option(name, option))} |" for option in group.options]
        lines.append("")
    for command in COMMANDS:
        lines += [f"## fourm_ser {command}", "", *table(described[command]), ""]
    return "\n".join(lines)


def table(described: Described) -> Iterator[str]:
    """The rows of a command's keys, with their defaults."""
    yield from ("| key | default | |", "|---|---|---|")
    for path, key in described.leaves().items():
        if key.comment or not path.startswith("hydra."):
            yield f"| `{path}` | `{cell(str(key.written))}` | {cell(key.comment)} |"


def cell(text: str) -> str:
    """Text as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
