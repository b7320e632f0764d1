"""What holds for every loss that the config offers."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from fourm_ser.config import build
from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss
from fourm_ser.losses.center import CenterLoss
from tests.conftest import CONF

OPTIONS = sorted(path.stem for path in Path(CONF, "loss").glob("*.yaml"))
HEAD_LOSSES = ["ce", "ce_balanced", "ce_smooth", "focal", "4m_ser_focal"]
FEATURE_LOSSES = ["center", "contrastive_center", "arcface", "cosface", "sphereface"]
DIMS = {"embedding": 8, "text": 6, "audio": 4}
COUNTS = [10, 30, 0, 60]
LABELS = torch.tensor([0, 1, 3, 3, 1, 0, 2])


def batch(dtype: Any = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    logits, features = torch.randn(7, 4), {name: torch.randn(7, dim) for name, dim in DIMS.items()}
    return logits.to(dtype), {name: value.to(dtype) for name, value in features.items()}


@functools.cache
def node(option: str, *overrides: str) -> DictConfig:
    """What `loss=option` and further overrides make of the config's `loss`, without the rest of it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(f"loss/{option}", list(overrides)).loss


def built(option: str, *overrides: str) -> Loss:
    torch.manual_seed(0)
    loss: Loss = build(node(option, *overrides))
    return loss.setup(4, DIMS, COUNTS)


def test_the_options_are_those_of_the_study_and_their_sums() -> None:
    sums = [f"ce_{name}" for name in FEATURE_LOSSES] + ["focal_center", "focal_contrastive_center"]
    own = [f"4m_ser_{name}" for name in ("ce_center", "ce_contrastive_center", "arcface", "cosface")]
    assert set(OPTIONS) == {*HEAD_LOSSES, *FEATURE_LOSSES, *sums, *own}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_built_and_trains(option: str) -> None:
    loss = built(option)
    logits, features = batch()
    inputs = [logits.requires_grad_(), features["embedding"].requires_grad_()]
    terms = loss(logits, features, LABELS)
    assert all(value.shape == () and value.isfinite() for value in terms.values())
    torch.autograd.backward(terms["total"])
    moved = [tensor.grad is not None and bool(tensor.grad.any()) for tensor in inputs]
    assert moved == [loss.uses_head, option not in HEAD_LOSSES]
    for parameter in loss.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    if option in ("center", "contrastive_center"):
        with pytest.raises(InputError, match=rf"^loss={option} draws embeddings together but trains no classifier"):
            loss.check_classifier()
    else:
        loss.check_classifier()
        assert (loss.classifier() is None) == loss.uses_head


def test_own_parameters_have_an_own_learning_rate_and_no_decay() -> None:
    for option in OPTIONS:
        loss = built(option)
        groups = loss.groups()
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        assert grouped == [id(parameter) for parameter in loss.parameters()], option
        assert bool(groups) == (option not in HEAD_LOSSES), option
        rate = 1e-4 if option.startswith("4m_ser") else 0.05 if "contrastive_center" in option else 0.001
        assert all((group["lr"], group["weight_decay"]) == (rate, 0) for group in groups), option


# What a batch means is each loss's own affair; of the sums, whose terms are these, one of two feature losses will do.
FORMS = {
    "ce_balanced": ["ce_balanced"],
    "center 4m_ser": ["center", "loss.form=4m_ser"],
    "contrastive_center 4m_ser": ["contrastive_center", "loss.form=4m_ser"],
}
MEANS = {
    "focal balanced": ["focal", "loss.class_weights=balanced"],
    "learned": ["ce_arcface", "loss.weighting=learned"],
    **{option: [option] for option in ("ce", "ce_smooth", "focal", *FEATURE_LOSSES, "focal_contrastive_center")},
}


@pytest.mark.parametrize("overrides", FORMS.values(), ids=FORMS)
def test_the_order_of_a_batch_changes_nothing(overrides: list[str]) -> None:
    loss = built(*overrides)
    logits, features = batch()
    order = torch.tensor([3, 6, 0, 5, 1, 4, 2])
    moved = loss(logits[order], {name: value[order] for name, value in features.items()}, LABELS[order])
    for name, value in loss(logits, features, LABELS).items():
        torch.testing.assert_close(moved[name], value)


@pytest.mark.parametrize("overrides", MEANS.values(), ids=MEANS)
def test_a_batch_is_the_mean_of_its_utterances(overrides: list[str]) -> None:
    loss = built(*overrides)
    logits, features = batch()
    alone = [
        loss(logits[[row]], {name: value[[row]] for name, value in features.items()}, LABELS[[row]])
        for row in range(len(LABELS))
    ]
    for name, value in loss(logits, features, LABELS).items():
        torch.testing.assert_close(torch.stack([terms[name] for terms in alone]).mean(), value)


