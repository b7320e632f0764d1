"""Every part of a network on a pretend accelerator, in each precision, beside itself on the CPU."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourm_ser.config import build as instantiate
from fourm_ser.encoders.base import Features, length_mask, moved
from fourm_ser.encoders.lora import Lora
from fourm_ser.encoders.vggish import Whitening
from fourm_ser.losses.base import Loss
from fourm_ser.models.metrics import EmotionMetrics
from fourm_ser.models.network import NetworkOutput
from tests.accelerator.device import Pretend
from tests.accelerator.networks import (
    CPU,
    EMOTIONS,
    LABELS,
    PRECISIONS,
    VARIANTS,
    Build,
    alone,
    autocast,
    check_gradients,
    check_near,
    check_there,
    gradients,
    inputs_of,
    nothing_waits,
)
from tests.conftest import CONF, Compose


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


POOLS = ("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "avg_pool3d", "max_pool3d_with_indices")
REFUSED = {
    *(
        f"{kind}_backward"
        for kind in (*POOLS, "grid_sampler_2d", "grid_sampler_3d", "_embedding_bag_dense", "_ctc_loss")
    ),
    *(f"upsample_{kind}_backward" for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    *(f"{kind}_pad{dims}d_backward" for kind in ("reflection", "replication") for dims in (1, 2, 3)),
    *("fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d"),
    *(
        "_embedding_bag_dense_backward",
        "_ctc_loss_backward",
        "nll_loss2d_forward",
        "put_",
        "histc",
        "kthvalue",
        "median",
        "nanmedian",
    ),
}
"""What CUDA's deterministic algorithms refuse, by the documentation of `torch.use_deterministic_algorithms`."""


@pytest.fixture(autouse=True)
def deterministic(pretend: Pretend, device: torch.device) -> Iterator[None]:
    """With deterministic algorithms, as runs have them: nothing here runs on the accelerator what CUDA would refuse."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    with pretend.watched() as seen:
        yield
    torch.use_deterministic_algorithms(before)
    ran = {operator.removeprefix("aten::").split(".")[0] for operator in seen.runs}
    assert ran
    assert not ran & REFUSED


@pytest.mark.slow(but=["text/tiny", "audio/tiny", "audio/wav2vec", "audio/whisper_base"])
@pytest.mark.parametrize("name", VARIANTS)
def test_an_encoder_gives_the_cpu_s_features_and_gradients_and_waits_for_nothing(
    name: str, build: Build, pretend: Pretend, device: torch.device
) -> None:
    modality = name.split("/")[0]
    _, network = build(*alone(name))
    encoder = network.by_modality[modality].eval()
    encoder.unfreeze("all")
    inputs = inputs_of(encoder)
    expected = encoder(inputs)
    own = expected.mask
    trains = any(parameter.requires_grad for parameter in encoder.parameters())
    assert trains or not encoder.blocks()  # what has no weights at all
    if trains:
        expected.features[own].square().mean().backward()
    slopes = gradients(encoder)
    encoder.to(device)
    given = moved(inputs, device)
    for dtype in PRECISIONS.values():
        encoder.eval().zero_grad()
        with autocast(device, dtype):
            found = encoder(given)
        assert torch.equal(found.mask.cpu(), own)
        check_near(found.features[found.mask], expected.features[own], dtype)
        if trains:
            torch.autograd.backward(found.features[found.mask].float().square().mean())
            check_gradients(gradients(encoder), slopes, dtype)
    for dtype, unfreeze in zip(PRECISIONS.values(), ("none", 1, "all"), strict=True):
        encoder.unfreeze(unfreeze if len(encoder.blocks()) > 1 else "all")  # type: ignore[arg-type]
        encoder.train().zero_grad()
        with nothing_waits(pretend), autocast(device, dtype):
            found = encoder(given)
            total = found.features.float().masked_fill(~found.mask[..., None], 0.0).square().mean()
            if total.requires_grad:
                total.backward()
        check_there(total, *gradients(encoder).values())


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=list(PRECISIONS))
def test_vggish_s_whitening(dtype: torch.dtype | None, device: torch.device) -> None:
    torch.manual_seed(0)
    whitening, given = Whitening(torch.randn(128, 128) / 10, torch.randn(128)), torch.rand(3, 128)
    expected = whitening(given)
    with autocast(device, dtype):
        check_near(whitening.to(device)(given.to(device)), expected, dtype)


def sequences(dims: dict[str, int], device: torch.device) -> dict[str, Features]:
    """Four utterances' features; gradients flow to them."""
    generator = torch.Generator().manual_seed(0)
    lengths = {"text": torch.tensor([1, 5, 9, 3]), "audio": torch.tensor([7, 1, 20, 12])}
    return {
        modality: Features(
            torch.randn(4, int(lengths[modality].max()), dim, generator=generator).to(device).requires_grad_(),
            length_mask(lengths[modality], int(lengths[modality].max())).to(device),
        )
        for modality, dim in dims.items()
    }


