"""Learning rate schedules against their formulas."""

import math
from itertools import pairwise

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fourm_ser.errors import InputError
from fourm_ser.training import schedules

RATES = (0.1, 0.02)


def optimizer() -> Optimizer:
    """Two groups with rates of their own."""
    return SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in RATES])


def run(scheduled: Optimizer, schedule: LambdaLR, count: int) -> list[list[float]]:
    """The rates of both groups for each of `count` steps."""
    rates = []
    for _ in range(count):
        rates.append([group["lr"] for group in scheduled.param_groups])
        scheduled.step()
        schedule.step()
    return rates


def cosine(count: int, steps: int, warmup: float, floor: float) -> list[list[float]]:
    """The rates of the first `count` steps of a stage of `steps`."""
    scheduled = optimizer()
    return run(scheduled, schedules.cosine(scheduled, steps, 7, warmup=warmup, floor=floor), count)


@pytest.mark.parametrize(
    ("steps", "warmup", "floor"), [(100, 0.1, 0.01), (37, 0.25, 0.0), (200, 0.0, 0.5), (10, 0.5, 1)]
)
def test_cosine_rises_in_a_line_and_falls_along_half_a_cosine(steps: int, warmup: float, floor: float) -> None:
    rise = round(warmup * steps)
    shares = [(now + 1) / (rise + 1) for now in range(rise)]
    for now in range(rise, steps + 1):
        shares.append(floor + (1 - floor) * (1 + math.cos(math.pi * (now - rise) / (steps - rise))) / 2)
    found = cosine(steps + 1, steps, warmup, floor)
    for rates, share in zip(found, shares, strict=True):
        assert rates == pytest.approx([share * rate for rate in RATES], abs=1e-12)
    assert found[rise] == pytest.approx(list(RATES))  # the whole rate
    assert found[-1] == pytest.approx([floor * rate for rate in RATES], abs=1e-12)


def test_cosine_stays_at_its_floor_after_the_last_step() -> None:
    found = cosine(40, 20, warmup=0.1, floor=0.25)
    assert all(rates == pytest.approx([0.25 * rate for rate in RATES]) for rates in found[20:])


def test_cosine_moves_without_a_jump() -> None:
    first = [rates[0] for rates in cosine(100, 100, warmup=0.1, floor=0.01)]
    peak = first.index(max(first))
    assert first[: peak + 1] == sorted(first[: peak + 1])
    assert first[peak:] == sorted(first[peak:], reverse=True)
    assert max(abs(after - before) for before, after in pairwise(first)) < 0.011
    assert min(first) > 0


@pytest.mark.parametrize("steps", [1, 2])
def test_cosine_of_a_stage_of_hardly_any_steps_trains(steps: int) -> None:
    found = cosine(steps, steps, warmup=0.1, floor=0.01)
    assert all(0 < rate <= most for rates in found for rate, most in zip(rates, RATES, strict=True))
    assert max(rates[0] for rates in found) >= 0.05


@pytest.mark.parametrize("steps_per_epoch", [1, 4])
def test_step_multiplies_every_so_many_epochs(steps_per_epoch: int) -> None:
    scheduled = optimizer()
    schedule = schedules.step(scheduled, 10 * steps_per_epoch, steps_per_epoch, epochs=3, gamma=0.1)
    for now, rates in enumerate(run(scheduled, schedule, 10 * steps_per_epoch)):
        epoch = now // steps_per_epoch
        assert rates == pytest.approx([rate * 0.1 ** (epoch // 3) for rate in RATES])


def test_constant_is_constant() -> None:
    scheduled = optimizer()
    assert run(scheduled, schedules.constant(scheduled, 1_000, 100), 10) == [list(RATES)] * 10


def plateau(scheduled: Optimizer, patience: int = 2, floor: float = 0.0) -> schedules.Plateau:
    return schedules.Plateau(
        scheduled, steps=100, steps_per_epoch=3, patience=patience, patience_steps=None, gamma=0.5, floor=floor
    )


def share(scheduled: Optimizer, schedule: schedules.Plateau, score: float) -> float:
    """What is left of the rates in an epoch of three steps that ends with `score`."""
    rates = run(scheduled, schedule, 3)
    shares = {round(rate / whole, 12) for step in rates for rate, whole in zip(step, RATES, strict=True)}
    assert len(shares) == 1  # from the epoch's first step on, in both groups
    schedule.observe(score)
    return shares.pop()


def test_plateau_falls_after_so_many_epochs_that_are_no_better() -> None:
    scheduled = optimizer()
    schedule = plateau(scheduled)
    scores = [0.5, 0.6, 0.6, 0.55, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    found = [share(scheduled, schedule, score) for score in scores]
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_plateau_stays_at_its_floor() -> None:
    scheduled = optimizer()
    schedule = plateau(scheduled, patience=1, floor=0.3)
    assert [share(scheduled, schedule, 0.1) for _ in range(5)] == [1, 1, 0.5, 0.3, 0.3]


def test_plateau_goes_on_from_its_state() -> None:
    scheduled = optimizer()
    schedule = plateau(scheduled)
    for score in (0.5, 0.4, 0.4, 0.4):
        share(scheduled, schedule, score)
    again = optimizer()
    resumed = plateau(again)
    resumed.load_state_dict(schedule.state_dict())
    again.load_state_dict(scheduled.state_dict())
    for score in (0.4, 0.6, 0.6, 0.6):
        assert share(again, resumed, score) == share(scheduled, schedule, score)


@pytest.mark.parametrize(("key", "value"), [("patience", 0), ("gamma", 1.0), ("gamma", 0.0), ("floor", -0.1)])
def test_plateau_refuses_what_is_no_plateau(key: str, value: float) -> None:
    arguments = {"patience": 2, "patience_steps": None, "gamma": 0.5, "floor": 0.0, key: value}
    with pytest.raises(InputError, match=rf"scheduler\.{key}={value}"):
        schedules.Plateau(optimizer(), steps=100, steps_per_epoch=3, **arguments)  # type: ignore[arg-type]