@pytest.mark.parametrize("overrides", [*FORMS.values(), *MEANS.values()], ids=[*FORMS, *MEANS])
def test_half_precision_is_widened(overrides: list[str]) -> None:
    loss = built(*overrides)
    logits, features = batch(torch.bfloat16)
    expected = loss(logits.float(), {name: value.float() for name, value in features.items()}, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(logits, features, LABELS)
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert value.item() == expected[name].item()


def test_a_loss_is_content_with_the_features_it_acts_on() -> None:
    logits, features = batch()
    for option in OPTIONS:
        loss = built(option)
        assert set(loss.on) == (set() if option in HEAD_LOSSES else {"embedding"}), option
        alone = loss(logits, {name: features[name] for name in loss.on}, LABELS)
        assert all(torch.equal(alone[name], value) for name, value in loss(logits, features, LABELS).items()), option


@pytest.mark.parametrize("option", FEATURE_LOSSES)
def test_a_feature_loss_is_the_sum_over_its_features(option: str) -> None:
    loss = built(option, "loss.on=[audio,embedding]")
    logits, features = batch()
    name = loss.name
    found = loss(logits, features, LABELS)
    assert list(found) == ["total", name, f"{name}/audio", f"{name}/embedding"]
    assert found["total"].item() == found[name].item()
    parts = [found[f"{name}/{where}"].item() for where in ("audio", "embedding")]
    assert found[name].item() == pytest.approx(sum(parts))
    assert sorted(tuple(parameter.shape) for parameter in loss.parameters()) == [(4, 4), (4, 8)]
    for where, part in zip(("audio", "embedding"), parts, strict=True):
        alone = built(option, f"loss.on=[{where}]")
        state = {key: value for key, value in loss.state_dict().items() if where in key}
        alone.load_state_dict(state)
        terms = alone(logits, features, LABELS)
        assert list(terms) == ["total", name]
        assert terms[name].item() == part


def test_a_term_of_a_sum_is_chosen_its_features_too() -> None:
    loss = built("ce_arcface", "loss.terms.arcface.on=[text,audio]")
    assert list(loss(*batch(), LABELS)) == ["total", "ce", "arcface", "arcface/text", "arcface/audio"]


def test_a_feature_that_the_fusion_does_not_give_is_refused() -> None:
    loss = build(node("ce_center", "loss.terms.center.on=[audio]"))
    with pytest.raises(InputError, match=r"^loss\.terms\.center\.on=\[audio\]: the fusion gives embedding, text\.$"):
        loss.setup(4, {"embedding": 8, "text": 6}, COUNTS)


def test_features_that_nothing_gives_and_rates_that_train_nothing_are_refused() -> None:
    def refused(message: str, on: Any = ("embedding",), rate: Any = 0.5) -> None:
        with pytest.raises(InputError, match=message):
            CenterLoss("published", on, rate)

    for on in ([], ["video"], ["text", "text"], ["text", "video"], "text", [1]):
        refused(r"loss\.on=\[.*\]: expected a list of any of embedding, text, audio", on=on)
    for rate in (0.0, -1.0, float("nan"), "fast", None):
        refused(rf"loss\.learning_rate={rate}: expected a number greater than 0", rate=rate)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ce", "loss.label_smoothing=1.0"], r"label_smoothing=1\.0: expected a share from 0 to below 1"),
        (["focal", "loss.gamma=-1"], r"gamma=-1: expected a number, 0 or more"),
        (["arcface", "loss.m2=-0.5"], r"m2=-0\.5: expected a number, 0 or more"),
        (["center", "loss.on=[]"], r"on=\[\]: expected"),
        (["center", "loss.form=wen"], r"form=wen: expected one of published, 4m_ser"),
        (["ce_center", "loss.terms.center.learning_rate=0"], r"learning_rate=0: expected a number greater than 0"),
        (["ce_center", "loss.alpha=1.5"], r"alpha=1\.5: expected a number from 0 to 1\."),
        (["ce_center", "loss.weighting=max"], r"weighting=max: expected one of sum, convex, learned"),
    ],
)
def test_bad_input_is_refused_when_the_config_is_built(overrides: list[str], message: str) -> None:
    option, override = overrides
    with pytest.raises(InputError, match=rf"^loss\.(terms\.center\.)?{message}"):
        build(node(option, override))
