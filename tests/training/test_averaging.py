"""Averaged weights, against the sum that they are; and which epoch's weights a stage selects."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fourm_ser.fusion.statistics import RunningScale
from fourm_ser.runs.directory import StageDirectory
from fourm_ser.training.averaging import MovingAverage, averaged_names
from fourm_ser.training.stages import Stage
from fourm_ser.training.trainer import build_trainer
from tests.training.runs import DiedError
from tests.training.test_module import STAGE


class Parts(LightningModule):
    """One of each kind of tensor that a module may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.same = self.layer  # under two names, as a margin's classifier is
        self.frozen = nn.Linear(2, 1).requires_grad_(False)
        self.scale = RunningScale(2)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def after(trainer: Any, average: MovingAverage, module: Parts, weights: Sequence[float]) -> None:
    for weight in weights:
        with torch.no_grad():
            module.layer.weight.fill_(weight)
            module.scale.mean = torch.full((2,), 10 * weight)  # another tensor in its place
            module.scale.batches += 1
        trainer.global_step += 1
        average.on_train_batch_end(trainer, module, None, None, 0)
        average.on_train_batch_end(trainer, module, None, None, 1)  # of a batch that only accumulated


@given(st.floats(0.01, 0.999), st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.integers(0, 30))
def test_the_average_is_the_weighted_sum_over_the_steps_also_of_a_resumed_stage(
    decay: float, weights: list[float], killed: int
) -> None:
    module, average, trainer = Parts(), MovingAverage(decay), SimpleNamespace(global_step=0)
    with torch.no_grad():
        module.layer.weight.fill_(1e6)  # what the stage begins with is no part of it
    average.on_train_start(trainer, module)  # type: ignore[arg-type]
    after(trainer, average, module, weights[:killed])
    if killed:
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
        average.on_save_checkpoint(trainer, module, checkpoint)  # type: ignore[arg-type]
        module, average = Parts(), MovingAverage(decay)
        module.load_state_dict(checkpoint["state_dict"])
        average.on_load_checkpoint(trainer, module, checkpoint)  # type: ignore[arg-type]
        average.on_train_start(trainer, module)  # type: ignore[arg-type]
        own = weights[min(killed, len(weights)) - 1]
        assert torch.equal(module.layer.weight, torch.full((1, 2), own))  # and not the average
    after(trainer, average, module, weights[killed:])
    shares = [decay ** (len(weights) - 1 - step) for step in range(len(weights))]
    expected = sum(share * weight for share, weight in zip(shares, weights, strict=True)) / sum(shares)
    own_weight, own_mean = module.layer.weight.clone(), module.scale.mean.clone()
    average.on_validation_start(trainer, module)  # type: ignore[arg-type]
    assert module.layer.weight.tolist() == [[pytest.approx(expected, abs=1e-4)] * 2]
    assert module.scale.mean.tolist() == [pytest.approx(10 * expected, abs=1e-3)] * 2
    assert module.scale.batches.item() == len(weights)
    average.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert torch.equal(module.layer.weight, own_weight)
    assert torch.equal(module.scale.mean, own_mean)


def test_what_does_not_train_and_what_holds_infinities_is_not_averaged() -> None:
    names = averaged_names(Parts())
    assert names == [
        *("layer.weight", "layer.bias", "same.weight", "same.bias"),
        *("scale.mean", "scale.square"),
    ]


def test_in_half_precision_the_average_is_a_float32_and_training_s_weights_come_back_to_the_bit() -> None:
    module, average, trainer = Parts().to(torch.bfloat16), MovingAverage(0.99), SimpleNamespace(global_step=0)
    average.on_train_start(trainer, module)  # type: ignore[arg-type]
    for step in range(200):
        with torch.no_grad():
            module.layer.weight.fill_(1.0 + step % 2 / 64)
        trainer.global_step += 1
        average.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    assert average.average["layer.weight"].tolist() == [[pytest.approx(1 + 1 / 128, abs=2e-4)] * 2]
    own = module.layer.weight.clone()
    average.on_validation_start(trainer, module)  # type: ignore[arg-type]
    assert module.layer.weight.dtype == torch.bfloat16
    average.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert torch.equal(module.layer.weight, own)


