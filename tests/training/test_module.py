"""The module: across processes, the loss's own parameters, a loss that is not finite."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fourm_ser.config import build
from fourm_ser.data.batch import Batch
from fourm_ser.encoders.base import Encoder, Features, length_mask
from fourm_ser.fusion.self_attention import SelfAttentionFusion
from fourm_ser.losses.base import Loss
from fourm_ser.models.network import EmotionNetwork, Head, ViewHeads
from fourm_ser.training import module as module_file
from fourm_ser.training import schedules
from fourm_ser.training.augmentation import Augmentation
from fourm_ser.training.module import EmotionModule, NotFiniteError
from fourm_ser.training.stages import Stage
from tests.conftest import CONF, Compose
from tests.processes import side_by_side

EMOTIONS = ["anger", "happiness", "sadness", "neutral"]
LOSSES = [
    path.stem for path in sorted((CONF / "loss").glob("*.yaml")) if path.stem not in ("center", "contrastive_center")
]
VARIANTS = {
    **{name: [f"loss={name}"] for name in LOSSES},
    "ce-balanced": ["loss=ce", "loss.class_weights=balanced", "loss.label_smoothing=0.1"],
    "focal-balanced": ["loss=focal", "loss.class_weights=balanced"],
    "center-everywhere": ["loss=ce_center", "loss.terms.center.on=[embedding,text,audio]"],
    "center-4m_ser": ["loss=ce_center", "loss.terms.center.form=4m_ser", "loss.weighting=convex"],
    "contrastive-4m_ser": ["loss=ce_contrastive_center", "loss.terms.contrastive_center.form=4m_ser"],
    "learned": ["loss=ce_center", "loss.weighting=learned"],
}
COUNT, TOKENS, FRAMES = 7, 5, 9
STAGE = Stage(
    name="transfer",
    number=0,
    steps=None,
    epochs=1,
    min_epochs=None,
    max_epochs=None,
    batch_size=COUNT,
    unfreeze={"text": "none", "audio": "none"},
    optimizer=torch.optim.AdamW,
    scheduler=schedules.constant,
    learning_rate=None,
    encoder_learning_rate=None,
    layer_decay=None,
    lora_learning_rate=None,
    patience=None,
    patience_steps=None,
    monitor="val/ua",
    smooth=1,
    select="best",
    ema=None,
    gradient_clip=None,
    accumulate=1,
    keep="always",
)
HEAD: dict[str, Any] = {
    "dim": 6,
    "classes": len(EMOTIONS),
    "layers": [5],
    "dropout": 0.0,
    "activation": "relu",
    "last_dropout": 0.0,
}


class Stored(Encoder):
    """An encoder whose features come from the store."""

    def __init__(self, modality: str, dim: int) -> None:
        super().__init__()
        self.modality = modality  # type: ignore[misc]
        self.name, self.weights, self.dim, self.stem_dim = "stored", "random", dim, dim
        self.stem, self.top = nn.Module(), nn.Identity()  # a stem that cannot be run: features come from the store

    def blocks(self) -> list[nn.Module]:
        return []


def build_module(node: dict[str, Any], mixup: float = 0.0) -> EmotionModule:
    torch.manual_seed(0)
    dims = {"text": 8, "audio": 8}
    fusion = SelfAttentionFusion(
        dims=dims, modalities=["text", "audio"], dim=6, heads=2, dropout=0.0, pool="mean", audio_norm="layer_norm"
    )
    head: nn.Module = Head(**HEAD)
    network = EmotionNetwork({modality: Stored(modality, dim) for modality, dim in dims.items()}, fusion, head)
    loss: Loss = build(node)
    loss.setup(len(EMOTIONS), network.widths, [3, 1, 2, 1])
    classifier = loss.classifier()
    if classifier is not None:
        network.head = classifier
    module = EmotionModule(
        network=network,
        loss=loss,
        emotions=EMOTIONS,
        stage=STAGE,
        steps_per_epoch=1,
        seed=0,
        trained=[],
        augmentation=Augmentation(mixup),
    )
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    return module.double()  # sums in another order differ by less than any tolerance


def batch(rows: Tensor) -> Batch:
    """Those rows of a batch of seven, padded as the whole batch is."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.arange(COUNT)
    sequences = [
        Features(
            torch.randn(COUNT, longest, 8, generator=generator).double(), length_mask(counts % longest + 1, longest)
        )
        for longest in (TOKENS, FRAMES)
    ]
    text, audio = (Features(features[rows], mask[rows]) for features, mask in sequences)
    return Batch(rows, torch.tensor([0, 0, 1, 2, 0, 2, 3])[rows], text, audio)


