"""How long stages last and how large batches are on corpora of any size, and which keys of a stage fit together."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fourm_ser.config import build
from fourm_ser.errors import InputError
from fourm_ser.training import schedules
from fourm_ser.training.length import auto_batch_size, in_epochs
from fourm_ser.training.stages import Stage, read_stages
from tests.conftest import Compose
from tests.training.test_module import STAGE


def stage(**values: Any) -> Stage:
    return dataclasses.replace(STAGE, **values)


@pytest.mark.parametrize(
    ("utterances", "size"),
    [(1, 32), (250, 32), (1810, 32), (1811, 64), (3620, 64), (3621, 128), (30_000, 128)],
)
def test_auto_is_the_power_of_two_nearest_a_fortieth_within_its_bounds(utterances: int, size: int) -> None:
    assert auto_batch_size(utterances) == size
    assert stage(batch_size="auto").size(utterances) == size
    assert stage(batch_size=7).size(utterances) == 7


@given(st.integers(1, 10**7))
def test_no_other_power_of_two_within_the_bounds_is_nearer(utterances: int) -> None:
    def off(size: int) -> float:
        return abs(math.log2(size / (utterances / 40)))

    assert off(auto_batch_size(utterances)) <= min(map(off, (32, 64, 128))) + 1e-9


@pytest.mark.parametrize(
    ("utterances", "batch", "accumulate", "values", "epochs"),
    [
        (250, 16, 1, {"steps": 1200}, 75),  # 16 steps an epoch
        (250, "auto", 1, {"steps": 1200}, 150),
        (30_000, 64, 1, {"steps": 1200}, 3),  # 469 steps: 2.6 epochs are 3
        (30_000, 64, 1, {"steps": 100}, 1),
        (30_000, 64, 1, {"steps": 1200, "min_epochs": 5}, 5),
        (250, 16, 1, {"steps": 1200, "max_epochs": 60}, 60),
        (250, 16, 1, {"steps": 1200, "min_epochs": 5, "max_epochs": 100}, 75),
        (250, 16, 4, {"steps": 1200}, 300),  # four batches make a step
        (250, 16, 1, {"epochs": 30, "steps": 1200, "min_epochs": 50, "max_epochs": 20}, 30),  # a number wins
    ],
)
def test_steps_come_to_whole_epochs_within_the_bounds(
    utterances: int, batch: Any, accumulate: int, values: dict[str, Any], epochs: int
) -> None:
    given = stage(**{"epochs": None, **values, "batch_size": batch})
    size = given.size(utterances)
    settled = given.settled(size, math.ceil(math.ceil(utterances / size) / accumulate))
    assert (settled.epochs, settled.batch_size) == (epochs, size)


@given(st.integers(1, 10_000), st.integers(1, 500), st.integers(1, 50), st.integers(0, 50))
def test_a_stage_never_lasts_fewer_steps_than_it_should_nor_an_epoch_more(
    steps: int, steps_per_epoch: int, least: int, more: int
) -> None:
    free = in_epochs(steps, steps_per_epoch)
    assert (free - 1) * steps_per_epoch < steps <= free * steps_per_epoch
    assert in_epochs(steps, steps_per_epoch, least, least + more) == min(max(free, least), least + more)


@pytest.mark.parametrize(
    ("patience", "patience_steps", "epochs"),
    [(None, None, None), (8, None, 8), (8, 100, 8), (None, 100, 7), (None, 96, 6), (None, 1, 1)],
)
def test_patience_comes_to_whole_epochs_and_a_number_of_epochs_wins(
    patience: int | None, patience_steps: int | None, epochs: int | None
) -> None:
    assert stage(patience=patience, patience_steps=patience_steps).settled(16, 16).patience == epochs
    if epochs is not None:
        optimizer: Any = build({"_target_": "torch.optim.SGD", "lr": 1.0, "_partial_": True})([{"params": [EMPTY]}])
        numbers: dict[str, Any] = {"steps": 99, "steps_per_epoch": 16, "gamma": 0.5, "floor": 0.0}
        plateau = schedules.Plateau(optimizer, patience=patience, patience_steps=patience_steps, **numbers)
        assert plateau.patience == epochs


EMPTY = build({"_target_": "torch.nn.Parameter", "data": {"_target_": "torch.zeros", "_args_": [1]}})


def read(config: Any) -> list[Stage]:
    return read_stages(build(config.stage), build(config.optimizer), build(config.scheduler))


def test_epochs_on_the_command_line_win_over_steps_in_the_file(composed: Compose) -> None:
    (by_epochs,) = read(composed("stage=transfer", "stage.transfer.steps=1200", "stage.transfer.epochs=30"))
    assert by_epochs.settled(32, 8).epochs == 30
    (by_steps,) = read(composed("stage=transfer", "stage.transfer.steps=1200", "stage.transfer.epochs=null"))
    assert by_steps.settled(32, 8).epochs == 150


@pytest.mark.parametrize("name", ["3m_ser", "4m_ser", "memocmt", "server"])
def test_published_stages_hang_on_no_default_of_length_or_selection(name: str, composed: Compose) -> None:
    others = {"monitor": "val/loss", "smooth": 3, "ema": 0.9, "patience_steps": 7, "steps": 9}
    for stage in read(composed(f"stage={name}")):
        settled = stage.settled(stage.size(1000), 1000)
        assert settled.batch_size == 1
        assert (settled.epochs, settled.patience) == (stage.epochs, None)
        assert not [key for key, value in others.items() if getattr(stage, key) == value]
    raw = OmegaConf.load(f"conf/stage/{name}.yaml")
    own = [node for key, node in raw.items() if key != "defaults"]
    assert all({*others, "select", "epochs", "batch_size", "patience"} - {"steps"} <= set(node) for node in own)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["epochs=null", "steps=null"],
            r"stage\.transfer: has neither epochs nor steps.*Add stage\.transfer\.steps=1000",
        ),
        (["epochs=null", "steps=0"], r"stage\.transfer\.steps=0: expected a whole number, 1 or more, or null"),
        (["steps=1.5"], r"stage\.transfer\.steps=1\.5: expected a whole number"),
        (["min_epochs=9", "max_epochs=3"], r"stage\.transfer\.min_epochs=9: is more than .*max_epochs=3"),
        (["max_epochs=0"], r"stage\.transfer\.max_epochs=0: expected"),
        (["batch_size=large"], r"stage\.transfer\.batch_size=large: expected a whole number, 1 or more, or auto"),
        (["batch_size=null"], r"stage\.transfer\.batch_size=None: expected"),
        (["patience_steps=-5"], r"stage\.transfer\.patience_steps=-5: expected"),
        (["ema=1"], r"stage\.transfer\.ema=1: expected a decay between 0 and 1, or null"),
        (["ema=0"], r"stage\.transfer\.ema=0: expected a decay between 0 and 1, or null"),
        (["monitor=val/f1"], r"stage\.transfer\.monitor=val/f1: expected one of val/ua, val/wa, val/loss"),
        (["select=first"], r"stage\.transfer\.select=first: expected best or last"),
        (["keep=best"], r"stage\.transfer\.keep=best: expected better or always"),
        (["smooth=null"], r"stage\.transfer\.smooth=None: expected a whole number, 1 or more"),
    ],
)
def test_what_contradicts_or_is_no_value_is_one_line(words: list[str], message: str, composed: Compose) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(composed("stage=transfer", *(f"stage.transfer.{word}" for word in words)))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "is_refused"),
    [
        (["transfer.monitor=val/loss"], True),
        (["finetune.monitor=val/wa"], True),
        (["transfer.monitor=val/loss", "finetune.monitor=val/loss"], False),
        (["transfer.monitor=val/loss", "finetune.keep=always"], False),
        (["transfer.keep=better"], False),  # nothing is before it
        (["finetune.smooth=3", "finetune.select=last", "finetune.ema=0.9"], False),
    ],
)
def test_stages_are_compared_by_one_score(words: list[str], is_refused: bool, composed: Compose) -> None:
    config = composed("stage=two_stage", *(f"stage.{word}" for word in words))
    if is_refused:
        with pytest.raises(InputError, match=r"stage\.finetune\.keep=better: .* Give both the same `monitor`, or "):
            read(config)
    else:
        assert len(read(config)) == 2
