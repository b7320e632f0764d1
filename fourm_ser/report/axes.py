"""In which settings runs differ, and what those settings are called."""

import json
from collections.abc import Mapping
from typing import Any

from fourm_ser.config import OF_DATA
from fourm_ser.runs.collect import Run

REPEATS = ("seed", "data.fold", "data.split_seed")
# Where a run is done and how it is watched: no choice of the experiment. Corpora are told apart by their content.
PLACE = {"seed", "cache", "resume", "trainer.accelerator"}
PLACE_OF_DATA = {*OF_DATA, "workers", "strict", "verify", "fold", "split_seed"} - {"split_file"}
# Keys of `data` that change how a model is trained, not what it is tested on.
TRAINING = {"data.sampler", "data.shuffle", "data.max_seconds", "data.too_long"}
# Options in the order in which people read them; the others follow.
GROUPS = (
    *("experiment", "baseline", "encoder", "encoder/text", "encoder/audio"),
    *("fusion", "head", "loss", "augment", "stage", "optimizer"),
)
# Which keys of an encoder say whose features are read; others say which of them, or how they train.
ORIGIN = ("name", "checkpoint", "weights", "init_seed", "context", "frontend")
ABSENT = "-"
NETWORK = "network"  # what a run without a baseline is called where others have one


def find_axes(settings: list[dict[str, str]], given: set[str], options: set[str]) -> list[str]:
    """The settings that tell runs apart, without those that only follow from others.

    `loss=ce,focal` changes many keys of the resolved config: they follow from `loss`. A key that varies while the axes
    stay the same is an axis of its own.

    Args:
        settings: each run's settings: options by group, and the leaves of its config.
        given: names that some command line gave a value to.
        options: the names that are groups.
    """

    def count(*names: str) -> int:
        return len({tuple(setting.get(name, ABSENT) for name in names) for setting in settings})

    names = sorted({name for setting in settings for name in setting}, key=lambda name: rank(name, options))
    differing = [name for name in names if count(name) > 1]
    axes = [name for name in differing if name in options & given]
    for chosen in (given - options, options, set(differing)):
        for name in differing:
            several = len({setting[name] for setting in settings if name in setting}) > 1
            follows = count(*axes) == count(*axes, name)
            if name in chosen and name not in axes and (not follows or (several and name in given)):
                axes.append(name)
    return sorted(axes, key=lambda name: rank(name, options))


def name_options(runs: list[Run]) -> None:
    """Name the options of runs that no command line recorded: as other runs call the same config, or by its classes."""
    named: dict[tuple[str, str], str] = {}
    groups: set[str] = set()
    for run in runs:
        for group, option in run.options.items():
            groups.add(group)
            named.setdefault((group, _text(_node(run.config, group))), option)
    for run in runs:
        if not run.options:
            known = groups or {"encoder", "fusion", "loss", "stage", "optimizer", "scheduler"}
            for group in {*known, "baseline"} if is_baseline(run) else known:
                node = _node(run.config, group)
                if node is not None:
                    run.options[group] = named.get((group, _text(node))) or describe(group, node)


def drop_unread_options(runs: list[Run]) -> None:
    """Leave out of the options of baselines' runs those that no baseline reads: runs that differ in them are the same.

    Of a fusion there are the modalities.
    """
    for run in runs:
        if not is_baseline(run):
            run.options.pop("baseline", None)  # which is `none`
            continue
        modalities = (run.config.get("fusion") or {}).get("modalities") or []
        for group in list(run.options):
            if group.partition("/")[0].partition("@")[0] not in {*run.config, "experiment"} or group == "fusion":
                del run.options[group]
        if modalities:
            run.options["fusion"] = "+".join(modalities)


def is_baseline(run: Run) -> bool:
    """Whether no network was trained."""
    return isinstance(run.config.get("baseline"), Mapping)


def reads_like(network: Run, baseline: Run) -> bool:
    """Whether a baseline reads what a network reads: features of the same encoders, or the same recordings."""
    own, others = _read_encoders(network), _read_encoders(baseline)
    has_own = "encoder" in baseline.config["baseline"]
    return "audio" in own if has_own else own == others


def _read_encoders(run: Run) -> dict[str, Any]:
    """What tells the encoders apart that a run reads, by modality."""
    modalities = (run.config.get("fusion") or {}).get("modalities", ["text", "audio"])
    nodes = {modality: (run.config.get("encoder") or {}).get(modality) or {} for modality in modalities}
    return {modality: [node.get(key) for key in ORIGIN] for modality, node in nodes.items()}


def flatten(node: Any, name: str = "") -> dict[str, str]:
    """The leaves of a config by their dotted keys, as text; a list is a leaf."""
    if isinstance(node, Mapping) and node:
        leaves: dict[str, str] = {}
        for key, below in node.items():
            leaves |= flatten(below, f"{name}.{key}" if name else str(key))
        return leaves
    return {name: _text(node)}


def protocol_of(run: Run) -> dict[str, str]:
    """The settings that say what is tested and what may be trained on."""
    leaves = flatten({"data": run.config.get("data", {})})
    if leaves.get("data.split") != "published":
        leaves.pop("data.published", None)  # which nothing reads
    return {name: text for name, text in leaves.items() if not is_place(name) and name not in TRAINING}


def is_place(name: str) -> bool:
    parts = name.split(".")
    return name in PLACE or parts[0] == "logger" or (parts[0] == "data" and parts[-1] in PLACE_OF_DATA)


def rank(name: str, options: set[str]) -> tuple[bool, int, int, str]:
    return name not in options, GROUPS.index(name) if name in GROUPS else len(GROUPS), name.count("."), name


def _node(config: Mapping[str, Any], group: str) -> Any:
    """The part of a config that an option of a group fills."""
    node: Any = config
    for key in group.partition("@")[2].split(".") if "@" in group else group.split("/"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def describe(group: str, node: Any) -> str:
    """A name for a config node by its classes."""
    if not isinstance(node, Mapping):
        return _text(node)
    if "_target_" in node:
        name = str(node["_target_"]).rpartition(".")[2]
        return f"{name}({', '.join(node['terms'])})" if isinstance(node.get("terms"), Mapping) else name
    if group == "encoder":
        halves = [node[half] for half in ("text", "audio") if isinstance(node.get(half), Mapping)]
        return "_".join(str(half.get("name", "unnamed")) for half in halves) or "unnamed"
    return "+".join(str(key) for key in node)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, default=str)