class Scripted(LightningModule):
    """Trains a line, and its validation scores come from a script."""

    def __init__(self, script: dict[str, list[float]], stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        torch.manual_seed(0)
        self.line = nn.Linear(2, 1)
        self.script = script
        self.weights: list[Tensor] = []  # after each step
        self.validated: list[Tensor] = []  # in each epoch

    def gradient_norm(self) -> dict[str, Any]:
        return {}

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.line(batch).square().mean()

    def on_train_batch_end(self, *_: Any) -> None:
        self.weights.append(self.line.weight.detach().clone())

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.validated.append(self.line.weight.clone())

    def on_validation_epoch_end(self) -> None:
        self.log_dict({name: values[self.current_epoch] for name, values in self.script.items()})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


UA = [0.3, 0.6, 0.5, 0.6, 0.2, 0.1]
LOSS = [1.3, 0.9, 0.8, 1.0, 0.7, 1.2]
SCRIPT = {"val/ua": UA, "val/wa": UA[::-1], "val/loss": LOSS, "val/score": [0.3, 0.45, 0.47, 0.57, 0.43, 0.3]}


def fit(stage: Stage, folder: Path, *more: Callback, validates: bool = True) -> tuple[StageDirectory, Scripted]:
    left, module = StageDirectory(folder), Scripted(SCRIPT, stage)
    given: dict[str, Any] = {"logger": False, "accelerator": "cpu"}
    trainer = build_trainer(stage, left, validates, **given)
    trainer.callbacks += more  # type: ignore[attr-defined]
    data: Any = DataLoader(list(torch.arange(12.0).view(6, 2) / 6), batch_size=2)  # type: ignore[arg-type]
    ckpt = left.last if left.last.is_file() else None
    trainer.fit(module, data, data, ckpt_path=ckpt, weights_only=True)
    return left, module


@pytest.mark.parametrize(
    ("values", "best", "epochs"),
    [
        ({}, 1, 6),  # the first of equals
        ({"monitor": "val/wa"}, 2, 6),
        ({"monitor": "val/loss"}, 4, 6),
        ({"smooth": 3}, 3, 6),
        ({"select": "last"}, None, 6),
        ({"patience": 2}, 1, 4),
        ({"monitor": "val/loss", "patience": 1}, 2, 4),
        ({"select": "last", "patience": 2}, None, 4),
    ],
)
def test_a_stage_selects_by_its_score(values: dict[str, Any], best: int | None, epochs: int, tmp_path: Path) -> None:
    left, module = fit(dataclasses.replace(STAGE, epochs=6, **values), tmp_path)
    assert len(module.weights) == 3 * epochs
    assert left.best.is_file() == (best is not None)
    if best is None:
        left.select_last()
        best = epochs - 1
    found = left.read_best()
    assert (found["epoch"], found["global_step"]) == (best, 3 * (best + 1))
    assert torch.equal(found["state_dict"]["line.weight"], module.weights[3 * best + 2])


class Dies(Callback):
    """Ends training as a kill does, in the middle of an epoch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (2, 1):
            raise DiedError


def test_what_is_validated_and_kept_is_the_average_and_a_killed_stage_goes_on_exactly(tmp_path: Path) -> None:
    stage = dataclasses.replace(STAGE, epochs=6, ema=0.8)
    left, whole = fit(stage, tmp_path / "whole")
    plain = fit(dataclasses.replace(stage, ema=None), tmp_path / "plain")[1]
    assert all(map(torch.equal, whole.weights, plain.weights))  # training does not see the average
    averages = []
    for step in range(len(whole.weights)):
        shares = torch.tensor([0.8 ** (step - before) for before in range(step + 1)])
        averages.append(sum(s * w for s, w in zip(shares / shares.sum(), whole.weights, strict=False)))
    for epoch, seen in enumerate(whole.validated[::3]):
        torch.testing.assert_close(seen, averages[3 * epoch + 2])
    torch.testing.assert_close(left.read_best()["state_dict"]["line.weight"], averages[5])
    with pytest.raises(DiedError):
        fit(stage, tmp_path / "killed", Dies())
    resumed, rest = fit(stage, tmp_path / "killed")
    assert all(map(torch.equal, rest.weights, whole.weights[6:]))
    for name in ("best", "last"):
        states = [
            torch.load(getattr(one, name), weights_only=True)["state_dict"]["line.weight"] for one in (left, resumed)
        ]
        assert torch.equal(*states)


def test_without_a_validation_nothing_is_best_and_nothing_stops(tmp_path: Path) -> None:
    left, module = fit(dataclasses.replace(STAGE, epochs=4, patience=1), tmp_path, validates=False)
    assert not module.validated
    assert not left.best.exists()
    assert len(module.weights) == 12
