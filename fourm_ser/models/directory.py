"""The model directory: all that it takes to use a trained network, without pickle."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourm_ser.config import upgrade
from fourm_ser.data.transcripts import BEFORE
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.lora import Lora, is_adapter, without_adapters
from fourm_ser.errors import InputError, blamed, brief, listed
from fourm_ser.files import temporary_mark, write_json, write_text
from fourm_ser.losses.margin import CosineClassifier
from fourm_ser.models.network import EmotionNetwork, build_network
from fourm_ser.plain import read_config, read_json, read_yaml
from fourm_ser.trust import refuse_strangers

FILES = ("model.safetensors", "config.yaml", "labels.json")  # without which a folder is no model directory
# What else lies in it: tokenizers and PCA parameters, and nothing that is code.
PART = re.compile(r"(text|audio)/\w[\w.-]*\.(json|txt|model|jinja|safetensors)")


class Conditions(NamedTuple):
    """What a network was trained under, as far as it has to be used in the same way: `use` in model/config.yaml.

    Attributes:
        stored: Modalities whose stem was frozen in the end, so that its features were those of the embedding store.
        encoding: The precision of that encoding, `32`, or `bf16` or `16` (both stored as float16).
        precision: The trainer's precision, such as `32-true` or `bf16-mixed`.
        max_seconds: What longer utterances were cropped to; None for any length.
        encoding_tf32: Whether an NVIDIA GPU rounded to TF32 while encoding.
        tf32: Whether an NVIDIA GPU rounded to TF32 while training.
        clean: Patterns of what was taken out of transcripts, those of `Cleaning`.
        empty_text: What a text without words became; None for nothing.
        store: Whether an evaluation keeps features in the store, too; training without one computed the same ones.
    """

    stored: list[str]
    encoding: str
    precision: str
    max_seconds: float | None
    encoding_tf32: bool = False
    tf32: bool = False
    clean: Sequence[str] = BEFORE
    empty_text: str | None = None
    store: bool = True


class Model(NamedTuple):
    """A trained network with what it takes to use it.

    Attributes:
        network: The network.
        emotions: The classes in the order of their indices.
        conditions: What it was trained under.
    """

    network: EmotionNetwork
    emotions: list[str]
    conditions: Conditions


def save_model(folder: Path, model: Model, config: DictConfig, left_out: Mapping[str, str]) -> None:
    """Write a model directory, whole: model.safetensors, config.yaml, labels.json and tokenizer files.

    Args:
        folder: the directory; one that stands there is replaced.
        model: the model.
        config: the run's config, of which the nodes `encoder`, `fusion` and `head` are kept, `encode.pool`, and `lora`
            where there are adapters.
        left_out: fingerprints by modality of the stems that are not written but built again from the config: those
            that never trained, and those of which adapters alone did. The others' weights are in model.safetensors,
            and those adapters, which are merged where the others' are already.
    """
    network = model.network
    temporary = folder.with_name(f".{folder.name}.{temporary_mark()}")
    temporary.mkdir(parents=True)
    try:
        nodes: dict[str, Any] = {
            key: OmegaConf.to_container(config[key], resolve=True) for key in ("encoder", "fusion", "head")
        }
        if isinstance(network.head, CosineClassifier):  # the loss's own classifier in the head's place
            target = f"{CosineClassifier.__module__}.{CosineClassifier.__qualname__}"
            nodes["head"] = {"_target_": target, "scale": network.head.scale}
        kept: dict[str, Any] = {}
        for modality, encoder in network.by_modality.items():
            changes = encoder.save(temporary / modality)
            if modality not in left_out:
                changes["weights"] = "random"
            elif encoder.weights != "random":
                changes.pop("architecture", None)
            kept[modality] = {**nodes["encoder"][modality], **changes}
        nodes["encoder"] = kept
        nodes["encode"] = {"pool": {modality: encoder.pooling for modality, encoder in network.by_modality.items()}}
        nodes["fingerprints"] = dict(left_out)
        nodes["use"] = model.conditions._asdict()
        # Tensors that share memory, or lie in it in another order, are not allowed in the format: each gets its own.
        state = {name: tensor.clone().contiguous() for name, tensor in _state(network, left_out).items()}
        if any(map(is_adapter, state)):
            nodes["lora"] = OmegaConf.to_container(config.lora, resolve=True)
        save_file(state, temporary / "model.safetensors")
        write_json(temporary / "labels.json", model.emotions)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        nodes["digests"] = {path.relative_to(temporary).as_posix(): _digest(path) for path in files}
        write_text(temporary / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(nodes)))
        nodes["digests"]["config.yaml"] = _own_digest(temporary / "config.yaml")
        write_text(temporary / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(nodes)))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _state(network: EmotionNetwork, left_out: Collection[str]) -> dict[str, Tensor]:
    """What model.safetensors holds: no weights of the stems that are left out but their adapters, if they have any."""
    unwritten = network.stem_state(left_out, adapters=False)
    prefixes = tuple(f"encoders.{modality}." for modality in left_out)
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(prefixes)}
    with network.merged():
        state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(prefixes)}
    return {**state, **{name: tensor for name, tensor in own.items() if name not in unwritten}}


def model_files(names: Iterable[str]) -> list[str]:
    """Those of some files that a model directory is made of, by their paths in there."""
    return [name for name in names if name in FILES or PART.fullmatch(name)]


def read_model_config(folder: Path) -> DictConfig:
    """What a model directory says of its network, as plain values; InputError where it is damaged."""
    return read_config(folder / "config.yaml", folder)


def load_model(folder: Path, cache: Path, trust: Sequence[str] = ()) -> Model:
    """Read a model directory.

    Args:
        folder: the directory.
        cache: the folder for what is made once.
        trust: packages of the user's own whose classes the directory may name.

    Returns:
        The model, its network in evaluation mode; stems whose features came from the store are frozen.

    Raises:
        InputError: no model directory, weights that cannot be had, or encoders that are not the ones it was trained on.
    """
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder}: no model.safetensors there. Expected the folder `model` of a finished run.")
    config = upgrade(read_model_config(folder))
    refuse_strangers(config, folder / "config.yaml", trust)
    emotions = _read_labels(folder / "labels.json")
    with blamed(folder):
        check_digests(folder, config)
        if "use" not in config:
            said = "has no key use: an earlier version wrote it. Train the run again."
            raise InputError(f"{folder / 'config.yaml'}: {said}")
        return _build_model(folder, config, emotions, cache)


def check_digests(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a model directory, whose config this is, with a file that is not what was written there (InputError)."""
    for name, digest in config.get("digests", {}).items():  # earlier versions wrote none, or of two files
        path = folder / name
        if ".." in path.parts or not path.is_relative_to(folder):
            raise InputError(f"{folder / 'config.yaml'}: digests names {name}, which is not in the folder.")
        if not path.is_file() or (_own_digest(path) if name == "config.yaml" else _digest(path)) != digest:
            raise InputError(
                f"{path}: is damaged or was changed: it is not what was written there. Copy the folder again; if "
                f"the change is meant, take {name} out of digests in config.yaml."
            )