class Step(nn.Module):
    """A training step as a module's forward pass, as Lightning wraps it."""

    def __init__(self, module: EmotionModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        return self.module.training_step(batch, 0)


def work(rank: int, nodes: dict[str, tuple[dict[str, Any], float]], folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for name, given in nodes.items():
        module = build_module(*given)
        parallel = DistributedDataParallel(Step(module))  # kept: its end is the end of its hooks
        total = parallel(batch(torch.arange(rank, COUNT, 2)))
        total.backward()
        results[name] = {"total": total.detach(), **{key: p.grad for key, p in module.named_parameters()}}
    torch.save(results, f"{folder}/{rank}")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path: Path, composed: Compose) -> None:
    nodes = {name: (build_node(composed, overrides), 0.0) for name, overrides in VARIANTS.items()}
    nodes |= {f"{name}, mixed": (nodes[name][0], 0.4) for name in ("ce-balanced", "arcface", "center-everywhere")}
    side_by_side(work, nodes, str(tmp_path))
    for rank in range(2):
        found = torch.load(tmp_path / str(rank), weights_only=True)
        for name, given in nodes.items():
            module = build_module(*given)
            total = module.training_step(batch(torch.arange(COUNT)), 0)
            torch.autograd.backward(total)
            torch.testing.assert_close(found[name]["total"], total.detach(), atol=1e-9, rtol=1e-9, msg=name)
            parameters = dict(module.named_parameters())
            assert found[name].keys() == {"total", *parameters}
            for key, parameter in parameters.items():
                assert parameter.grad is not None, (name, key)
                torch.testing.assert_close(found[name][key], parameter.grad, atol=1e-9, rtol=1e-9, msg=f"{name} {key}")


def build_node(composed: Compose, overrides: list[str]) -> dict[str, Any]:
    node = OmegaConf.to_container(composed(*overrides).loss, resolve=True)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


@pytest.mark.parametrize("name", ["ce", "arcface", "ce_center", "ce_arcface", "learned"])
def test_every_parameter_is_in_one_group_and_the_loss_s_own_do_not_decay(name: str, composed: Compose) -> None:
    module = build_module(build_node(composed, VARIANTS[name]))
    groups = module.configure_optimizers()["optimizer"].param_groups
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in module.parameters())
    own = {id(parameter) for parameter in module.loss.parameters()}
    for group in groups:
        ids = {id(parameter) for parameter in group["params"]}
        assert ids <= own or not ids & own
        assert (group["weight_decay"] == 0) == bool(ids & own)


def test_a_margin_alone_classifies_by_its_cosines(composed: Compose) -> None:
    module = build_module(build_node(composed, ["loss=arcface"])).eval()
    output = module(batch(torch.arange(COUNT)))
    (weight,) = module.loss.parameters()
    cosine = output.embedding @ weight.T / (output.embedding.norm(dim=1)[:, None] * weight.norm(dim=1))
    torch.testing.assert_close(output.logits, 64.0 * cosine, atol=1e-3, rtol=1e-4)


def test_the_training_loss_is_the_mean_over_an_epoch_s_utterances(composed: Compose) -> None:
    module = build_module(build_node(composed, ["loss=ce_center"])).eval()
    logged: list[tuple[dict[str, Tensor], int]] = []
    module.log_dict = lambda values, batch_size, **_: logged.append((values, batch_size))  # type: ignore
    rows = torch.arange(COUNT)
    parts = (rows[:5], rows[5:])
    for epoch in range(2):
        module.on_train_epoch_start()
        for part in parts:
            module.trainer = type(
                "Trainer", (), {"is_last_batch": part is parts[-1], "current_epoch": epoch, "global_step": 0}
            )()
            assert len(logged) == epoch
            module.training_step(batch(part), 0)
            module.on_train_batch_end(None, batch(part), 0)
    whole = module.step("train", batch(rows))[1]
    expected = {"train/loss": whole["total"], "train/loss/ce": whole["ce"], "train/loss/center": whole["center"]}
    for values, count in logged:
        assert count == COUNT
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(values[name], value.detach())


