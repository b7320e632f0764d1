"""Presets: they compose, only choose options, leave every group free, and are what was published."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from fourm_ser.config import build
from fourm_ser.encoders.frontends import Examples
from fourm_ser.training.experiment import run
from fourm_ser.training.stages import read_stages
from tests.conftest import CONF, Compose

pytestmark = pytest.mark.usefixtures("no_figures")

PRESETS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OTHERS = {
    "protocol": "default",
    "precision": "auto",
    "data": "iemocap",
    "encoder": "tiny",
    "fusion": "audio_attention",
    "head": "memocmt",
    "loss": "ce_center",
    "stage": "two_stage",
    "optimizer": "adamw",
    "scheduler": "cosine",
    "augment": "spec",
    "trainer": "cpu",
    "logger": "wandb",
}
every = pytest.mark.parametrize("name", PRESETS)


def choices(name: str) -> dict[str, str]:
    """The options that a preset chooses, by group."""
    preset = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert set(preset) == {"defaults"}, "a preset only chooses options: values live in option files"
    chosen = {key: option for entry in preset["defaults"] for key, option in entry.items()}
    assert all(key.startswith("override /") for key in chosen)
    return {key.removeprefix("override /"): option for key, option in chosen.items()}


def contents(config: DictConfig) -> Any:
    return OmegaConf.to_container(config)


def test_the_presets_are_there() -> None:
    assert PRESETS == ["3m_ser", "4m_ser", "4m_ser_ssl", "from_scratch", "memocmt", "server"]


@pytest.mark.slow(but=["3m_ser", "4m_ser_ssl", "from_scratch"])
@every
def test_a_preset_is_its_choices_on_the_command_line(name: str, composed: Compose) -> None:
    said = [f"{group}={option}" for group, option in choices(name).items()]
    assert contents(composed(f"experiment={name}")) == contents(composed(*said))


@pytest.mark.slow(but=["4m_ser", "from_scratch"])
@every
def test_a_preset_leaves_nothing_behind_where_every_group_is_overridden(name: str, composed: Compose) -> None:
    assert set(choices(name)) <= set(OTHERS)
    others = [f"{group}={option}" for group, option in OTHERS.items()]
    assert contents(composed(f"experiment={name}", *others)) == contents(composed(*others))


def test_groups_are_overridden_beside_a_preset(composed: Compose) -> None:
    own = {
        group: option for group, option in OTHERS.items() if group not in ("protocol", "precision", "data", "trainer")
    }
    preset = contents(composed("experiment=4m_ser"))
    others = contents(composed(*(f"{group}={option}" for group, option in own.items())))
    assert all(others[group] != preset[group] for group in own)
    for some in (list(own)[::2], list(own)[1::2]):
        mixed = contents(composed("experiment=4m_ser", *(f"{group}={own[group]}" for group in some)))
        assert mixed == {**preset, **{group: others[group] for group in some}}


def test_a_corpus_and_a_device_beside_a_preset_keep_its_protocol_and_precision(composed: Compose) -> None:
    config = composed("experiment=4m_ser", "data=iemocap", "trainer=cpu")
    assert (config.data.split, config.data.clean, config.data.max_seconds) == ("session", "4m_ser", None)
    assert (config.trainer.accelerator, config.trainer.precision) == ("cpu", "32-true")
    other = composed("experiment=4m_ser", "data=iemocap", "protocol=default", "precision=auto")
    assert (other.data, other.encode) == (composed("data=iemocap").data, composed().encode)


def test_a_preset_is_a_start_of_its_own_experiments(composed: Compose) -> None:
    config = composed("experiment=4m_ser", "loss=ce_center", "fusion=cross_attention", "encoder=bert_hubert")
    assert config.fusion._target_.endswith("CrossAttentionFusion")
    assert config.encoder.audio.name == "hubert"
    assert list(config.stage) == ["transfer", "finetune"]
    assert config.optimizer.momentum == 0.99


def test_the_first_stage_of_4m_ser_takes_the_run_s_scheduler_when_its_own_is_deleted(composed: Compose) -> None:
    assert composed("experiment=4m_ser").stage.transfer.scheduler._target_ == "fourm_ser.training.schedules.constant"
    deleted = composed("experiment=4m_ser", "~scheduler@stage.transfer.scheduler")
    assert deleted.stage.transfer.scheduler is None


class Facts(NamedTuple):
    """What was published of a model, read in its code.

    Attributes:
        linear: Widths of the linear layers behind the encoders, but for those of the attentions.
        heads: Attention heads; none where there is no attention.
        dropout: Rates on the attention weights, on normalised features, on the embedding, before the classifier.
        activation: Of the head; None for none.
        epochs: Of each stage.
        falls: For each stage the epochs from 0 at which the rate of 1e-4 falls to a tenth.
        optimizer: Its class's name, momentum and weight decay.
        trains: What trains of the encoders, in any stage.
        select: How a stage chooses its epoch, and by what.
        audio: Keys of the audio encoder.
        data: Keys of `data`.
    """

    linear: list[tuple[int, int]]
    heads: int | None
    dropout: tuple[float, ...]
    activation: str | None
    epochs: list[int]
    falls: list[list[int]]
    optimizer: tuple[str, float | None, float]
    trains: dict[str, str]
    select: tuple[str, str]
    audio: dict[str, Any]
    data: dict[str, Any]


ADAM, SGD = ("Adam", None, 0.0), ("SGD", 0.99, 1e-6)
FROZEN = {"text": "none", "audio": "none"}
SERVER = {"clean": "server", "empty_text": None, "min_seconds": 1.935, "fractions": [0.72, 0.08, 0.2]}
FOURM = {"clean": "4m_ser", "empty_text": "NULL", "min_seconds": None, "fractions": [0.81, 0.09, 0.1], "shuffle": True}
WHOLE = {"drop_tail": True}
FACTS = {
    "server": Facts(
        linear=[(768, 128), (256, 64), (64, 4)],
        heads=None,
        dropout=(0.5, 0.0),
        activation=None,
        epochs=[101],
        falls=[[29, 59, 89]],
        optimizer=ADAM,
        trains=FROZEN,
        select=("last", "val/wa"),
        audio={**WHOLE, "pca": True},
        data={**SERVER, "shuffle": True},
    ),
    "3m_ser": Facts(
        linear=[(768, 128), (128, 128), (128, 64), (64, 4)],
        heads=8,
        dropout=(0.5, 0.5, 0.5, 0.0),
        activation="LeakyReLU",
        epochs=[200],
        falls=[[]],
        optimizer=ADAM,
        trains={"text": "none", "audio": "all"},
        select=("best", "val/wa"),
        audio={**WHOLE, "pca": False},
        data={**SERVER, "shuffle": False},
    ),
    "4m_ser": Facts(
        linear=[(768, 128), (128, 128), (128, 64), (64, 4)],
        heads=8,
        dropout=(0.5, 0.5, 0.5, 0.0),
        activation="LeakyReLU",
        epochs=[50, 100],
        falls=[[], [30, 60, 90]],
        optimizer=SGD,
        trains=FROZEN,
        select=("best", "val/wa"),
        audio={**WHOLE, "pca": True},
        data=FOURM,
    ),
    "4m_ser_ssl": Facts(
        linear=[(768, 768), (768, 768), (768, 128), (128, 64), (64, 4)],
        heads=8,
        dropout=(0.5, 0.5, 0.5, 0.0),
        activation="LeakyReLU",
        epochs=[100],
        falls=[[30, 60, 90]],
        optimizer=ADAM,
        trains=FROZEN,
        select=("best", "val/wa"),
        audio={"name": "hubert", "normalize": False},
        data=FOURM,
    ),
    "memocmt": Facts(
        linear=[(768, 768), (768, 768), (768, 128), (128, 4)],
        heads=8,
        dropout=(0.05, 0.05, 0.05, 0.05, 0.05),
        activation="LeakyReLU",
        epochs=[100],
        falls=[[30, 60, 90]],
        optimizer=ADAM,
        trains=FROZEN,
        select=("best", "val/wa"),
        audio={"name": "hubert", "normalize": "checkpoint"},
        data=FOURM,
    ),
}
published = pytest.mark.parametrize("name", FACTS)


@published
def test_a_preset_builds_the_published_network(name: str, composed: Compose) -> None:
    config, facts = composed(f"experiment={name}"), FACTS[name]
    fusion = build(config.fusion, dims={"text": 768, "audio": 768 if "normalize" in facts.audio else 128})
    head = build(config.head, dim=fusion.dim, classes=4)
    inner = torch.nn.modules.linear.NonDynamicallyQuantizableLinear  # an attention's own
    modules = [layer for part in (fusion, head) for layer in part.modules()]
    linear = [
        (layer.in_features, layer.out_features)
        for layer in modules
        if isinstance(layer, torch.nn.Linear) and not isinstance(layer, inner)
    ]
    attentions = [layer for layer in modules if isinstance(layer, torch.nn.MultiheadAttention)]
    rates = [layer.dropout for layer in attentions]
    rates += [layer.p for layer in modules if isinstance(layer, torch.nn.Dropout)]
    assert linear == facts.linear
    assert {layer.num_heads for layer in attentions} == {facts.heads} - {None}
    assert sorted(rates) == sorted(facts.dropout)
    activations = {type(layer).__name__ for layer in modules} & {"LeakyReLU", "ReLU", "GELU", "Tanh"}
    assert activations == {facts.activation} - {None}


@published
def test_a_preset_trains_as_published(name: str, composed: Compose) -> None:
    config, facts = composed(f"experiment={name}"), FACTS[name]
    stages = read_stages(build(config.stage), build(config.optimizer), build(config.scheduler))
    assert [stage.epochs for stage in stages] == facts.epochs
    assert config.loss == {"_target_": "fourm_ser.losses.cross_entropy.CrossEntropyLoss", **OVER_LABELS}
    assert config.augment == composed("augment=none").augment
    for stage, falls in zip(stages, facts.falls, strict=True):
        assert (stage.batch_size, stage.accumulate, stage.gradient_clip, stage.ema, stage.patience) == (
            1,
            1,
            *[None] * 3,
        )
        assert (stage.select, stage.smooth) == (facts.select[0], 1)
        assert stage.select == "last" or stage.monitor == facts.select[1]
        assert stage.keep == "always"
        optimizer = stage.optimizer([torch.nn.Parameter(torch.zeros(1))])
        kind, momentum, decay = facts.optimizer
        found = (type(optimizer).__name__, optimizer.defaults.get("momentum"), optimizer.defaults["weight_decay"])
        assert found == (kind, momentum, decay)
        assert stage.encoder_learning_rate is None
        assert stage.layer_decay is None
        scheduler = stage.scheduler(optimizer, steps=2 * (stage.epochs or 0), steps_per_epoch=2)
        rates = []
        for _ in range(2 * (stage.epochs or 0)):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        expected = [1e-4 * 0.1 ** sum(epoch >= fall for fall in falls) for epoch in range(stage.epochs or 0)]
        assert rates == pytest.approx([rate for rate in expected for _ in range(2)])
    trained = {half: {stage.unfreeze[half] for stage in stages} for half in ("text", "audio")}
    assert trained == {half: {what} for half, what in facts.trains.items()}


OVER_LABELS = {"label_smoothing": 0.0, "class_weights": None}


@published
def test_a_preset_reads_and_computes_as_published(name: str, composed: Compose) -> None:
    config, facts = composed(f"experiment={name}"), FACTS[name]
    assert {key: config.encoder.audio[key] for key in facts.audio} == facts.audio
    assert config.encoder.text.name == "bert"
    assert config.encoder.weights == config.encoder.audio.weights == "pretrained"
    assert {key: config.data[key] for key in facts.data} == facts.data
    assert (config.data.max_seconds, config.data.stratify, config.data.sampler) == (None, False, "shuffle")
    assert (config.trainer.precision, config.trainer.tf32) == ("32-true", False)
    assert (str(config.encode.precision), config.encode.tf32, config.encode.pool) == ("32", False, "none")


@published
def test_a_preset_s_file_says_what_differs_and_why(name: str) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line[2:].strip("|").split("|")] for line in text.splitlines() if line[:3] == "# |"
    ]
    assert rows[0] == ["original", "here", "why"]
    assert len(rows) > 10
    assert all(len(row) == 3 and row[0] and row[1] for row in rows)
    assert all(why for _, here, why in rows[2:] if here != "the same")


@pytest.mark.parametrize(("seconds", "count"), [(0.7, 1), (0.98, 1), (1.4, 1), (3.3, 3), (6.91, 7)])
@pytest.mark.parametrize("name", ["server", "3m_ser", "4m_ser"])
def test_a_preset_cuts_the_published_examples(name: str, seconds: float, count: int, composed: Compose) -> None:
    audio = composed(f"experiment={name}").encoder.audio
    wave = np.random.default_rng(0).normal(size=round(16_000 * seconds)).astype(np.float32)
    assert len(Examples(audio.drop_tail)(wave)["examples"]) == count


@pytest.mark.slow(but=["memocmt"])
@pytest.mark.parametrize("name", ["4m_ser", "memocmt"])
def test_a_preset_trains_other_encoders(name: str, composed: Compose, slice_of_demo: list[str], tmp_path: Path) -> None:
    config = composed(f"experiment={name}", *slice_of_demo, "encoder=tiny", "data.utterances=40")
    for stage in config.stage.values():
        stage.epochs = 1
    metrics = run(config, tmp_path / "run")
    assert metrics["finished"] is True
    assert 0 <= metrics["test/ua"] <= 1
