"""What conf/ says of a command: its groups, their options, every key with its default and its comment.

The files are read as text with comments, and composed as far as a word of help needs: Hydra takes seconds for the same.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fourm_ser.config import CONF
from fourm_ser.plain import SafeLoader

HYDRA_S = ("_target_", "_recursive_", "_convert_", "_partial_", "_args_")
COMMENT = re.compile(r"\s#\s*(.*\S)")
PACKAGE = re.compile(r"#\s*@package\s+(\S+)")
SENTENCE = re.compile(r"(?<=\.)(?<!al\.)\s+(?=[A-Z])")
CHOICE = re.compile(r"(?P<force>override )?(?P<root>/)?(?P<group>[\w/]+)(@(?P<package>[\w.]+))?$")
GLOBAL = ("experiment", "sweep")  # whose options choose of other groups


@dataclass
class Key:
    """A key of the config: `text` as its value is written, None where other keys lie below it; its comment."""

    text: str | None = None
    comment: str = ""
    below: dict[str, "Key"] = field(default_factory=dict)

    def at(self, path: str) -> "Key":
        """The key of a dotted path below this one, made where it is not there."""
        found = self
        for name in path.split(".") if path else ():
            found = found.below.setdefault(name, Key())
            found.text = None
        return found

    @property
    def is_explained_below(self) -> bool:
        """Whether all keys below have comments of their own, or below them."""
        shown = [key for name, key in self.below.items() if name not in HYDRA_S]
        return bool(shown) and all(key.comment or key.is_explained_below for key in shown)

    @property
    def written(self) -> str:
        """Its value in one line of YAML."""
        if self.text is not None:
            return self.text
        inner = (f"{name}: {key.written}" for name, key in self.below.items() if name not in HYDRA_S)
        return "{" + ", ".join(inner) + "}"


@dataclass
class Group:
    """A group of options that a command chooses from: the option that is chosen, the comment, all options."""

    name: str
    chosen: str
    comment: str
    options: list[str]


@dataclass
class Described:
    """All that there is to choose for a command."""

    about: list[str]
    groups: list[Group]
    keys: Key

    def leaves(self) -> dict[str, Key]:
        """Every key of one line by its full name: those without others below, and nodes that one comment explains."""
        found: dict[str, Key] = {}
        _leaves(self.keys, "", found)
        return found


def describe(command: str, words: Sequence[str] = ()) -> Described:
    """What a command's config holds under the choices of options among its `key=value` words."""
    chosen = {}
    for word in words:
        name, sign, option = word.lstrip("+").partition("=")
        if sign and _is_group(name.partition("@")[0]):
            chosen[name] = option
    composer = _Composer(chosen)
    composer.add(f"{command}.yaml", "", "")
    about = _about(_read(CONF / f"{command}.yaml")[0])
    return Described(about, composer.groups, composer.keys)


def options_of(group: str) -> list[str]:
    """The options of a group, by name."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def about_option(group: str, option: str) -> str:
    """What an option's file says of it in its first sentence; empty where it says nothing."""
    lines = _about(_read(CONF / group / f"{option}.yaml")[0])
    return SENTENCE.split(" ".join(lines), maxsplit=1)[0]


@cache
def _read(path: Path) -> tuple[str, yaml.Node | None, list[Any]]:
    """A file's text, its nodes, and its defaults list."""
    text = path.read_text(encoding="utf-8")
    return text, yaml.compose(text, SafeLoader), (yaml.load(text, SafeLoader) or {}).get("defaults") or []


def _is_group(name: str) -> bool:
    return name != "" and (CONF / name).is_dir()


def _about(text: str) -> list[str]:
    """The comment that a file begins with, a line each."""
    lines = []
    for line in text.splitlines():
        if PACKAGE.match(line):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return lines