def test_each_view_s_head_trains_by_its_own_loss_and_all_are_judged_together(composed: Compose) -> None:
    module = build_module(build_node(composed, ["loss=ce_center"])).eval()
    heads = ViewHeads(Head(**{**HEAD, "dim": 3}) for _ in range(2)).double()
    module.network.head = heads
    rows = torch.arange(COUNT)
    output, terms, _ = module.step("train", batch(rows))
    labels, features = batch(rows).labels, output.features(module.loss.on)
    own = [
        module.loss(head(output.embedding[:, 3 * view :][:, :3]), features, labels)
        for view, head in enumerate(heads.heads)
    ]
    assert float((own[0]["ce"] - own[1]["ce"]).detach().abs()) > 1e-3
    for name, value in terms.items():
        torch.testing.assert_close(value, (own[0][name] + own[1][name]) / 2)
    together = module.loss(output.logits, features, labels)
    for name, value in module.step("val", batch(rows))[1].items():
        torch.testing.assert_close(value, together[name])
    assert together["ce"] < terms["ce"]  # by Jensen's inequality


def test_on_a_device_a_loss_that_is_not_finite_is_found_later_with_its_own_batch(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = build_module(build_node(composed, ["loss=ce_center"]))
    monkeypatch.setattr(module_file, "copies_ahead", lambda device: True)
    monkeypatch.setattr(module_file, "LATE", 3)
    centers = dict(module.loss.named_parameters())["terms.center.centers.embedding"]
    whole = centers.detach().clone()

    def step(number: int) -> None:
        module.trainer = type(
            "Trainer", (), {"current_epoch": 0, "global_step": number, "is_last_batch": number == 5}
        )()
        with torch.no_grad():
            centers.copy_(whole if number != 2 else torch.full_like(whole, np.nan))
        module.training_step(batch(torch.tensor([number, number + 1])), number)
        module.on_train_batch_end(None, batch(torch.tensor([number])), number)

    module.on_train_epoch_start()
    for number in range(5):
        step(number)
    with pytest.raises(NotFiniteError) as caught:
        step(5)
    assert caught.value.terms == ["total", "center"]
    assert caught.value.rows == [2, 3]
    assert caught.value.when == "train, epoch 1, step 2"


def test_a_loss_that_is_not_finite_stops_the_step(composed: Compose) -> None:
    module = build_module(build_node(composed, ["loss=ce_center"]))
    module.trainer = type("Trainer", (), {"current_epoch": 3, "global_step": 8})()
    with torch.no_grad():
        dict(module.loss.named_parameters())["terms.center.centers.embedding"].fill_(np.nan)
    with pytest.raises(NotFiniteError) as caught:
        module.training_step(batch(torch.tensor([4, 2])), 0)
    assert caught.value.terms == ["total", "center"]
    assert caught.value.rows == [4, 2]


def norm_of(parameters: list[torch.nn.Parameter]) -> float:
    """The norm of all gradients together."""
    return sum(float(each.grad.double().square().sum()) for each in parameters if each.grad is not None) ** 0.5


@pytest.mark.parametrize("clip", [None, 0.5, 100.0])
def test_the_norm_of_gradients_is_that_before_they_are_clipped(composed: Compose, clip: float | None) -> None:
    module = build_module(build_node(composed, []))
    module.on_train_epoch_start()
    assert module.gradient_norm() == {}
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    norms = []
    for step in range(3):
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, 0.01 * (number + step))
        if step == 2:
            parameters[0].grad = torch.full_like(parameters[0], torch.inf)  # as a scaler of float16 meets at first
        norms.append(norm_of(parameters))
        module.configure_gradient_clipping(optimizer, clip, "norm")
        if step < 2:
            assert norm_of(parameters) == pytest.approx(min(norms[-1], clip or norms[-1]), rel=1e-4)
    assert float(module.gradient_norm()["train/grad_norm"]) == pytest.approx(np.mean(norms[:2]), rel=1e-4)