def _read_labels(path: Path) -> list[str]:
    """The classes in the order of their indices; InputError where these are not two or more different names."""
    try:
        names = read_json(path)
    except ValueError as error:
        raise InputError(f"{path}: is damaged: {' '.join(str(error).split())}.") from error
    sound = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    if not sound or len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"{path}: is damaged: expected a list of two or more different emotions.")
    if any("/" in name or "${" in name or not name.isprintable() for name in names):
        raise InputError(f"{path}: is damaged: a name holds a slash, ${{ or a sign that cannot be printed.")
    return list(names)


def _build_model(folder: Path, config: DictConfig, emotions: list[str], cache: Path) -> Model:
    """The model that a checked config describes, with the weights of its directory."""
    conditions = Conditions(**OmegaConf.to_container(config.use))  # type: ignore[arg-type]
    try:
        network = build_network(config, len(emotions), Resources(cache))
    except InputError as error:
        raise InputError(f"{folder}: an encoder of the model cannot be built: {error}") from error
    for modality, fingerprint in config.fingerprints.items():
        encoder = network.by_modality[modality]
        found = encoder.fingerprint()
        if found != fingerprint:
            raise InputError(
                f"{folder}: the model was trained on the {modality} encoder {encoder.name} with the fingerprint "
                f"{fingerprint}; the weights found here have {found}. Are they of another checkpoint or version?"
            )
    state = _read_weights(folder / "model.safetensors")
    if "lora" in config:
        state = without_adapters(network, state, Lora(**config.lora).scale)
    left_out = network.stem_state(config.fingerprints)
    own = {name: tensor for name, tensor in network.state_dict().items() if name in left_out}
    try:
        network.load_state_dict({**own, **state})
    except RuntimeError as error:
        said = [" ".join(line.split()).rstrip(". ") for line in str(error).splitlines()[1:]]
        raise InputError(
            f"{folder}: model.safetensors holds another network than config.yaml and labels.json describe "
            f"({listed(said, 1)}). Are all files of one model?"
        ) from error
    for modality in conditions.stored:
        network.by_modality[modality].unfreeze("none")
    return Model(network.eval(), emotions, conditions)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _own_digest(path: Path) -> str:
    """The digest of what a config says, but for this digest itself; it may be written in another way."""
    nodes = read_yaml(path)
    digests = {name: digest for name, digest in (nodes.pop("digests", None) or {}).items() if name != path.name}
    return hashlib.blake2b(json.dumps([nodes, digests], sort_keys=True).encode(), digest_size=16).hexdigest()


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names; InputError where it is damaged, or holds what is not finite."""
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: is damaged: {brief(error)}. Copy the model, or train the run, again.") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{path}: is damaged: {name} holds numbers that are NaN or infinite.")
    return state
