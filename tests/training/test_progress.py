"""What is shown of a stage: a line an epoch of 80 characters, the best marked, its rates and norms in the table."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
import torch
from pytorch_lightning import Trainer

from fourm_ser.runs.directory import RunDirectory, read_epochs_table
from fourm_ser.training.loggers import EpochTable
from fourm_ser.training.progress import Progress


@pytest.mark.parametrize(("monitor", "best"), [("val/ua", [True, False, True]), ("val/loss", [True, True, False])])
def test_an_epoch_is_one_line_that_marks_the_best(
    monitor: str, best: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    shown = Progress("transfer")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    trainer = SimpleNamespace(
        max_epochs=100, optimizers=[optimizer], enable_validation=True, num_training_batches=4, current_epoch=0
    )
    module: Any = SimpleNamespace(stage=SimpleNamespace(score=monitor, monitor=monitor))
    caplog.set_level(logging.INFO)
    shown.on_train_start(cast(Trainer, trainer), module)
    for epoch, (accuracy, loss) in enumerate([(0.5, 1.2), (0.4, 1.1), (0.7, 1.3)]):
        trainer.current_epoch = epoch
        trainer.callback_metrics = {"train/loss": 1.0, "val/ua": accuracy, "val/wa": accuracy, "val/loss": loss}
        shown.on_train_epoch_start(cast(Trainer, trainer), module)
        shown.on_train_epoch_end(cast(Trainer, trainer), module)
    head, *lines = caplog.messages
    assert head.split() == ["stage", "epoch", "train", "loss", "validation", "UA", "WA", "lr", "seconds"]
    assert [line.split()[1] for line in lines] == ["1/100", "2/100", "3/100"]
    assert [line.endswith("best") for line in lines] == best
    assert [float(line.split()[3]) for line in lines] == [0.5, 0.4, 0.7]
    assert max(map(len, [head, *lines])) <= 80


def test_tables_count_epochs_from_one_and_those_that_did_not_go_on_so(tmp_path: Path) -> None:
    path = RunDirectory(tmp_path).stage(0, "transfer").epochs
    path.parent.mkdir(parents=True)
    pd.DataFrame({"epoch": [0, 1], "train/loss": [1.5, 1.25]}).to_csv(path, index=False)
    assert read_epochs_table(path)["epoch"].tolist() == [1, 2]
    table = EpochTable(path)
    table.log_metrics({"epoch": 2, "train/loss": 1.0})
    again = EpochTable(path)
    again.log_metrics({"epoch": 3, "train/loss": 0.5})
    written = pd.read_csv(path)
    assert written["epoch"].tolist() == [1, 2, 3, 4]
    assert written["train/loss"].tolist() == [1.5, 1.25, 1.0, 0.5]
