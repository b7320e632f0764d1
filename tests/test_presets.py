"""Presets: they compose, only choose options, leave every group free, and are what was published."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from fourm_ser.config import build
from fourm_ser.training.experiment import run
from fourm_ser.training.stages import read_stages
from tests.conftest import CONF, Compose

PRESETS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OTHERS = {
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
    assert PRESETS == ["3m_ser", "4m_ser", "from_scratch", "memocmt", "server"]


@every
def test_a_preset_is_its_choices_on_the_command_line(name: str, composed: Compose) -> None:
    said = [f"{group}={option}" for group, option in choices(name).items()]
    assert contents(composed(f"experiment={name}")) == contents(composed(*said))


@every
def test_a_preset_leaves_nothing_behind_where_every_group_is_overridden(name: str, composed: Compose) -> None:
    assert set(choices(name)) <= set(OTHERS)
    others = [f"{group}={option}" for group, option in OTHERS.items()]
    assert contents(composed(f"experiment={name}", *others)) == contents(composed(*others))


def test_groups_are_overridden_beside_a_preset(composed: Compose) -> None:
    preset = contents(composed("experiment=4m_ser"))
    others = contents(composed(*(f"{group}={option}" for group, option in OTHERS.items())))
    assert all(others[group] != preset[group] for group in OTHERS)
    for some in (list(OTHERS)[::2], list(OTHERS)[1::2]):
        mixed = contents(composed("experiment=4m_ser", *(f"{group}={OTHERS[group]}" for group in some)))
        assert mixed == {**preset, **{group: others[group] for group in some}}


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


# For each preset: widths of its linear layers behind the attention, as published for BERT's 768 and VGGish's 128 or
# HuBERT's 768; its heads; its stages' epochs.
PUBLISHED: dict[str, tuple[list[tuple[int, int]], int | None, list[int]]] = {
    "server": ([(768, 128), (256, 64), (64, 4)], None, [101]),
    "3m_ser": ([(768, 128), (128, 128), (128, 64), (64, 4)], 8, [200]),
    "4m_ser": ([(768, 128), (128, 128), (128, 64), (64, 4)], 8, [50, 100]),
    "memocmt": ([(768, 768), (768, 768), (768, 128), (128, 4)], 8, [100]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_builds_the_published_network_and_stages(name: str, composed: Compose) -> None:
    config = composed(f"experiment={name}")
    dims = {"text": 768, "audio": 768 if config.encoder.audio.name == "hubert" else 128}
    fusion = build(config.fusion, dims=dims)
    head = build(config.head, dim=fusion.dim, classes=4)
    inner = torch.nn.modules.linear.NonDynamicallyQuantizableLinear  # an attention's own
    linear = [
        (layer.in_features, layer.out_features)
        for part in (fusion, head)
        for layer in part.modules()
        if isinstance(layer, torch.nn.Linear) and not isinstance(layer, inner)
    ]
    heads = {layer.num_heads for layer in fusion.modules() if isinstance(layer, torch.nn.MultiheadAttention)}
    stages = read_stages(build(config.stage), build(config.optimizer), build(config.scheduler))
    assert (linear, heads, [stage.epochs for stage in stages]) == (
        PUBLISHED[name][0],
        {PUBLISHED[name][1]} - {None},
        PUBLISHED[name][2],
    )
    for stage in stages:
        assert stage.batch_size == 1
        optimizer = stage.optimizer([torch.nn.Parameter(torch.zeros(1))])
        assert optimizer.defaults["lr"] == 1e-4
        assert optimizer.defaults.get("momentum") == (0.99 if name == "4m_ser" else None)
        scheduler = stage.scheduler(optimizer, steps=1000, steps_per_epoch=2)
        falls = name != "4m_ser" or stage.name == "finetune"
        rates = []
        for _ in range(31 * 2):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert rates == pytest.approx([1e-4] * 60 + [1e-5 if falls else 1e-4] * 2)


@pytest.mark.parametrize("name", ["4m_ser", "memocmt"])
def test_a_preset_trains_other_encoders(name: str, composed: Compose, slice_of_demo: list[str], tmp_path: Path) -> None:
    config = composed(f"experiment={name}", *slice_of_demo, "encoder=tiny", "data.utterances=40")
    for stage in config.stage.values():
        stage.epochs = 1
    metrics = run(config, tmp_path / "run")
    assert metrics["finished"] is True
    assert 0 <= metrics["test/ua"] <= 1
