"""Classes and the labels that become them: what names they may have, how labels are folded, which are chosen."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fourm_ser.data.manifest import EMOTIONS, order_emotions
from fourm_ser.data.names import clean_cell
from fourm_ser.errors import InputError
from fourm_ser.values import shown

# Columns beside those of the classes in tables of results, and the row of all classes together.
TAKEN = ("id", "speaker", "emotion", "predicted", "start", "end", "text", "error", "utterances", "ua", "wa", "all")


def read_classes(given: Any) -> list[str] | None:
    """`data.emotions`, names or whole numbers in the order of their indices, as names; None for all of a corpus.

    Raises:
        InputError: no list of two or more different names, or a name that cannot be a class's.
    """
    if given is None:
        return None
    if not isinstance(given, list | tuple):
        raise InputError(f"data.emotions={given}: expected a list of classes, such as [anger,neutral], or null.")
    names = [_name("data.emotions", value) for value in given]
    if len(set(names)) != len(names) or len(names) < 2:
        raise InputError(f"data.emotions=[{','.join(names)}]: expected two or more different emotions.")
    refuse_names(names)
    return names


def read_label_map(given: Any) -> dict[str, str]:
    """`data.label_map` as names; None is an empty one.

    Raises:
        InputError: no mapping of names, or of whole numbers.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(f"data.label_map={given}: expected labels and what they become, {{excited: happiness}}.")
    return {_name("data.label_map", label): _name("data.label_map", name) for label, name in given.items()}


def refuse_names(emotions: Iterable[str]) -> None:
    """Refuse classes that tables and records of results could not hold by their names (InputError)."""
    for emotion in emotions:
        if emotion.casefold() in TAKEN:
            reason = "has the name of something else in tables of results"
        elif "/" in emotion or "${" in emotion or len(emotion.splitlines()) > 1:
            reason = "holds a slash, ${ or a line break, which names of results cannot"
        else:
            continue
        name = emotion.replace("\n", "\\n").replace("\r", "\\r")
        raise InputError(f"data.emotions: the class {name} {reason}. Give it another name: data.label_map.")


def fold_labels(labels: pd.Series, label_map: Mapping[str, str], source: Path) -> pd.Series:
    """Labels, each folded into what `label_map` makes of it.

    Raises:
        InputError: the map names a label that nobody has, which would be a misspelt one.
    """
    found = Counter(labels)
    unknown = [label for label in label_map if label not in found and label not in EMOTIONS]
    if unknown:
        raise InputError(
            f"data.label_map: {source} has no emotion {', '.join(unknown)} to fold. It has {counted(found)}."
        )
    return labels.map(lambda label: label_map.get(label, label))


def choose_classes(found: Counter[str], wanted: list[str] | None, drop_other: bool, source: Path) -> list[str]:
    """The classes of a corpus with these labels, in the order of their indices: those that are wanted, or all.

    Raises:
        InputError: chosen ones that nobody has, others that nobody chose, names that cannot be a class's.
    """
    classes = wanted or order_emotions(found)
    refuse_names(classes)
    absent = [emotion for emotion in classes if emotion not in found]
    if absent:
        raise InputError(
            f"data.emotions: {source} has no utterance of {', '.join(absent)}. It has {counted(found) or 'none'}."
        )
    other = Counter({emotion: n for emotion, n in found.items() if emotion not in classes})
    if other and not drop_other:
        raise InputError(
            f"data.emotions: {other.total()} of {found.total()} utterances in {source} have an emotion that is not "
            f"among {', '.join(classes)}: {counted(other)}. Add it to data.emotions, fold it into another by "
            "data.label_map, or leave these utterances out with data.drop_other=true."
        )
    return classes


def counted(counts: Counter[str]) -> str:
    """Counts by emotion, in words."""
    return ", ".join(f"{counts[emotion]} {emotion}" for emotion in order_emotions(counts))


def _name(key: str, value: Any) -> str:
    """A label's name: a text, or a number as its text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InputError(
            f"{key}: {shown(value)} is no name of an emotion. YAML reads yes, no, on, off and null so: "
            "put it in quotes."
        )
    name = clean_cell(value)
    if not name:
        raise InputError(f"{key}: a name of an emotion is empty.")
    return name
