"""What is shown of a stage while it trains: a line an epoch, and one bar below them."""

import logging
import time
from typing import Any

from pytorch_lightning import Callback, Trainer
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fourm_ser.distributed import rank
from fourm_ser.training.stages import MONITORS

log = logging.getLogger(__name__)

HEAD = ("stage", "epoch", "train loss", "validation UA", "WA", "lr", "seconds", "")


class Progress(Callback):
    """Logs each epoch in a line, and shows a bar over all steps of the stage where there is a terminal.

    Nothing is asked of the device before an epoch has ended.

    Args:
        stage: the stage's name.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.best: float | None = None
        self.began = 0.0
        self.bar: Bar | None = None
        self.task = TaskID(0)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        log.info(self._line(trainer, HEAD))
        if rank() == 0 and get_console().is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
            self.bar = Bar(TextColumn("{task.description}"), *columns, transient=True)
            self.task = self.bar.add_task(self.stage, total=None)
            self.bar.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.began = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.bar is not None:
            epochs, steps = trainer.max_epochs or 0, int(trainer.num_training_batches)
            done = trainer.current_epoch * steps + batch_idx + 1
            description = f"{self.stage}, epoch {trainer.current_epoch + 1} of {epochs}"
            self.bar.update(self.task, completed=done, total=epochs * steps, description=description)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        score = found.get(pl_module.stage.score) if trainer.enable_validation else None
        sign = 1 if MONITORS[pl_module.stage.monitor] == "max" else -1
        is_best = score is not None and (self.best is None or sign * score > sign * self.best)
        if is_best:
            self.best = score
        (optimizer,) = trainer.optimizers
        cells = (
            self.stage,
            f"{trainer.current_epoch + 1}/{trainer.max_epochs}",
            *(f"{found[name]:.4f}" if name in found else "-" for name in ("train/loss", "val/ua", "val/wa")),
            f"{found.get('train/lr', optimizer.param_groups[0]['lr']):.1e}",
            f"{time.monotonic() - self.began:.1f}",
            "best" if is_best else "",
        )
        log.info(self._line(trainer, cells))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _line(self, trainer: Trainer, cells: tuple[str, ...]) -> str:
        """Cells below each other, in lines of 80 characters where the stage has a short name."""
        epoch = 2 * len(str(trainer.max_epochs)) + 1
        widths = (max(len(self.stage), len(HEAD[0])), max(epoch, len(HEAD[1])), 10, 13, 6, 7, 7, 4)
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()
