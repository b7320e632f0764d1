"""Configs: where they are, what they say of places, what earlier versions wrote, and what they describe, built."""

import os
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from fourm_ser.errors import InputError, ValuesError

PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())

OF_DATA = ("manifest", "root", "audio_root", "split_file")  # keys of a corpus that are paths
OF_ENCODERS = ("checkpoint", "tokenizer", "weights", "pca")  # keys of an encoder that are paths, or names
OF_NETWORKS = ("head", "loss", "augment", "stage", "optimizer", "scheduler", "lora")  # what no baseline reads
WORDS = ("pretrained", "random")  # values of `weights` that are no path, whatever lies here under these names

# What records of earlier versions name and where it is now: a class's module, by its beginning.
MOVED = {
    "fourm_ser.encoders.lstm.": "fourm_ser.encoders.mel_lstm.",
    "fourm_ser.loggers.": "fourm_ser.training.loggers.",
    "fourm_ser.network.": "fourm_ser.models.network.",
    "fourm_ser.schedules.": "fourm_ser.training.schedules.",
    "fourm_ser.sweeps.": "fourm_ser.training.sweeps.",
}
# Encoders whose front end's numbers stood beside their own: the front end, and which of their keys are its numbers.
FRONTENDS = {
    "fourm_ser.encoders.mel_lstm.MelLSTM": ("LogMel", "mels window hop low high mean std"),
    "fourm_ser.encoders.mel_cnn.MelCnn": ("LevelledLogMel", "level mels window hop low high mean std"),
    "fourm_ser.encoders.prosody.ProsodyCnn": (
        "ProsodyFrames",
        "trim mels mel_window window hop low high pitch_low pitch_high mean",
    ),
}
# What a stage did before these were keys of it.
STAGE_WAS = {
    "steps": None,
    "min_epochs": None,
    "max_epochs": None,
    "learning_rate": None,
    "layer_decay": None,
    "lora_learning_rate": None,
    "patience_steps": None,
    "monitor": "val/ua",
    "smooth": 1,
    "select": "best",
    "ema": None,
    "keep": "always",
}
# What a corpus and a loss did before these were keys of theirs.
DATA_WAS = {"shuffle": True, "empty_text": None, "published": None}
OWN_OPTIMIZER = {"optimizer": None, "scheduler": None}
LOSS_WAS: dict[str, dict[str, Any]] = {
    "center.CenterLoss": OWN_OPTIMIZER,
    "contrastive_center.ContrastiveCenterLoss": OWN_OPTIMIZER,
    "margin.MarginLoss": {"past_pi": "falls", "gradient": "whole", "std": None, **OWN_OPTIMIZER},
    "composite.SumLoss": OWN_OPTIMIZER,
    "focal.FocalLoss": {"gradient": "whole"},
}
LOSSES = "fourm_ser.losses."
PLATEAU = "fourm_ser.training.schedules.Plateau"

Node = TypeVar("Node")


