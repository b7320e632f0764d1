"""Which keys a config may have: those that something reads.

What is known is asked of who reads it: the commands' own config files, the option files of a group, the signatures of
the classes that `_target_` names, Lightning's Trainer, a transformers model's config.
"""

import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import yaml
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from fourm_ser.commandline import no_such_key
from fourm_ser.config import CONF
from fourm_ser.errors import InputError
from fourm_ser.plain import SafeLoader
from fourm_ser.values import check_values

HYDRA_S = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
GIVEN = {  # what this package passes itself: a key of that name would be lost, or passed twice
    "data": {"cache", "source"},
    "encoder.text": {"resources"},
    "encoder.audio": {"resources"},
    "baseline.encoder": {"resources"},
    "fusion": {"dims"},
    "head": {"dim", "classes"},
    "optimizer": {"params"},
    "scheduler": {"optimizer", "steps", "steps_per_epoch"},
    "trainer": {
        "accumulate_grad_batches",
        "callbacks",
        "default_root_dir",
        "enable_checkpointing",
        "enable_model_summary",
        "enable_progress_bar",
        "gradient_clip_val",
        "logger",
        "max_epochs",
        "num_sanity_val_steps",
        "use_distributed_sampler",
    },
}
FREE = ("data", "logger", "stage")  # names are the user's, or the classes' below; a stage's keys are checked by stages
UNDECLARED = {  # fields that a model of Transformers reads, and its config does not name
    "deberta-v2": {"position_buckets", "norm_rel_ebd", "share_att_key"},
}
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
REFERENCE = re.compile(r"\$\{(\.*)([\w.]+)\}")


def check_config(command: str, config: DictConfig, words: Sequence[str] = (), classes: bool = True) -> None:
    """Refuse what is wrong with a composed config before anything is loaded or written.

    Args:
        command: its name, which is that of its primary config.
        config: the composed config, not yet resolved.
        words: the `key=value` words of the command line.
        classes: whether to hold keys against classes, too, which have to be imported for that.

    Raises:
        InputError: a value out of its range, a key that nothing reads, one that the encoder's weights make void.
    """
    check_values(command, config)
    _check_keys(command, config, classes)
    check_weights(config, words)


def check_weights(config: DictConfig, words: Sequence[str]) -> None:
    """Refuse a choice of pretrained weights where others are used, and an architecture where it is not built.

    An option file may hold both, for one of them to be used by `weights`; a word of the command line is meant.

    Raises:
        InputError: both keys, and what to write.
    """
    said = [word.lstrip("+").partition("=")[0] for word in words]
    for place in ("encoder.text", "encoder.audio"):
        node = OmegaConf.select(config, place)
        weights = node.get("weights") if isinstance(node, DictConfig) else None
        if not isinstance(weights, str):
            continue
        for key in ("checkpoint", "url", "digest"):
            value = node.get(key)
            is_path = key == "checkpoint" and weights == "random" and str(value).startswith((".", "/", "~"))
            if weights != "pretrained" and value is not None and (f"{place}.{key}" in said or is_path):
                is_tokenizer = key == "checkpoint" and "tokenizer" in node
                hint = f" (a tokenizer alone: {place}.tokenizer=...)" if is_tokenizer else ""
                raise InputError(
                    f"{place}.{key}={value}: is not read while {place}.weights={weights}. Add "
                    f"{place}.weights=pretrained, or leave {place}.{key} out{hint}."
                )
        shape = [key for key in said if key.startswith(f"{place}.architecture")]
        if weights != "random" and shape:
            raise InputError(
                f"{shape[0]}: is not read while {place}.weights={weights}: the checkpoint has its own architecture. "
                f"Leave it out, or add {place}.weights=random."
            )


