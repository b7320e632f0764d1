"""What --help of a command says: how it is written, its groups, and every key with its default in a line."""

import textwrap
from collections.abc import Sequence
from shutil import get_terminal_size

from fourm_ser.options import Described, Group, about_option, describe

USAGE = {
    "train": (
        "fourm_ser train [group=option ...] [key=value ...]",
        "fourm_ser train -m key=value,value ...        many runs, one for each combination",
        "fourm_ser train resume=DIR                    go on with a run",
    ),
    "prepare": ("fourm_ser prepare data=<corpus> data.root=DIR [key=value ...]",),
    "evaluate": (
        "fourm_ser evaluate run=DIR [key=value ...]",
        "fourm_ser evaluate model=DIR data=<corpus> data.root=DIR",
    ),
    "predict": (
        "fourm_ser predict model=DIR audio=FILE text='what is said' [key=value ...]",
        "fourm_ser predict model=DIR audio=FOLDER",
        "fourm_ser predict model=DIR manifest=FILE.csv",
    ),
    "push": ("fourm_ser push run=DIR repo=USER/NAME [key=value ...]",),
    "export": ("fourm_ser export model=DIR output=FILE.onnx",),
    "serve": ("fourm_ser serve model=DIR [key=value ...]",),
    "analyze": ("fourm_ser analyze run=DIR [key=value ...]",),
}
MORE = {
    "--cfg job": "print the whole config and stop",
    "--version": "of this package",
    "--hydra-help": "what else Hydra knows",
    "fourm_ser completion": "how a shell completes all of this by <TAB>",
}
COLUMN = 34  # where comments begin


def help_text(command: str, words: Sequence[str] = ()) -> str:
    """The help of a command.

    Args:
        command: its name.
        words: the rest of the command line: the options it chooses are those whose keys are shown, and a word that is
            the name of a group asks for that group's options alone.
    """
    described = describe(command, words)
    width = max(60, min(get_terminal_size().columns, 120))
    asked = [group for group in described.groups if group.name in words]
    if asked:
        return "\n".join(line for group in asked for line in _group_alone(group, described, width)) + "\n"
    usage = USAGE.get(command, (f"fourm_ser {command} [key=value ...]",))
    lines = [f"{'usage:' if place == 0 else '      '} {line}" for place, line in enumerate(usage)]
    lines += ["", *textwrap.wrap(" ".join(described.about), width)]
    if described.groups:
        lines += ["", f"Groups, as group=option (more on one: fourm_ser {command} GROUP --help)"]
        lines += [line for group in described.groups if "@" not in group.name for line in _group(group, width)]
    lines += ["", "Keys, as key=value, with their defaults" + (" under the options above" if described.groups else "")]
    lines += _keys(described, "", width)
    lines += ["", "More"]
    for word, meaning in MORE.items():
        lines += _line(word, meaning, width)
    return "\n".join(lines) + "\n"


def _group(group: Group, width: int) -> list[str]:
    options = ", ".join(group.options)
    return [
        *_line(f"{group.name}={group.chosen}", group.comment, width),
        *textwrap.wrap(options, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_long_words=False),
    ]


def _group_alone(group: Group, described: Described, width: int) -> list[str]:
    name, _, package = group.name.partition("@")
    lines = [f"{group.name}: {group.comment}".rstrip(": "), ""]
    for option in group.options:
        lines += _line(f"{group.name}={option}", about_option(name, option), width)
    place = package or name.replace("/", ".")
    lines += ["", f"Keys of {group.name}={group.chosen}"]
    return [*lines, *_keys(described, place, width), ""]


def _keys(described: Described, place: str, width: int) -> list[str]:
    """The keys at a place and below, a blank line where another node begins."""
    lines: list[str] = []
    before = None
    for path, key in described.leaves().items():
        if not f"{path}.".startswith(f"{place}." if place else "") or (path.startswith("hydra.") and not key.comment):
            continue
        node = path.rpartition(".")[0]
        if lines and node != before:
            lines.append("")
        before = node
        lines += _line(f"{path}={key.written}", key.comment, width)
    return lines


def _line(word: str, comment: str, width: int) -> list[str]:
    """A word that can be pasted, and behind it what it means; below it where it is long."""
    if not comment:
        return [f"  {word}"]
    said = textwrap.wrap(comment, width - COLUMN, break_long_words=False, break_on_hyphens=False)
    if len(word) + 3 > COLUMN:
        return [f"  {word}", *(" " * COLUMN + line for line in said)]
    first = f"  {word}".ljust(COLUMN) + said[0]
    return [first, *(" " * COLUMN + line for line in said[1:])]
