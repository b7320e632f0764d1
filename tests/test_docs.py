"""The pages for people: README.md and docs/. Their links lead somewhere, their commands can be composed."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourm_ser.options import describe, options_of
from tests.conftest import CONF

ROOT = CONF.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = {"index.md", "keys.md", "changelog.md"}  # by docs/hooks.py
DESCRIBED = ("train", "prepare", "evaluate", "predict", "push", "export", "serve", "analyze")
OTHERS = {
    "make",
    "pip",
    "source",
    "uv",
    "hf",
    "tensorboard",
    "sbatch",
    "git",
    "pre-commit",
    "wandb",
    "torchrun",
    "curl",
}
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.S | re.M)


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub and the pages' builder make it."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\- ]", "", heading.lower()).strip())


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {slug(found[1]) for found in re.finditer(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        name, _, anchor = link.partition("#")
        if "://" in link or name in MADE:
            continue
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_in_the_table_of_contents_and_the_readme_is_short() -> None:
    contents = (ROOT / ".mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    named = set(re.findall(r"(\w+\.md)", contents))
    assert named == MADE | {path.name for path in (ROOT / "docs").glob("*.md")}
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


def commands() -> Iterator[tuple[str, list[str]]]:
    """The command lines of all pages, as words without comments."""
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and not re.match(r"[A-Z]+=", words[0]):  # a variable of the shell
                    yield page.name, words[: words.index("|")] if "|" in words else words


LINES = sorted({(page, tuple(words)) for page, words in commands()})


def command_of(words: tuple[str, ...]) -> tuple[str, list[str]]:
    """The command of this package that a line is, and its arguments; an empty name where it is none of ours."""
    if words[0] == "fourm_ser":
        return (words[1] if len(words) > 1 else "__main__", list(words[2:]))
    if words[:2] == ("python", "-m") and words[2].startswith("fourm_ser."):
        return words[2].removeprefix("fourm_ser."), list(words[3:])
    return "", list(words)


def test_there_is_no_command_that_nobody_knows() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page, words in LINES:
        command, rest = command_of(words)
        if command:
            path = ROOT / "fourm_ser" / command.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page}: {' '.join(words)}"
        elif rest[0] == "make":
            assert set(rest[1:]) <= targets, f"{page}: {' '.join(words)}"
        elif rest[:2] == ["python", "-m"]:
            assert (ROOT / f"{rest[2].replace('.', '/')}.py").is_file() or rest[2] in ("hatchling", "http.server")
        else:
            assert rest[0] in OTHERS, f"{page}: {' '.join(words)}"


@pytest.mark.parametrize("command", DESCRIBED)
def test_commands_say_what_can_be_said(command: str) -> None:
    said = {words: page for page, words in LINES if command_of(words)[0] == command}
    assert said
    for words, page in said.items():
        own = [word for word in command_of(words)[1] if "=" in word and not word.startswith(("-", "resume="))]
        unknown = unknown_in(command, own)
        assert not unknown, f"{page}: {' '.join(words)}: nothing is called {unknown}"


def unknown_in(command: str, words: list[str]) -> list[str]:
    """The words whose option, or whose key under the options chosen, is not there."""
    unknown, chosen, keys = [], [], []
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if not (CONF / group).is_dir():
            keys.append(key)
            continue
        options = value.split(",")
        unknown += [f"{group}={option}" for option in options if option not in options_of(group)]
        chosen.append(f"{key}={options[0]}")
    described = describe(command, chosen)
    for key in keys:
        node = described.keys
        for name in key.split("."):
            if name not in node.below:
                unknown.append(key)
                break
            node = node.below[name]
    return unknown


def test_a_command_that_cannot_be_is_found() -> None:
    assert unknown_in("train", ["loss=ce_center", "loss.alpha=0.1", "stage.transfer.steps=3"]) == []
    assert unknown_in("train", ["loss=ce", "loss.alpha=0.1"]) == ["loss.alpha"]
    assert unknown_in("train", ["loss=ce,nonsense"]) == ["loss=nonsense"]
