"""Stages of training: what the config says of one, and the Trainer that runs it."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fourm_ser.checks import check_number, check_word
from fourm_ser.encoders.base import Unfreeze
from fourm_ser.errors import InputError
from fourm_ser.runs.directory import RunDirectory

log = logging.getLogger(__name__)

KEEP = ("better", "always")  # a stage's weights rather than an earlier one's
ROUNDING = 1e-6  # of a mean over classes in float32, which the order of its terms hangs on
OWN_KEYS = ("tf32", "compile", "keep_freed_memory")  # of the config's `trainer`, unknown to Lightning's


@dataclasses.dataclass(frozen=True)
class Stage:
    """A named entry of the config's `stage`.

    Attributes:
        name: The entry's name.
        number: Its index in the run, from 0.
        epochs: Passes over the training side, at most.
        batch_size: Utterances in a batch, over all processes.
        unfreeze: What trains of each modality's stem: `none`, `all`, or how many of the last blocks.
        optimizer: Builds the optimizer from parameter groups.
        scheduler: Builds from an optimizer, `steps` and `steps_per_epoch` a scheduler that goes on with every step.
        encoder_learning_rate: The learning rate of stems that train; None for the optimizer's.
        layer_decay: What that is multiplied by from each block of a stem to the one below; None for 1.
        lora_learning_rate: The learning rate of adapters; None for `encoder_learning_rate`.
        patience: Epochs without a better validation UA before the stage ends; None for never.
        gradient_clip: The largest norm of the gradient; None for any.
        accumulate: How many batches' mean gradient makes one optimizer step.
        keep: Whether the run ends with this stage's weights, or an earlier one's: `better` for this stage's only where
            their validation UA is higher, `always` for this stage's.
    """

    name: str
    number: int
    epochs: int
    batch_size: int
    unfreeze: dict[str, Unfreeze]
    optimizer: Callable[..., Optimizer]
    scheduler: Callable[..., LRScheduler]
    encoder_learning_rate: float | None
    layer_decay: float | None
    lora_learning_rate: float | None
    patience: int | None
    gradient_clip: float | None
    accumulate: int
    keep: str


def read_stages(entries: Mapping[str, Any], optimizer: Any, scheduler: Any) -> list[Stage]:
    """The config's stages in the order they run; those without an optimizer or a scheduler take the run's own.

    Raises:
        InputError: no stage, a key that a stage does not have, one that is missing, a value out of range.
    """
    stages: list[Stage] = []
    fields = {field.name for field in dataclasses.fields(Stage)} - {"name", "number"}
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise InputError(f"stage.{name}={entry}: expected a stage with the keys {', '.join(sorted(fields))}.")
        for problem, keys in (("unknown key", set(entry) - fields), ("missing key", fields - set(entry))):
            if keys:
                known = f"A stage has the keys {', '.join(sorted(fields))}."
                raise InputError(f"stage.{name}: {problem} {', '.join(sorted(keys))}. {known}")
        unfreeze = entry["unfreeze"]
        if not isinstance(unfreeze, Mapping) or set(unfreeze) != {"text", "audio"}:
            found = ", ".join(unfreeze) if isinstance(unfreeze, Mapping) else unfreeze
            raise InputError(f"stage.{name}.unfreeze: expected the keys text and audio, found {found}.")
        for key in ("epochs", "batch_size", "accumulate"):
            check_number(f"stage.{name}.{key}", entry[key], "a whole number, 1 or more", least=1, whole=True)
        for key in ("encoder_learning_rate", "lora_learning_rate", "patience", "gradient_clip"):
            check_number(f"stage.{name}.{key}", entry[key], "more than 0", above=True, null=True)
        decay = entry["layer_decay"]
        check_number(f"stage.{name}.layer_decay", decay, "above 0 and up to 1", above=True, most=1, null=True)
        check_word(f"stage.{name}.keep", entry["keep"], KEEP)
        own = {"optimizer": entry["optimizer"] or optimizer, "scheduler": entry["scheduler"] or scheduler}
        stages.append(Stage(**{**entry, **own}, name=str(name), number=len(stages)))
    if not stages:
        raise InputError("stage: no stage to run. Choose stage=transfer, stage=finetune or stage=two_stage.")
    return stages


def choose_stage(stages: Sequence[Stage], scores: Sequence[float]) -> Stage:
    """The stage whose best weights a run ends with.

    It is the one of the highest validation score. Of equal ones it is the earlier, whose encoders are nearer to what
    they were: few validation speakers give few scores, and the best of the epochs after it was no better. A stage that
    is `always` kept takes the place of all before it.

    Args:
        stages: All stages in their order.
        scores: The best validation score of each; the higher, the better.
    """
    chosen, best = stages[0], scores[0]
    for stage, score in zip(stages[1:], scores[1:], strict=True):
        if stage.keep == "always" or score > best + ROUNDING:
            chosen, best = stage, score
    return chosen


class StopWhenDone(EarlyStopping):
    """Early stopping that a resumed run obeys too: one killed after its last epoch would train another."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class ProgressBar(RichProgressBar):
    """Shows the last epoch's numbers, which go to the log in one line as well.

    Lightning's own are asked of the device at every step, which waits for it.
    """

    def __init__(self) -> None:
        super().__init__(leave=False)
        self.values: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        found = trainer.callback_metrics
        self.values = {name: float(found[name]) for name in ("train/loss", "val/loss", "val/ua") if name in found}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in self.values.items())
        log.debug("epoch %d: %s", trainer.current_epoch, shown)
        super().on_train_epoch_end(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        return dict(self.values)


def trainer_arguments(config: Mapping[str, Any], device: torch.device, find_unused: bool) -> dict[str, Any]:
    """The arguments of Lightning's Trainer in the config's `trainer`, on a device.

    `find_unused`: parts of what trains may take no part in a step, and several processes look for them after each.
    """
    arguments = {key: value for key, value in config.items() if key not in OWN_KEYS}
    arguments["accelerator"] = device.type
    if arguments.get("strategy") == "ddp_auto":
        arguments["strategy"] = "ddp_find_unused_parameters_true" if find_unused else "ddp"
    return arguments


def build_trainer(stage: Stage, directory: RunDirectory, **arguments: Any) -> Trainer:
    """The Trainer of a stage: progress bar, best (by validation UA) and last checkpoint, early stopping.

    Args:
        stage: The stage.
        directory: The run directory.
        **arguments: More arguments of the Trainer: the loggers, and those that `trainer_arguments` gives.
    """
    folder = directory.stage(stage.number, stage.name)
    when: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": True}
    best = ModelCheckpoint(folder.best.parent, folder.best.stem, monitor="val/ua", mode="max", **when)
    # A checkpoint of its own: `save_last` beside a monitor writes only when the best improves.
    last = ModelCheckpoint(folder.last.parent, folder.last.stem, monitor=None, **when)
    callbacks: list[Callback] = [best]
    if stage.patience is not None:
        callbacks.append(StopWhenDone("val/ua", patience=stage.patience, mode="max", check_on_train_epoch_end=True))
    # Last of all: it holds the state of the others as they are after the epoch.
    callbacks += [last, ProgressBar()]
    return Trainer(
        max_epochs=stage.epochs,
        gradient_clip_val=stage.gradient_clip,
        accumulate_grad_batches=stage.accumulate,
        callbacks=callbacks,
        default_root_dir=directory.path,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **arguments,
    )
