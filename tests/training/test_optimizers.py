"""Optimizer groups: what trains, at which learning rate, for every encoder."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fourm_ser.config import build as build_node
from fourm_ser.encoders.base import Encoder, Unfreeze
from fourm_ser.encoders.layers import TransformerEncoder
from fourm_ser.encoders.lora import Lora, is_adapter
from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.training.experiment import run
from fourm_ser.training.optimizers import JoinedOptimizers, build_optimizer
from fourm_ser.training.schedules import JoinedSchedules, constant, milestones
from fourm_ser.training.stages import Stage, read_stages
from tests.accelerator.networks import EMOTIONS, VARIANTS, alone, build
from tests.conftest import Compose

pytestmark = pytest.mark.usefixtures("no_figures")

RATE, HEAD, ENCODERS, ADAPTERS, DECAY = 0.5, 0.2, 0.1, 0.3, 0.5


@pytest.fixture
def stage(composed: Compose) -> Stage:
    """Of fine-tuning, whose rates are `RATE`, `ENCODERS` and `ADAPTERS`."""
    words = ["stage=finetune", f"optimizer.lr={RATE}", f"stage.finetune.encoder_learning_rate={ENCODERS}"]
    words += [f"stage.finetune.layer_decay={DECAY}", f"stage.finetune.lora_learning_rate={ADAPTERS}"]
    config = composed("encoder=tiny", *words)
    return read_stages(build_node(config.stage), build_node(config.optimizer), build_node(config.scheduler))[0]


def rates(network: EmotionNetwork, stage: Stage, composed: Compose) -> dict[str, float]:
    """The rate of each parameter of the network that trains, by name; each is in one group."""
    loss: Loss = build_node(composed("loss=ce_center").loss)
    loss.setup(len(EMOTIONS), network.widths, [1] * len(EMOTIONS))
    groups = build_optimizer(network, loss, stage).param_groups
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rate)
    trains = {name: own for name, own in network.named_parameters() if own.requires_grad}
    assert rate.keys() == {id(own) for own in (*trains.values(), *loss.parameters())}
    return {name: rate[id(own)] for name, own in trains.items()}


def places(encoder: Encoder) -> dict[str, int]:
    """For each parameter of the stem, the first `unfreeze: n` that lets it train; those that none does are left out."""
    found: dict[str, int] = {}
    for count in range(1, len(encoder.blocks()) + 1):
        encoder.unfreeze(count)
        for name, parameter in encoder.stem.named_parameters():
            if parameter.requires_grad:
                found.setdefault(name, count)
    return found


SIZES = ("_large", "_tiny", "_small", "_large_v3", "checkpointing")  # of encoders that are here already


@pytest.mark.slow(but=["tiny", "text/bert", "audio/wav2vec", "audio/whisper_base"])
@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.endswith(SIZES)])
def test_the_rate_falls_from_block_to_block_of_every_encoder(
    name: str, tmp_path: Path, composed: Compose, stage: Stage
) -> None:
    modality = name.split("/")[0]
    _, network = build(composed, tmp_path, alone(name))
    encoder = network.by_modality[modality]
    first, count = places(encoder), len(encoder.blocks())
    assert set(first.values()) == set(range(1, count + 1))
    # One whose stem only lays out frames has nothing that could train.
    parts: list[Unfreeze] = ["all", *range(1, count + 1)[:1], *range(1, count)[1:][-1:]]
    stem = f"encoders.{modality}.stem."
    for what in parts:
        encoder.unfreeze(what)
        found = rates(network, stage, composed)
        assert {rate for key, rate in found.items() if not key.startswith(stem)} == {RATE}
        own = {key.removeprefix(stem): rate for key, rate in found.items() if key.startswith(stem)}
        for key in own.keys() & first.keys():
            assert own[key] == pytest.approx(ENCODERS * DECAY ** (first[key] - 1)), key
        # What is in no block is in front of the first, or behind the last.
        behind = encoder.behind()
        last = [] if behind is None else list(behind.parameters())
        for key in own.keys() - first.keys():
            depth = 0 if any(encoder.stem.get_parameter(key) is other for other in last) else count - 1
            assert own[key] == pytest.approx(ENCODERS * DECAY**depth), key
    if isinstance(encoder, TransformerEncoder):
        encoder.add_adapters(Lora(r=2, alpha=4.0, dropout=0.1, targets="auto"), seed=0)
        encoder.unfreeze("lora")
        found = {key: rate for key, rate in rates(network, stage, composed).items() if ".stem." in key}
        assert all(map(is_adapter, found))
        for key, rate in found.items():
            weight = re.sub(r"\.lora_[AB]\.default", "", key.removeprefix(stem))
            assert rate == pytest.approx(ADAPTERS * DECAY ** (first[weight] - 1)), key
        assert max(found.values()) == pytest.approx(ADAPTERS)  # the last block has some


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layer_decay": None}, {"lora": ADAPTERS, "all": ENCODERS}),
        ({"layer_decay": 1.0}, {"lora": ADAPTERS, "all": ENCODERS}),
        ({"layer_decay": None, "lora_learning_rate": None}, {"lora": ENCODERS, "all": ENCODERS}),
        ({"layer_decay": None, "encoder_learning_rate": None}, {"lora": ADAPTERS, "all": RATE}),
        ({"layer_decay": None, "encoder_learning_rate": None, "lora_learning_rate": None}, {"lora": RATE, "all": RATE}),
        ({"layer_decay": None, "learning_rate": HEAD}, {"lora": ADAPTERS, "all": ENCODERS}),
        ({"layer_decay": None, "learning_rate": HEAD, "encoder_learning_rate": None}, {"lora": ADAPTERS, "all": RATE}),
    ],
)
def test_what_has_one_rate_is_one_group(
    changes: dict[str, Any], expected: dict[Unfreeze, float], tmp_path: Path, composed: Compose, stage: Stage
) -> None:
    _, network = build(composed, tmp_path, [*VARIANTS["audio/wav2vec"], "fusion=self_attention", "fusion.heads=1"])
    text, audio = (network.by_modality[modality] for modality in ("text", "audio"))
    text.add_adapters(Lora(r=2, alpha=4.0, dropout=0.1, targets="auto"), seed=0)
    text.unfreeze("lora")
    audio.unfreeze("all")
    changed = Stage(**{**vars(stage), **changes})
    found = rates(network, changed, composed)
    for stem, what in (("encoders.text.stem.", "lora"), ("encoders.audio.stem.", "all")):
        assert {rate for key, rate in found.items() if key.startswith(stem)} == {expected[what]}
    head = RATE if changed.learning_rate is None else changed.learning_rate
    assert {rate for key, rate in found.items() if ".stem." not in key} == {head}
    if changed.layer_decay is None:
        loss: Loss = build_node(composed("loss=ce").loss)
        loss.setup(len(EMOTIONS), network.widths, [1] * len(EMOTIONS))
        sizes = [len(group["params"]) for group in build_optimizer(network, loss, changed).param_groups]
        assert len(sizes) == 1 + len(set(expected.values()))  # as records of earlier versions have them


def test_schedules_keep_the_share_of_each_block(tmp_path: Path, composed: Compose, stage: Stage) -> None:
    _, network = build(composed, tmp_path, alone("text/bert"))
    network.by_modality["text"].unfreeze("all")
    loss: Loss = build_node(composed("loss=ce").loss)
    loss.setup(len(EMOTIONS), network.widths, [1] * len(EMOTIONS))
    optimizer = build_optimizer(network, loss, stage)
    before = torch.tensor([group["lr"] for group in optimizer.param_groups])
    scheduler = stage.scheduler(optimizer, steps=20, steps_per_epoch=5)
    seen = []
    for _ in range(20):
        seen.append(torch.tensor([group["lr"] for group in optimizer.param_groups]) / before)
        optimizer.step()
        scheduler.step()
    assert len(before) == 4  # the network, and three blocks
    shares = torch.stack(seen)
    torch.testing.assert_close(shares, shares[:, :1].expand_as(shares))
    assert shares.max() == 1 > shares.min()


class Blockless(Encoder):
    """An encoder of one's own that counts no blocks."""

    modality = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.name, self.weights, self.dim, self.stem_dim = "mine", "random", 4, 4
        self.stem, self.top = nn.Linear(4, 4), nn.Identity()

    def blocks(self) -> list[nn.Module]:
        return []