def refuse_missing(config: DictConfig) -> None:
    """Refuse a config in which a key waits for a value (`???`).

    Raises:
        InputError: the keys.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise InputError(f"config: nothing is given for {', '.join(missing)}. Add {missing[0]}=...")


def build(node: Any, **arguments: Any) -> Any:
    """Build what a config node (`_target_` wherever a class stands) describes, out of plain numbers, lists and dicts.

    Raises:
        InputError: what the class itself says of its arguments, a key that it does not take, or a value that it cannot
            reckon with.
    """
    try:
        return instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            if isinstance(cause, TypeError) and "keywords must be strings" in str(cause):
                raise InputError('config: a key is no text: write "on" in quotes, YAML reads it as true.') from error
            if isinstance(cause, TypeError) and "argument" in str(cause):
                raise InputError(f"config: {str(cause).replace('.__init__()', '')}") from error
            cause = cause.__cause__
        if cause is not None:
            raise InputError(_at_full_key(str(cause), str(error))) from None
        if not isinstance(node, Mapping | DictConfig) and error.__cause__ is None:
            raise ValuesError(f"config: {node}: expected an option's keys, a _target_ among them, or null.") from error
        if isinstance(error.__cause__, TypeError | ValueError | AttributeError | LookupError | ArithmeticError):
            raise ValuesError(_of_values(error, error.__cause__)) from error
        raise


def _of_values(error: InstantiationException, cause: Exception) -> str:
    """What a class met in its arguments that none of its checks foresaw, said of where its node lies."""
    said, _, place = str(error).partition("full_key: ")
    target = said.partition("'")[2].partition("'")[0].rpartition(".")[2]
    return (
        f"{place.strip() or 'config'}: {target or 'its class'} cannot be built from these keys: "
        f"{' '.join(str(cause).split())} (HYDRA_FULL_ERROR=1 shows where)."
    )


def _at_full_key(message: str, error: str) -> str:
    """A class's message of `group.key`, said of where its node lies by Hydra's error: `loss.terms.center.key`."""
    place = error.rpartition("full_key: ")[2].strip()
    group = place.partition(".")[0]
    is_short = message.startswith(f"{group}.") and not message.startswith(f"{place}.")
    return place + message.removeprefix(group) if is_short else message


def settle(config: MutableMapping[Any, Any]) -> None:
    """Make the relative paths of a config absolute, in place; what begins with `~` holds everywhere and stays.

    Of the corpora all of `OF_DATA` are paths, and `cache` is one; of the encoders, whose keys may also be names of the
    hub, those of `OF_ENCODERS` that exist here. The config is resolved, or a record.
    """
    _settle(config.get("data"), OF_DATA, lambda path: True)
    _settle(config.get("encoder"), OF_ENCODERS, lambda path: path not in WORDS and Path(path).exists())
    _settle(config, ("cache",), lambda path: True, deep=False)


def _settle(node: Any, keys: tuple[str, ...], is_path: Callable[[str], bool], deep: bool = True) -> None:
    if not isinstance(node, MutableMapping):
        return
    for key, value in node.items():
        if key in keys and isinstance(value, str) and value and not value.startswith("~") and is_path(value):
            node[key] = os.path.abspath(value)
        elif deep:
            _settle(value, keys, is_path)


def take_hashes(found: MutableMapping[Any, Any], asked: MutableMapping[Any, Any]) -> None:
    """Let a record that has no hash of an encoder's weights have the one that is asked for, in place.

    A hash checks what is fetched and computes nothing: a run is the same with it and without.
    """
    for modality, node in (found.get("encoder") or {}).items():
        if isinstance(node, MutableMapping) and "digest" in node and node["digest"] is None:
            node["digest"] = ((asked.get("encoder") or {}).get(modality) or {}).get("digest")


def drop_unread(config: MutableMapping[Any, Any]) -> None:
    """Leave out of a config what the run does not read, in place: `lora` where no stage trains adapters.

    Of a baseline's run all that says how a network is made and trained, but for the modalities that its fusion reads;
    and the encoders where the baseline brings its own. Records of versions that had no such nodes are then records of
    the same runs.
    """
    baseline = config.get("baseline")
    if not baseline:  # null, or `none`
        config.pop("baseline", None)
    else:
        has_own = "encoder" in baseline
        for key in [*OF_NETWORKS, *(["encoder"] if has_own else [])]:
            config.pop(key, None)
        config["fusion"] = {"modalities": [] if has_own else config["fusion"]["modalities"]}
    stages = config.get("stage")
    entries = list(stages.values()) if isinstance(stages, MutableMapping) else []
    unfreeze = [entry.get("unfreeze") for entry in entries if isinstance(entry, MutableMapping)]
    if not any("lora" in what.values() for what in unfreeze if isinstance(what, MutableMapping)):
        config.pop("lora", None)


def upgrade(node: Node) -> Node:
    """Bring a config, or a part, that an earlier version recorded to what this one would have recorded, in place."""
    if isinstance(node, DictConfig):
        with open_dict(node):
            _upgrade(node, [key for key in node if not _waits(node, key)])
    elif isinstance(node, dict):
        _upgrade(node, list(node))
    elif isinstance(node, list | ListConfig):
        for index in range(len(node)):
            if isinstance(node, list) or not _waits(node, index):
                upgrade(node[index])
    return node


def _waits(node: DictConfig | ListConfig, key: Any) -> bool:
    """Whether what stands there is not known yet: a value that is missing, or that is read elsewhere."""
    return OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key)


def _upgrade(node: MutableMapping[Any, Any], keys: list[Any]) -> None:
    for key in keys:
        upgrade(node[key])
    if "trainer" in keys and isinstance(node["trainer"], MutableMapping):
        node["trainer"].setdefault("keep_freed_memory", True)  # before it was a key, it was done
        if isinstance(node.get("encode"), MutableMapping):
            node["encode"].setdefault("pool", "none")
            node["encode"].setdefault("store", True)
        if "stage" in keys:
            node.setdefault("refit", False)
            if "augment" not in keys:
                node["augment"] = OmegaConf.to_container(OmegaConf.load(CONF / "augment" / "none.yaml"))
    if {"epochs", "batch_size", "unfreeze"} <= set(keys):  # a stage
        for key, value in STAGE_WAS.items():
            node.setdefault(key, value)
    if {"split", "split_file", "split_seed"} <= set(keys):  # a corpus
        for key, value in DATA_WAS.items():
            node.setdefault(key, value)
    target = node["_target_"] if "_target_" in keys else None
    if not isinstance(target, str):
        return
    for key, value in LOSS_WAS.get(target.removeprefix(LOSSES), {}).items():
        node.setdefault(key, value)
    for before, now in MOVED.items():
        if target.startswith(before):
            node["_target_"] = target = now + target.removeprefix(before)
    if target == PLATEAU:
        node.setdefault("patience_steps", None)
    frontend, numbers = FRONTENDS.get(target, ("", ""))
    if "frontend" not in node and any(name in node for name in numbers.split()):
        nested = {name: node.pop(name) for name in numbers.split() if name in node}
        node["frontend"] = {"_target_": f"fourm_ser.encoders.frontends.{frontend}", **nested}
