"""Learning rate schedules, each built for a stage of so many steps; all parameter groups follow them.

All go on with every optimizer step: Lightning writes checkpoints before it moves schedules that go on with epochs, so
that a resumed run would be one epoch behind.
"""

import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fourm_ser.checks import check_number
from fourm_ser.errors import InputError
from fourm_ser.training.length import in_epochs


def constant(optimizer: Optimizer, steps: int, steps_per_epoch: int) -> LambdaLR:
    """The optimizer's own learning rates throughout."""
    return LambdaLR(optimizer, lambda now: 1.0)


def step(optimizer: Optimizer, steps: int, steps_per_epoch: int, epochs: int, gamma: float) -> LambdaLR:
    """Multiply the learning rates by `gamma` every `epochs` epochs.

    Raises:
        InputError: fewer than one epoch, a `gamma` that is not above 0.
    """
    check_number("scheduler.epochs", epochs, "a whole number of epochs, 1 or more", least=1, whole=True)
    check_number("scheduler.gamma", gamma, "a number above 0", above=True)
    return LambdaLR(optimizer, lambda now: gamma ** (now // (epochs * steps_per_epoch)))


def milestones(optimizer: Optimizer, steps: int, steps_per_epoch: int, epochs: Sequence[int], gamma: float) -> LambdaLR:
    """Multiply the learning rates by `gamma` when each of so many `epochs` are behind.

    Raises:
        InputError: they are no whole numbers, 1 or more, or do not rise; a `gamma` that is not above 0.
    """
    check_number("scheduler.gamma", gamma, "a number above 0", above=True)
    if isinstance(epochs, str) or not isinstance(epochs, Sequence):
        raise InputError(f"scheduler.epochs={epochs}: expected a list of epochs, as in scheduler.epochs=[7,13].")
    for index, epoch in enumerate(epochs):
        check_number(f"scheduler.epochs[{index}]", epoch, "a whole number of epochs, 1 or more", least=1, whole=True)
    if list(epochs) != sorted(set(epochs)):
        raise InputError(f"scheduler.epochs={list(epochs)}: expected numbers that rise, each once.")
    ends = [epoch * steps_per_epoch for epoch in epochs]
    return LambdaLR(optimizer, lambda now: gamma ** bisect_right(ends, now))


def cosine(optimizer: Optimizer, steps: int, steps_per_epoch: int, warmup: float, floor: float) -> LambdaLR:
    """Rise in a line over the first share `warmup` of the steps, then fall along half a cosine to the share `floor`.

    With a `warmup` of 0.3 or so that is one cycle (Smith and Topin 2018, https://arxiv.org/abs/1708.07120).

    Args:
        optimizer: what is scheduled.
        steps: optimizer steps of the stage.
        steps_per_epoch: optimizer steps of an epoch.
        warmup: share of the steps that the rise takes.
        floor: share of the learning rate that is left at the end.

    Raises:
        InputError: a share outside 0 to 1.
    """
    check_number("scheduler.warmup", warmup, "a share from 0 to 1", most=1)
    check_number("scheduler.floor", floor, "a share from 0 to 1", most=1)
    rise = round(warmup * steps)

    def share(now: int) -> float:
        if now < rise:
            return (now + 1) / (rise + 1)
        progress = min(1.0, (now - rise) / max(1, steps - rise))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, share)


class Plateau(LambdaLR):
    """Multiply the learning rates by `gamma` whenever the stage's score has not become better for `patience` epochs.

    What it waits for is told by `observe` at each epoch's end, before the epoch's checkpoint is written.

    Args:
        optimizer: what is scheduled.
        steps: not used, for the schedule goes by epochs.
        steps_per_epoch: optimizer steps of an epoch, for `patience_steps`.
        patience: epochs without a better score (the stage's `monitor`), after which the rates fall; None where
            `patience_steps` says it.
        patience_steps: optimizer steps without a better score, after which the rates fall, in whole epochs; not read
            where `patience` is a number.
        gamma: what the learning rates are multiplied by when they fall.
        floor: share of the learning rates below which they do not fall.

    Raises:
        InputError: a patience below 1 or none, a `gamma` that is not between 0 and 1, a floor outside 0 to 1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        steps: int,
        steps_per_epoch: int,
        patience: int | None,
        patience_steps: int | None,
        gamma: float,
        floor: float,
    ) -> None:
        if patience is None:
            check_number("scheduler.patience_steps", patience_steps, "1 or more steps, or scheduler.patience", least=1)
            assert patience_steps is not None
            patience = in_epochs(patience_steps, steps_per_epoch)
        check_number("scheduler.patience", patience, "1 or more epochs", least=1)
        check_number("scheduler.gamma", gamma, "a number between 0 and 1", most=1, above=True, below=True)
        check_number("scheduler.floor", floor, "a share from 0 to 1", most=1)
        self.patience, self.gamma, self.floor = patience, gamma, floor
        self.best, self.waited, self.share = -math.inf, 0, 1.0
        super().__init__(optimizer, lambda now: self.share)

    def observe(self, score: float) -> None:
        """Take note of an epoch's score; the higher, the better."""
        if score > self.best:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.waited, self.share = 0, max(self.floor, self.share * self.gamma)
            for group, rate in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = rate * self.share


def advance(schedule: LRScheduler, steps: int) -> None:
    """Let a schedule that was just built stand where it stands after so many steps."""
    if steps:
        schedule.last_epoch = steps - 1
        with warnings.catch_warnings():  # torch expects a step of the optimizer before one of its schedule
            warnings.simplefilter("ignore", UserWarning)
            schedule.step()


class JoinedSchedules(LRScheduler):
    """Several schedules, each of an optimizer of its own, as one: that of the optimizer which joins these.

    Args:
        optimizer: the joined optimizer.
        parts: the schedules.
    """

    def __init__(self, optimizer: Optimizer, parts: Sequence[LRScheduler]) -> None:
        self.optimizer, self.parts = optimizer, list(parts)

    def step(self, epoch: int | None = None) -> None:
        for part in self.parts:
            part.step()

    def get_last_lr(self) -> list[Any]:
        return [rate for part in self.parts for rate in part.get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