@pytest.mark.slow(but=["statistics", "self_attention", "cross_attention"])
@pytest.mark.parametrize("option", options("fusion"))
def test_a_fusion_gives_the_cpu_s_embedding_maps_and_gradients_and_waits_for_nothing(
    option: str, composed: Compose, pretend: Pretend, device: torch.device
) -> None:
    config = composed(f"fusion={option}", "encoder=tiny")
    dims = dict.fromkeys(config.fusion.modalities, 32)
    torch.manual_seed(0)
    here = instantiate(config.fusion, dims=dims)
    there = copy.deepcopy(here).to(device)
    for dtype, training, maps in itertools.product(PRECISIONS.values(), (False, True), (False, True)):
        results = []
        for fusion, where in ((here, CPU), (there, device)):
            fusion.train(training).zero_grad()
            given = sequences(dims, where)
            with nothing_waits(pretend) if where != CPU else nullcontext():
                with autocast(where, dtype if where != CPU else None):
                    fused = fusion(given.get("text"), given.get("audio"), return_attention=maps)
                fused.embedding.float().square().mean().backward()
            slopes = {name: part.features.grad for name, part in given.items() if part.features.grad is not None}
            results.append((fused, {**gradients(fusion), **slopes}))
        (expected, own), (found, its) = results
        assert found.attention.keys() == expected.attention.keys()
        assert bool(found.attention) == (maps and bool(here.maps))
        if training:  # attention draws its dropout in another way on the CPU
            check_there(found.embedding, *found.attention.values(), *its.values())
            continue
        check_near(found.embedding, expected.embedding, dtype)
        for name, weights in found.attention.items():
            check_near(weights, expected.attention[name], dtype, name)
        check_gradients(its, own, dtype)


@pytest.mark.parametrize("option", options("head"))
def test_a_head_gives_the_cpu_s_logits_and_gradients(option: str, composed: Compose, device: torch.device) -> None:
    torch.manual_seed(0)
    here = instantiate(composed(f"head={option}").head, dim=16, classes=4)
    there, embedding = copy.deepcopy(here).to(device), torch.randn(4, 16)
    for dtype, training in itertools.product(PRECISIONS.values(), (False, True)):
        results = []
        for head, where in ((here, CPU), (there, device)):
            head.train(training).zero_grad()
            torch.manual_seed(1)  # of dropout
            with autocast(where, dtype if where != CPU else None):
                results.append(head(embedding.to(where)))
            results[-1].float().square().mean().backward()
        check_near(results[1], results[0], dtype)
        check_gradients(gradients(there), gradients(here), dtype)


LOSSES = {
    **{option: [f"loss={option}"] for option in options("loss")},
    "ce balanced": ["loss=ce", "loss.class_weights=balanced"],
    "focal balanced": ["loss=focal", "loss.class_weights=balanced"],
    "center on all": ["loss=ce_center", "loss.terms.center.on=[embedding,text,audio]"],
    "center of 4m_ser": ["loss=ce_center", "loss.terms.center.form=4m_ser", "loss.weighting=convex"],
    "contrastive center of 4m_ser": ["loss=ce_contrastive_center", "loss.terms.contrastive_center.form=4m_ser"],
    "arcface on all": ["loss=arcface", "loss.on=[embedding,text,audio]"],
    "learned": ["loss=ce_center", "loss.weighting=learned"],
}


@pytest.mark.slow(but=["4m_ser_ce_center", "ce_arcface", "ce_contrastive", "focal_center", "on all", "of 4m_ser"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_gives_the_cpu_s_terms_and_gradients_and_waits_for_nothing(
    name: str, composed: Compose, pretend: Pretend, device: torch.device
) -> None:
    torch.manual_seed(0)
    here: Loss = instantiate(composed(*LOSSES[name]).loss)
    dims = {"embedding": 16, "text": 12, "audio": 8}
    here.setup(4, dims, [5, 6, 7, 8])
    there = copy.deepcopy(here).to(device)
    vectors = {"logits": torch.randn(6, 4), **{feature: torch.randn(6, dims[feature]) for feature in here.on}}
    labels = torch.tensor([0, 1, 2, 3, 1, 1])
    for dtype in PRECISIONS.values():
        results = []
        for loss, where, kind in ((here, CPU, None), (there, device, dtype)):
            loss.zero_grad()
            given = {
                name: vector.clone().to(where, kind or torch.float32).requires_grad_()
                for name, vector in vectors.items()
            }
            its_labels = labels.to(where)
            with nothing_waits(pretend) if where != CPU else nullcontext():
                with autocast(where, kind):
                    terms = loss(given["logits"], {feature: given[feature] for feature in loss.on}, its_labels)
                terms["total"].backward()
            slopes = {name: vector.grad for name, vector in given.items() if vector.grad is not None}
            results.append((terms, {**gradients(loss), **slopes}))
        (expected, own), (found, its) = results
        assert found.keys() == expected.keys()
        for term, value in found.items():
            assert value.dtype == torch.float32
            check_near(value, expected[term], dtype, term)
        check_gradients(its, own, dtype)


def test_metrics_are_the_cpu_s_and_adding_to_them_waits_for_nothing(pretend: Pretend, device: torch.device) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(9, 4), torch.randn(9, 5), torch.arange(9) % 3) for _ in range(2)]
    here, there = EmotionMetrics(EMOTIONS), EmotionMetrics(EMOTIONS).to(device)
    for logits, embedding, labels in batches:
        here.update(logits, embedding, labels)
        batch = (logits.to(device), embedding.to(device), labels.to(device))
        with nothing_waits(pretend):
            there.update(*batch)
    assert there.compute() == pytest.approx(here.compute(), abs=1e-6, nan_ok=True)
    there.reset()
    there.update(*(part.to(device) for part in batches[0]))
    assert np.isfinite(there.compute()["ua"])


