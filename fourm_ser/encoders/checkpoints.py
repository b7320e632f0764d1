"""Checkpoints of Hugging Face by their names: folders, or repositories of the hub, pinned to what they hold today."""

import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fourm_ser.encoders.download import fetch
from fourm_ser.encoders.repositories import COMMIT, FAULTS, Snapshot, at_hand, explain, known_commit, look_up
from fourm_ser.errors import InputError

RANDOM = "try the pipeline with random weights (encoder.weights=random)"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there serves, whole or in shards
NAMES = ("checkpoint", "tokenizer", "weights")  # keys of an encoder that may name a repository


def checkpoint_folder(checkpoint: str, patterns: Sequence[str], key: str, instead: str = RANDOM) -> Path:
    """The folder that holds a checkpoint's config.json and what else matches `patterns`, fetched if it is on the hub.

    Args:
        checkpoint: a folder; or an id of the hub, as `id@revision` at a branch, tag or commit of it.
        patterns: what the names of files beside config.json match; of a repository's folders nothing is fetched.
        key: the config's key that names the checkpoint, for errors.
        instead: what does without the checkpoint, for errors.

    Raises:
        InputError: there is no such folder, or the hub cannot give the checkpoint.
    """
    return _folder(checkpoint, patterns, key, instead, with_weights=False)


def fetch_weights(checkpoint: str, patterns: Sequence[str], key: str, instead: str = RANDOM) -> Path:
    """The `checkpoint_folder` with weights and config, too; safetensors where there are any.

    Raises:
        InputError: as `checkpoint_folder`, or there is no config, or there are no weights.
    """
    folder = _folder(checkpoint, patterns, key, instead, with_weights=True)
    if not (folder / "config.json").is_file():
        raise InputError(f"{checkpoint}: no config.json there. Expected what save_pretrained writes.")
    return folder


def cached_folder(checkpoint: str, patterns: Sequence[str]) -> Path | None:
    """The `checkpoint_folder` of a repository if all of it is on this machine, else None; the hub is not asked."""
    repo, revision = split_id(checkpoint)
    snapshot = at_hand(repo, revision)
    if snapshot is None:
        return None
    needed = _needed(snapshot.files, patterns)
    return snapshot.folder if all((snapshot.folder / name).is_file() for name in needed) else None


def pin(config: Mapping[str, Any]) -> None:
    """Let a resolved config name the commits of the repositories that its encoders are of: `id@commit`, in place.

    What it names today may be something else tomorrow.

    Raises:
        InputError: the hub cannot tell a commit.
    """
    for modality in config["fusion"]["modalities"]:
        node = config["encoder"][modality]
        for key in _fetched(node):
            repo, revision = split_id(node[key])
            if not COMMIT.fullmatch(revision):
                node[key] = f"{repo}@{_look_up(node[key], f'encoder.{modality}.{key}').commit}"


def take_pins(found: MutableMapping[Any, Any], asked: MutableMapping[Any, Any], *, ask: bool = False) -> None:
    """Let a config that names repositories have the commits that a record has of them, in place: it is the same run.

    An id alone stands for any commit; a branch or a tag has to be the record's, as far as this machine knows, or as
    the hub says if it may be asked.
    """
    for modality, node in (found.get("encoder") or {}).items():
        other = (asked.get("encoder") or {}).get(modality)
        if not isinstance(node, MutableMapping) or not isinstance(other, MutableMapping):
            continue
        for key in NAMES:
            if isinstance(node.get(key), str) and isinstance(other.get(key), str):
                other[key] = _taken(node[key], other[key], ask)


def _taken(recorded: str, name: str, ask: bool) -> str:
    """The recorded pin if a name stands for it, else the name."""
    (repo, _, commit), (own, _, revision) = recorded.partition("@"), name.partition("@")
    if own != repo or not COMMIT.fullmatch(commit):
        return name
    if not revision or known_commit(own, revision) == commit:
        return recorded
    if ask and not COMMIT.fullmatch(revision):
        with suppress(*FAULTS):
            return recorded if look_up(own, revision).commit == commit else name
    return name


def _fetched(node: Mapping[str, Any]) -> list[str]:
    """The keys of an encoder's config whose repositories serve it, with the weights that it has."""
    weights, tokenizer = node.get("weights"), node.get("tokenizer")
    if "checkpoint" not in node or weights == "random":
        return []  # of a tokenizer serves what is at hand
    source = "checkpoint" if weights == "pretrained" else "weights"
    keys = [source]
    if tokenizer != "wordpiece" and (source == "checkpoint" or tokenizer != node["checkpoint"]):
        keys.append("tokenizer")  # else the weights bring their own
    return [key for key in keys if isinstance(node.get(key), str) and not _is_path(node[key])]


def _is_path(checkpoint: str) -> bool:
    return checkpoint.startswith((".", "/", "~")) or Path(checkpoint).exists()


def split_id(checkpoint: str) -> tuple[str, str]:
    """A hub id and its revision, which is `main` where none stands behind an @."""
    repo, at, revision = checkpoint.partition("@")
    if at and (not revision or ".." in revision.split("/") or revision.startswith("/")):
        raise InputError(f"{checkpoint}: no revision behind the @. Expected a branch, a tag or a commit: {repo}@main.")
    return repo, revision or "main"


def _folder(checkpoint: str, patterns: Sequence[str], key: str, instead: str, *, with_weights: bool) -> Path:
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    if checkpoint.startswith((".", "/", "~")):
        raise InputError(f"{checkpoint}: no such folder. Expected a folder written by save_pretrained, or a hub id.")
    snapshot = _look_up(checkpoint, key, instead)
    weights = _weights(snapshot.files) if with_weights else []
    if with_weights and not weights:
        raise InputError(
            f"{checkpoint}: the repository holds neither {WEIGHTS[0]} nor {WEIGHTS[1]}, whole or in shards. Expected a "
            "checkpoint that save_pretrained of Transformers wrote for PyTorch."
        )
    try:
        fetch(snapshot, [*_needed(snapshot.files, patterns), *weights])
    except FAULTS as error:
        raise _refused(checkpoint, error, key, instead) from error
    return snapshot.folder


def _look_up(checkpoint: str, key: str, instead: str = RANDOM) -> Snapshot:
    try:
        return look_up(*split_id(checkpoint))
    except FAULTS as error:
        raise _refused(checkpoint, error, key, instead) from error


def _refused(checkpoint: str, error: Exception, key: str, instead: str) -> InputError:
    reason, advice = explain(error)
    otherwise = f"give a folder that holds it ({key}=PATH), or {instead}."
    said = f"{advice} Or {otherwise}" if advice else f"Either {otherwise}"
    return InputError(f"{checkpoint}: the checkpoint cannot be fetched from the Hugging Face hub ({reason}). {said}")


def _needed(files: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """What is not in a folder and matches."""
    return [
        name
        for name in files
        if "/" not in name and any(fnmatchcase(name, pattern) for pattern in ("config.json", *patterns))
    ]


def _weights(files: Iterable[str]) -> list[str]:
    """The files that weights are read from: one, or its shards and their index."""
    own = {name for name in files if "/" not in name}
    for name in WEIGHTS:
        stem, _, suffix = name.partition(".")
        index, shard = f"{name}.index.json", re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
        if name in own:
            return [name]
        if index in own:
            return [index, *sorted(filter(shard.fullmatch, own))]
    return []
