"""YAML and JSON that others may have written: read as plain values, within limits, and nothing in them is looked up."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fourm_ser.errors import InputError

# A record of a run has 15 KB in 800 values, nested 7 deep.
LARGEST = 2**20  # bytes of a YAML file
LARGEST_JSON = 2**26  # predictions and tables are no JSON: metrics, labels, summaries
MOST = 20_000  # keys, values, lists
DEEPEST = 40  # lists and keys within each other
HERE = "${folder}"  # what a model directory calls itself by


SafeLoader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""In C where there is one: ten times as fast."""


class Loader(SafeLoader):
    """YAML as OmegaConf writes and reads it: `1e-4` is a number, a date is a text, no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Keys and values of a node."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice} stands twice", node.start_mark)
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's keys and values.

    Raises:
        OSError: it cannot be read.
        ValueError: no YAML, no keys and values, more than the limits, or what is no plain value: aliases and tags.
    """
    text = _text(path, LARGEST)
    try:
        _check(yaml.parse(text, Loader))
        return as_mapping(yaml.load(text, Loader) or {})
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ValueError("is nested too deep") from None


def read_config(path: Path, folder: Path | None = None) -> DictConfig:
    """A config that lies in a folder, as plain values: no `${...}` in it is looked up.

    Args:
        path: the file.
        folder: what `${folder}` in it stands for; None where it stands for nothing.

    Raises:
        InputError: it cannot be read, is no config, or holds a value that is read elsewhere: the key.
    """
    try:
        return OmegaConf.create(_looked_up(read_yaml(path), "", folder))
    except (OSError, ValueError, OmegaConfBaseException) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise InputError(f"{path}: is damaged, or no config of a run or model: {said}.") from error


def read_json(path: Path) -> Any:
    """A JSON file's value; what is NaN or infinite, which earlier versions wrote as words, is None.

    Raises:
        OSError: it cannot be read.
        ValueError: no JSON, or more than the limits.
    """
    text = _text(path, LARGEST_JSON)
    try:
        return json.loads(text, parse_constant=lambda word: None)
    except RecursionError:
        raise ValueError("is nested too deep") from None


def as_mapping(value: Any) -> dict[str, Any]:
    """What was read from JSON or YAML, if it is keys and values; else ValueError."""
    if not isinstance(value, dict):
        raise ValueError("expected keys and values")
    return value


def _text(path: Path, most: int) -> str:
    if path.exists() and not path.is_file():
        raise ValueError("is no file")
    if path.stat().st_size > most:
        raise ValueError(f"has more than {most:,} bytes")
    return path.read_text(encoding="utf-8")


def _check(events: Iterator[yaml.Event]) -> None:
    """Refuse YAML that would take long to build, or build what is no plain value, before any of it is built."""
    depth = 0
    for count, event in enumerate(events):
        place = f"line {event.start_mark.line + 1}" if event.start_mark is not None else "a line"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{place} holds an alias (*{event.anchor}), which configs here do not have")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"{place} holds a tag ({event.tag}), which configs here do not have")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST or count > MOST:
            raise ValueError(f"{place}: expected at most {MOST:,} values, and {DEEPEST} within each other")


def _looked_up(value: Any, place: str, folder: Path | None) -> Any:
    """A tree of plain values with the folder in place of `${folder}`; ValueError for any other `${`, and `???`."""
    if isinstance(value, dict):
        return {key: _looked_up(below, f"{place}.{key}".lstrip("."), folder) for key, below in value.items()}
    if isinstance(value, list):
        return [_looked_up(below, f"{place}[{index}]", folder) for index, below in enumerate(value)]
    if not isinstance(value, str):
        return value
    rest = value if folder is None else value.replace(HERE, "")
    if "${" in rest or value == "???":
        what = "nothing" if value == "???" else f"{value}, which is read elsewhere"
        raise ValueError(f"{place} is {what}: nothing but values may stand in a folder")
    # Names of folders are no references, either.
    return value if folder is None else value.replace(HERE, str(folder.resolve()).replace("${", r"\${"))
