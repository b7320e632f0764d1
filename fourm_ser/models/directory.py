"""The model directory: all that it takes to use a trained network, without pickle."""

import json
import os
import shutil
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourm_ser.config import upgrade
from fourm_ser.data.transcripts import BEFORE
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.lora import Lora, is_adapter, without_adapters
from fourm_ser.errors import InputError
from fourm_ser.files import write_json, write_text
from fourm_ser.losses.margin import CosineClassifier
from fourm_ser.models.network import EmotionNetwork, build_network


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
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
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
        # Tensors that share memory are not allowed in the format: each gets its own.
        state = {name: tensor.clone() for name, tensor in _state(network, left_out).items()}
        if any(map(is_adapter, state)):
            nodes["lora"] = OmegaConf.to_container(config.lora, resolve=True)
        save_file(state, temporary / "model.safetensors")
        write_text(temporary / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(nodes)))
        write_json(temporary / "labels.json", model.emotions)
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


def load_model(folder: Path, cache: Path) -> Model:
    """Read a model directory.

    Args:
        folder: the directory.
        cache: the folder for what is made once.

    Returns:
        The model, its network in evaluation mode; stems whose features came from the store are frozen.

    Raises:
        InputError: no model directory, weights that cannot be had, or encoders that are not the ones it was trained on.
    """
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder}: no model.safetensors there. Expected the folder `model` of a finished run.")
    config = OmegaConf.merge({"folder": str(folder.resolve())}, OmegaConf.load(folder / "config.yaml"))
    assert isinstance(config, DictConfig)
    upgrade(config)
    if "use" not in config:
        raise InputError(f"{folder / 'config.yaml'}: has no key use: an earlier version wrote it. Train the run again.")
    conditions = Conditions(**OmegaConf.to_container(config.use))  # type: ignore[arg-type]
    emotions: list[str] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    try:
        network = build_network(config, len(emotions), Resources(cache))
    except InputError as error:
        raise InputError(f"{folder}: an encoder of the model cannot be built: {error}") from error
    for modality, fingerprint in config.fingerprints.items():
        encoder = network.by_modality[modality]
        found = encoder.fingerprint()
        if found != fingerprint:
            raise InputError(
                f"{folder}: the model was trained on a {modality} encoder {encoder.name} with the fingerprint "
                f"{fingerprint}; the weights found here have {found}. Are they of another checkpoint or version?"
            )
    state = load_file(folder / "model.safetensors")
    if "lora" in config:
        state = without_adapters(network, state, Lora(**config.lora).scale)
    left_out = network.stem_state(config.fingerprints)
    own = {name: tensor for name, tensor in network.state_dict().items() if name in left_out}
    network.load_state_dict({**own, **state})
    for modality in conditions.stored:
        network.by_modality[modality].unfreeze("none")
    return Model(network.eval(), emotions, conditions)