STEPS = {
    "tiny": ([], "self_attention", "all", "ce_center"),
    "tiny, arcface as classifier": ([], "self_attention", "all", "arcface"),
    "frozen": ([], "cross_attention", "none", "ce_center"),
    "several layers": (VARIANTS["audio/several"], "statistics", "all", "ce_center"),
    "vggish": (VARIANTS["audio/vggish"], "3m_ser", "all", "ce"),
    "wav2vec": (VARIANTS["audio/wav2vec"], "cross_attention", "all", "focal_center"),
    "wavlm's last block": (VARIANTS["audio/wavlm"], "audio_attention", 1, "ce_cosface"),
    "wavlm's adapters": (VARIANTS["audio/wavlm"], "audio_attention", "lora", "ce"),
    "panns": (VARIANTS["audio/panns"], "concat", "all", "ce_contrastive_center"),
    "hubert": (VARIANTS["audio/hubert"], "memocmt", "none", "ce"),
    "roberta": (VARIANTS["text/roberta"], "text_attention", "all", "ce_smooth"),
    "roberta, pooled": ([*VARIANTS["text/roberta"], "encode.pool=mean_std"], "attentive_statistics", "all", "ce"),
    "mel_cnn": (VARIANTS["audio/mel_cnn"], "audio_attention", "all", "ce_arcface"),
    "prosody_cnn": (VARIANTS["audio/prosody_cnn"], "audio_statistics", "all", "ce_smooth"),
    "descriptors": (VARIANTS["audio/descriptors"], "audio_descriptors", "none", "ce_smooth"),
    "lstm_mel": (VARIANTS["audio/lstm_mel"], "server", "all", "ce_sphereface"),
}


@pytest.mark.slow(but=["frozen", "adapters", "several layers"])
@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_is_the_cpu_s(name: str, build: Build, device: torch.device) -> None:
    words, fusion, unfreeze, option = STEPS[name]
    heads = (
        [] if fusion in ("concat", "server") or fusion.endswith(("statistics", "descriptors")) else ["fusion.heads=4"]
    )
    config, network = build(*words, f"fusion={fusion}", *heads, f"loss={option}")
    loss: Loss = instantiate(config.loss).setup(4, network.widths, [1, 1, 1, 1])
    network.replace_head(loss)
    for encoder in network.by_modality.values():
        if unfreeze == "lora":
            encoder.add_adapters(Lora(r=4, alpha=8.0, dropout=0.1, targets="auto"), seed=0)
        encoder.unfreeze(unfreeze)  # type: ignore[arg-type]
    inputs = {modality: inputs_of(encoder) for modality, encoder in network.by_modality.items()}
    here = nn.ModuleList([network, loss])
    there = copy.deepcopy(here).to(device)
    expected: list[Any] = []
    for both, where, dtype in ((here, CPU, None), *((there, device, dtype) for dtype in PRECISIONS.values())):
        both.train(dtype is not None).zero_grad()  # without dropout and augmentation where numbers are compared
        model, its_loss = both
        assert isinstance(its_loss, Loss)
        with autocast(where, dtype):
            given = {modality: moved(part, where) for modality, part in inputs.items()}
            output: NetworkOutput = model(given.get("text"), given.get("audio"))
            terms = its_loss(output.logits, output.features(its_loss.on), LABELS.to(where))
        scaler = torch.amp.GradScaler(where.type, init_scale=256.0, enabled=dtype == torch.float16)
        trained = [parameter for parameter in both.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.0, fused=True)
        scaler.scale(terms["total"]).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(trained, 1e6)
        scaler.step(optimizer)
        if where == CPU:
            expected = [output.logits, terms["total"], gradients(both)]
            continue
        slopes = gradients(both)
        assert slopes
        check_there(output.logits, *terms.values(), *slopes.values())
        if dtype is None:
            check_near(output.logits, expected[0])
            check_near(terms["total"], expected[1])
            check_gradients(slopes, expected[2], dtype)