def _check_keys(command: str, config: DictConfig, classes: bool) -> None:
    """Refuse keys that nothing reads, first where no class is needed to tell."""
    raw: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    primary = _read(f"{command}.yaml")
    groups = [name for name in _groups(primary) if (CONF / name).is_dir()]
    own = {key: value for key, value in primary.items() if key not in ("defaults", "hydra")}
    raw.pop("hydra", None)
    read = set(_references(raw, ()))
    top = {*own, *groups}
    _refuse_beyond("", raw, top, read)
    nodes = [(key, node) for key, node in raw.items() if key in top and isinstance(node, dict)]
    for key, node in nodes:
        if "_target_" not in node and key not in FREE and (classes or key != "trainer"):
            known = _names(own.get(key))
            for file in sorted((CONF / key).glob("*.yaml")) if key in groups else ():
                option = _read(f"{key}/{file.name}")
                known |= {*option, *_groups(option)} - {"defaults"}
            if key == "trainer":
                known |= _parameters("pytorch_lightning.Trainer") or set()
            _refuse_beyond(key, node, known, read)
        elif key == "logger":
            for name, entry in node.items():
                if not isinstance(entry, dict):
                    raise InputError(no_such_key(f"logger.{name}", ()))
    for key, node in nodes if classes else ():
        _check_built(key, node, _names(own.get(key)), read)


def _check_built(place: str, node: dict[str, Any], own: set[str], read: set[str]) -> None:
    """Refuse keys that nothing reads in a node and in those below that are built from classes."""
    takes = _parameters(node["_target_"]) if isinstance(node.get("_target_"), str) else None
    if takes is not None:
        _refuse_beyond(place, node, takes | own, read, HYDRA_S)
    for key, value in node.items():
        if isinstance(value, dict) and key == "architecture" and place.startswith("encoder."):
            _check_architecture(f"{place}.{key}", value, read)
        elif isinstance(value, dict):
            _check_built(f"{place}.{key}", value, set(), read)


def _check_architecture(place: str, node: dict[str, Any], read: set[str]) -> None:
    """Refuse fields that a transformers config, which takes any, does not have."""
    kind = node.get("model_type")
    if not isinstance(kind, str) or "${" in kind:
        return
    from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        near = get_close_matches(kind, CONFIG_MAPPING.keys(), n=1)
        advice = f"Did you mean {near[0]}?" if near else "Expected one that transformers knows: bert, wav2vec2, ..."
        raise InputError(f"{place}.model_type={kind}: no such model. {advice}")
    described = CONFIG_MAPPING[kind]()
    _refuse_beyond(place, node, {*described.to_dict(), *described.attribute_map, *UNDECLARED.get(kind, ())}, read)


def _refuse_beyond(
    place: str, node: dict[str, Any], known: set[str], read: set[str], passed: Collection[str] = ()
) -> None:
    """Refuse the keys of a node that are not known; `passed` are, but are no advice."""
    for name in node:
        key = f"{place}.{name}" if place else str(name)
        if name in GIVEN.get(place, ()):
            raise InputError(f"{key}: is not for the config: it is set by what else the config says. Leave it out.")
        if name not in known and name not in passed and not any(f"{other}.".startswith(f"{key}.") for other in read):
            raise InputError(no_such_key(key, known - GIVEN.get(place, set()), node))


def _references(value: Any, path: tuple[str, ...]) -> Iterator[str]:
    """The full keys that `${...}` reads: a value of one's own that others are made of."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _references(below, (*path, str(key)))
    elif isinstance(value, list):
        for place, below in enumerate(value):
            yield from _references(below, (*path, str(place)))
    elif isinstance(value, str):
        for dots, name in REFERENCE.findall(value):
            yield ".".join([*path[: len(path) - len(dots)], name]) if dots else name


def _parameters(target: str) -> set[str] | None:
    """What a class or function takes by name, with what a class passes on to those it is derived from.

    None where that cannot be told, or it takes anything.
    """
    try:
        found = get_object(target)
    except Exception:  # whatever it is, building it says so
        return None
    functions = [found]
    if inspect.isclass(found):
        functions = [base.__dict__["__init__"] for base in found.__mro__[:-1] if "__init__" in base.__dict__]
    names: set[str] = set()
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # written in C
            return None
        names |= {parameter.name for parameter in parameters if parameter.kind in BY_NAME}
        if not any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return names - {"self"}
    return None if functions else names


def _groups(option: dict[str, Any]) -> list[str]:
    """The groups that a config file's defaults list chooses from."""
    entries = [entry for entry in option.get("defaults", ()) if isinstance(entry, dict)]
    return [name for entry in entries for name in entry if not name.startswith(("override ", "/"))]


def _read(name: str) -> dict[str, Any]:
    return yaml.load((CONF / name).read_text(encoding="utf-8"), SafeLoader) or {}


def _names(node: Any) -> set[str]:
    return set(node) if isinstance(node, dict) else set()
