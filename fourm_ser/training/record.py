"""The record of a run: its config, resolved for this machine."""

import copy

from omegaconf import DictConfig, OmegaConf

from fourm_ser.config import drop_unread, refuse_missing, settle, take_hashes, upgrade
from fourm_ser.devices import (
    find_device,
    resolve_accelerator,
    resolve_budget,
    resolve_devices,
    resolve_encode_precision,
    resolve_trainer_precision,
)
from fourm_ser.encoders.checkpoints import pin, take_pins
from fourm_ser.errors import OtherRunError
from fourm_ser.files import write_text
from fourm_ser.keys import check_config
from fourm_ser.models.network import check_encoders
from fourm_ser.runs.directory import RunDirectory


def record(config: DictConfig, directory: RunDirectory) -> DictConfig:
    """Resolve a config for this machine and write it as the run's record, or hold it against the record there."""
    config = upgrade(copy.deepcopy(config))
    is_new = not directory.record.is_file()
    if is_new:  # a record of an earlier version goes on as it is
        check_config("train", config)
    refuse_missing(config)
    OmegaConf.resolve(config)
    OmegaConf.set_struct(config, False)
    for key in ("resume", "sweep"):  # how a run is started is no part of it
        config.pop(key, None)
    drop_unread(config)
    settle(config)
    trainer, encode = config.trainer, config.encode
    trainer.accelerator = resolve_accelerator(trainer.accelerator)
    device = find_device(trainer.accelerator, "trainer.accelerator")
    trainer.devices = resolve_devices(trainer.devices, device)
    trainer.precision = resolve_trainer_precision(str(trainer.precision), device)
    encode.precision = resolve_encode_precision(str(encode.precision), device)
    for key in ("max_seconds", "max_tokens"):
        encode[key] = resolve_budget(key, encode[key], device)
    if is_new:
        check_encoders(config)
        pin(config)
        write_text(directory.record, OmegaConf.to_yaml(config), seal=True)
        return config
    recorded = directory.peek_record()
    settle(recorded)
    take_hashes(recorded, config)
    take_pins(recorded, config, ask=True)
    if recorded != config:
        raise OtherRunError(
            f"{directory.path}: holds a run of another config. Continue it with resume={directory.path}, or choose "
            "another directory."
        )
    return config