class _Composer:
    """Follows defaults lists, later files over earlier ones, as Hydra does."""

    def __init__(self, chosen: Mapping[str, str]) -> None:
        self.chosen = dict(chosen)  # by `group` or `group@package`: what the command line says wins
        self.groups: list[Group] = []
        self.keys = Key()

    def add(self, name: str, group: str, package: str) -> None:
        """Add a file of conf/, which lies in `group`, at a package."""
        path = CONF / name
        if not path.is_file():
            return
        text, node, defaults = _read(path)
        entries = [(entry, "") for entry in defaults]
        if isinstance(node, yaml.MappingNode) and defaults:
            listed = next(value for key, value in node.value if key.value == "defaults")
            entries = [(entry, _comment(text, value)) for entry, value in zip(defaults, listed.value, strict=True)]
        self._override(defaults, package)
        if "_self_" not in defaults:
            entries.append(("_self_", ""))
        for entry, comment in entries:
            if entry == "_self_":
                if isinstance(node, yaml.MappingNode):
                    _merge(self.keys.at(package), node, text)
            elif isinstance(entry, str):
                option, _, inner = entry.partition("@")
                self.add(f"{group}/{option}.yaml", group, _joined(package, inner))
            else:
                (place, option), *_ = entry.items()
                self._choose(str(place), option, group, package, comment)

    def _override(self, defaults: Sequence[Any], package: str) -> None:
        """Let what a file says by `override` hold, unless the command line says otherwise; so of what it includes."""
        for entry in defaults:
            if not isinstance(entry, dict):
                continue
            (place, option), *_ = entry.items()
            found = CHOICE.match(str(place))
            if found is None:
                continue
            if found["force"]:
                name = found["group"]
                if found["package"]:
                    name += f"@{_joined(package, found['package'])}"
                self.chosen.setdefault(name, str(option))
            elif found["group"] in GLOBAL and self.chosen.get(found["group"], option):
                preset = CONF / found["group"] / f"{self.chosen.get(found['group'], option)}.yaml"
                if preset.is_file():
                    self._override(_read(preset)[2], "")

    def _choose(self, place: str, option: Any, group: str, package: str, comment: str) -> None:
        found = CHOICE.match(place)
        if found is None or found["force"]:
            return
        name = found["group"] if found["root"] or not group else f"{group}/{found['group']}"
        inner = found["package"]
        where = _joined(package, inner) if inner else name.replace("/", ".")
        key = f"{name}@{where}" if inner else name
        chosen = str(self.chosen.get(key, "null" if option is None else option))
        self.groups.append(Group(key, chosen, comment, options_of(name)))
        file = f"{name}/{chosen}.yaml"
        if chosen == "null" or not (CONF / file).is_file():
            return
        said = PACKAGE.search(_read(CONF / file)[0])
        if said is not None and not inner:
            where = "" if said[1] == "_global_" else said[1]
        self.add(file, name, where)


def _merge(into: Key, node: yaml.MappingNode, text: str) -> None:
    """Let a file's keys hold over those that are there; a comment stays where the later file has none."""
    for name_node, value in node.value:
        name = str(name_node.value)
        if name == "defaults":
            continue
        key = into.below.setdefault(name, Key())
        key.comment = _comment(text, value, name_node) or key.comment
        if isinstance(value, yaml.MappingNode) and value.value:
            key.text = None
            _merge(key, value, text)
        else:
            key.text = text[value.start_mark.index : value.end_mark.index].strip() or "null"
            key.below.clear()


def _comment(text: str, value: yaml.Node, name: yaml.Node | None = None) -> str:
    """The comment at the end of the line in which a value ends; of a block, of the line in which its name stands."""
    is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    mark = name.end_mark if is_block and name is not None else value.end_mark
    if is_block and name is None:  # an entry of a list that is a mapping: - data: demo
        mark = value.value[-1][1].end_mark
    found = COMMENT.search(text[mark.index :].split("\n", 1)[0])
    return found[1] if found else ""


def _joined(package: str, inner: str) -> str:
    return f"{package}.{inner}".strip(".")


def _leaves(key: Key, path: str, found: dict[str, Key]) -> None:
    for name, below in key.below.items():
        full = _joined(path, name)
        if name in HYDRA_S:
            continue
        if below.text is not None or (below.comment and not below.is_explained_below):
            found[full] = below
        else:
            _leaves(below, full, found)