def test_an_encoder_without_blocks_is_told_so() -> None:
    with pytest.raises(InputError, match=r"^stage: layer_decay: mine has no blocks .* Expected null\.$"):
        Blockless().depths()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("layer_decay", 0.0, "above 0 and up to 1, or null"),
        ("layer_decay", 1.2, "above 0 and up to 1, or null"),
        ("layer_decay", "none", "above 0 and up to 1, or null"),
        ("lora_learning_rate", 0, "more than 0, or null"),
        ("learning_rate", -1, "more than 0, or null"),
        ("keep", "best", "better or always"),
        ("keep", None, "better or always"),
    ],
)
def test_values_that_make_no_sense_are_refused(key: str, value: Any, expected: str, composed: Compose) -> None:
    config = composed("stage=finetune")
    entries = build_node(config.stage)
    entries["finetune"][key] = value
    with pytest.raises(InputError, match=rf"^stage\.finetune\.{key}={value}: expected {expected}\.$"):
        read_stages(entries, build_node(config.optimizer), build_node(config.scheduler))


def test_joined_optimizers_are_each_for_itself_and_go_on_from_their_state() -> None:
    def made() -> tuple[list[nn.Parameter], list[torch.optim.Optimizer]]:
        parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
        return parameters, [
            torch.optim.SGD([parameters[0]], lr=0.1, momentum=0.9),
            torch.optim.Adam([parameters[1]], lr=0.01),
        ]

    def train(parameters: list[nn.Parameter], optimizers: list[Any], schedules: list[Any], steps: range) -> None:
        for step in steps:
            for optimizer in optimizers:
                optimizer.zero_grad()
            sum((parameter * (step + 1)).pow(2).sum() for parameter in parameters).backward()  # type: ignore[union-attr]
            for each in [*optimizers, *schedules]:
                each.step()

    length = {"steps": 8, "steps_per_epoch": 2}
    apart, separate = made()
    falling = [constant(separate[0], **length), milestones(separate[1], **length, epochs=[1, 2], gamma=0.5)]
    train(apart, separate, falling, range(6))

    together: list[nn.Parameter] = []
    state: Any = None
    for steps in (range(3), range(3, 6)):
        parameters, parts = made()
        joined = JoinedOptimizers(parts)
        assert [group["lr"] for group in joined.param_groups] == [0.1, 0.01]
        schedules = [constant(parts[0], **length), milestones(parts[1], **length, epochs=[1, 2], gamma=0.5)]
        schedule = JoinedSchedules(joined, schedules)
        if state is not None:
            with torch.no_grad():
                for own, before in zip(parameters, together, strict=True):
                    own.copy_(before)
            joined.load_state_dict(state[0])
            schedule.load_state_dict(state[1])
        train(parameters, [joined], [schedule], steps)
        together, state = parameters, copy.deepcopy((joined.state_dict(), schedule.state_dict()))
        rates = [group["lr"] for group in joined.param_groups]
    for one, other in zip(apart, together, strict=True):
        assert torch.equal(one, other)
    assert rates == [0.1, 0.0025] == [group["lr"] for part in separate for group in part.param_groups]
    assert set(joined.state) == set(together)


@pytest.mark.slow(but=["4m_ser_ce_center"])
@pytest.mark.parametrize("option", ["ce_center", "4m_ser_ce_center"])
def test_a_run_logs_its_rates_and_the_loss_s_schedule_counts_all_stages(
    option: str, tmp_path: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    words = [
        "stage=two_stage",
        "stage.transfer.epochs=2",
        "stage.finetune.epochs=2",
        "stage.finetune.unfreeze.text=none",
    ]
    words += ["scheduler=constant", "data.utterances=60", f"loss={option}", "data.split=random"]
    own = option.startswith("4m_ser")
    config = composed(*slice_of_demo, *words, *(["loss.scheduler.epochs=[1,3]"] if own else []))
    run(config, tmp_path / "run")
    tables = [pd.read_csv(path) for path in sorted((tmp_path / "run" / "stages").glob("*/metrics.csv"))]
    assert np.concatenate([table["train/lr"] for table in tables]) == pytest.approx([config.optimizer.lr] * 4)
    expected = [1e-4, 1e-5, 1e-5, 1e-6] if own else [0.001] * 4
    assert np.concatenate([table["train/lr/loss"] for table in tables]) == pytest.approx(expected)
