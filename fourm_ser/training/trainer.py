"""The Trainer that runs a stage: its callbacks and its checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from fourm_ser.files import whole
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.runs.directory import StageDirectory
from fourm_ser.training.averaging import MovingAverage
from fourm_ser.training.progress import Progress
from fourm_ser.training.stages import MONITORS, Stage
from fourm_ser.training.stopping import StopBetweenSteps

OWN_KEYS = ("tf32", "compile", "keep_freed_memory")  # of the config's `trainer`, unknown to Lightning's


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole beside a hash of theirs: Lightning's own copies them from the temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with whole(Path(path), seal=True) as temporary:
            torch.save(checkpoint, temporary)


class StopWhenDone(EarlyStopping):
    """Early stopping that a resumed run obeys too: one killed after its last epoch would train another."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class Rates(Callback):
    """Logs the mean norm of an epoch's gradients, and the learning rates that it begins with.

    These are the network's own, that of encoders that train, and that of the loss's parameters; of several rates of
    encoders, as with `layer_decay`, the highest. They are kept to the epoch's end, and in checkpoints: a stage that
    goes on within an epoch does not begin it again.
    """

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        (optimizer,) = trainer.optimizers
        first, *others = optimizer.param_groups
        self.rates = {"train/lr": float(first["lr"])}
        own = {parameter for name, parameter in pl_module.named_parameters() if name.startswith("loss.")}
        for group in others:
            name = "train/lr/encoders" if own.isdisjoint(group["params"]) else "train/lr/loss"
            self.rates[name] = max(float(group["lr"]), self.rates.get(name, 0.0))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        values = {**self.rates, **pl_module.gradient_norm()}
        pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.rates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rates = state_dict


def trainer_arguments(config: Mapping[str, Any], device: torch.device, find_unused: bool) -> dict[str, Any]:
    """The arguments of Lightning's Trainer in the config's `trainer`, on a device.

    `find_unused`: parts of what trains may take no part in a step, and several processes look for them after each.
    """
    arguments = {key: value for key, value in config.items() if key not in OWN_KEYS}
    arguments["accelerator"] = device.type
    if arguments.get("strategy") == "ddp_auto":
        arguments["strategy"] = "ddp_find_unused_parameters_true" if find_unused else "ddp"
    return arguments


def skips_parts(network: EmotionNetwork, stage: Stage) -> bool:
    """Whether parts of a stem that trains may take no part in a step: see `trainer_arguments`."""
    return any(
        not encoder.frozen and encoder.skips_parts and stage.unfreeze[modality] != "lora"
        for modality, encoder in network.by_modality.items()
    )


def build_trainer(stage: Stage, folder: StageDirectory, validates: bool = True, **arguments: Any) -> Trainer:
    """The Trainer of a stage: progress, best (by its score) and last checkpoint, averaged weights, early stopping.

    Args:
        stage: The stage, settled.
        folder: What it leaves.
        validates: Whether there is a validation: without one, nothing is the best, and nothing stops early.
        **arguments: More arguments of the Trainer: the loggers, and those that `trainer_arguments` gives.
    """
    when: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": True}
    judged: dict[str, Any] = {"monitor": stage.score, "mode": MONITORS[stage.monitor]}
    callbacks: list[Callback] = [Rates(), *([] if stage.ema is None else [MovingAverage(stage.ema)])]
    if validates and stage.select == "best":
        callbacks.append(ModelCheckpoint(folder.best.parent, folder.best.stem, **judged, **when))
    if validates and stage.patience is not None:
        patience: Any = stage.patience
        callbacks.append(StopWhenDone(**judged, patience=patience, check_on_train_epoch_end=True))
    # A checkpoint of its own: `save_last` beside a monitor writes only when the best improves. Last of all: it holds
    # the state of the others as they are after the epoch.
    callbacks.append(StopBetweenSteps(folder.last))
    callbacks += [ModelCheckpoint(folder.last.parent, folder.last.stem, monitor=None, **when), Progress(folder.name)]
    if not validates:
        arguments["limit_val_batches"] = 0
    return Trainer(
        max_epochs=stage.epochs,
        gradient_clip_val=stage.gradient_clip,
        accumulate_grad_batches=stage.accumulate,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        default_root_dir=folder.path,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **arguments,
    )
