"""Where a run's inputs are, said so that it holds from any working directory."""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

OF_DATA = ("manifest", "root", "audio_root", "split_file")
OF_ENCODERS = ("checkpoint", "tokenizer", "weights", "pca")
WORDS = ("pretrained", "random")


def settle(config: MutableMapping[Any, Any]) -> None:
    """Make the relative paths of a config absolute, in place; what begins with `~` holds everywhere and stays.

    Of the corpora all of `OF_DATA` are paths, and `cache` is one; of the encoders, whose keys may also be names of the
    hub, those of `OF_ENCODERS` that exist here.

    Args:
        config: a resolved config, or a mapping read from a record.
    """
    _settle(config.get("data"), OF_DATA, lambda path: True)
    _settle(config.get("encoder"), OF_ENCODERS, lambda path: path not in WORDS and Path(path).exists())
    _settle(config, ("cache",), lambda path: True, deep=False)


def _settle(node: Any, keys: tuple[str, ...], is_path: Any, deep: bool = True) -> None:
    if not isinstance(node, MutableMapping):
        return
    for key, value in node.items():
        if key in keys and isinstance(value, str) and value and not value.startswith("~") and is_path(value):
            node[key] = os.path.abspath(value)
        elif deep:
            _settle(value, keys, is_path)
