"""Mixup: the loss by hand, the draws, and that nothing is mixed but in training."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from fourm_ser.training.augmentation import Augmentation
from fourm_ser.training.mixup import Mixing
from fourm_ser.training.module import EmotionModule
from tests.conftest import Compose
from tests.training.test_module import COUNT, VARIANTS, batch, build_module, build_node

ALPHA = 0.4


def mixed_module(composed: Compose, name: str) -> EmotionModule:
    return build_module(build_node(composed, VARIANTS[name]), mixup=ALPHA)


def drawn(number: int, rows: Tensor, alpha: float = ALPHA) -> Mixing:
    return Mixing.drawn(alpha, (0, 0, 0, number), rows)


@pytest.mark.slow(but=["4m_ser_ce_center", "arcface", "ce_balanced", "focal_contrastive", "everywhere", "learned"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_is_the_mix_of_both_labels_losses_of_the_mixed_embedding(name: str, composed: Compose) -> None:
    module, rows = mixed_module(composed, name), torch.tensor([5, 0, 3, 6, 1, 2, 4])
    own = batch(rows)
    output = module(own)
    vectors = {"embedding": output.embedding}
    for modality in ("text", "audio"):
        features, mask = getattr(output, modality)
        vectors[modality] = torch.stack([row[keep].mean(0) for row, keep in zip(features, mask, strict=True)])
    mixing = drawn(3, rows)
    share, partners = mixing.share, mixing.partners.tolist()
    assert 0 < share < 1
    assert partners != list(range(COUNT))
    for where, values in vectors.items():
        mixed = [share * values[place] + (1 - share) * values[other] for place, other in enumerate(partners)]
        vectors[where] = torch.stack(mixed)
    logits = module.network.head(vectors["embedding"])
    labels = own.labels.tolist()
    losses = [
        module.loss(logits, {where: vectors[where] for where in module.loss.on}, torch.tensor(given))
        for given in (labels, [labels[other] for other in partners])
    ]
    _, terms, count = module.step("train", own, mixing)
    assert count == COUNT
    assert terms.keys() == losses[0].keys()
    for term, value in terms.items():
        torch.testing.assert_close(value, share * losses[0][term] + (1 - share) * losses[1][term])
    torch.testing.assert_close(module.training_step(own, 3), terms["total"])  # the same draws
    assert not torch.allclose(module.step("val", own)[1]["total"], terms["total"])


def test_balanced_weights_average_over_both_labels_of_all_utterances(composed: Compose) -> None:
    module, rows = mixed_module(composed, "ce-balanced"), torch.arange(COUNT)
    module.loss.label_smoothing = 0.0  # type: ignore[assignment]
    mixing, labels = drawn(1, rows), batch(rows).labels
    output, terms, _ = module.step("train", batch(rows), mixing)
    weights, total, norm = module.loss.weights, 0.0, 0.0
    assert isinstance(weights, Tensor)
    for place, other in enumerate(mixing.partners.tolist()):
        for share, label in ((mixing.share, labels[place]), (1 - mixing.share, labels[other])):
            total -= share * float(weights[label]) * float(output.logits[place].detach().log_softmax(0)[label])
            norm += share * float(weights[label])
    assert float(terms["total"]) == pytest.approx(total / norm)


def test_partners_are_a_permutation_of_the_positions_whatever_their_order() -> None:
    rows = torch.tensor([12, 40, 3, 77, 8])
    for number in range(20):
        pairs = []
        for order in (torch.arange(5), torch.tensor([4, 2, 0, 1, 3])):
            mixing = drawn(number, rows[order])
            pairs.append(dict(zip(rows[order].tolist(), rows[order][mixing.partners].tolist(), strict=True)))
            assert sorted(mixing.partners.tolist()) == list(range(5))
        assert pairs[0] == pairs[1]


def test_shares_are_those_of_the_beta_distribution_and_each_step_draws_its_own() -> None:
    rows = torch.arange(4)
    for alpha in (0.2, 1.0, 5.0):
        shares = [drawn(number, rows, alpha).share for number in range(1000)]
        assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
        assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)  # of Beta(alpha, alpha)
    first = [
        Mixing.drawn(ALPHA, numbers, rows).share for numbers in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))
    ]
    assert len(set(first)) == 4
    firsts = Counter(int(drawn(number, rows).partners[0]) for number in range(400))
    assert min(firsts[place] for place in range(4)) > 60  # an utterance may be its own partner, as in the authors' code


def test_one_utterance_alone_is_not_mixed(composed: Compose) -> None:
    module, alone = mixed_module(composed, "ce_center"), batch(torch.tensor([4]))
    torch.testing.assert_close(module.training_step(alone, 0), module.step("val", alone)[1]["total"])


def test_without_it_nothing_is_drawn(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build_module(build_node(composed, VARIANTS["ce"]))
    monkeypatch.setattr(Mixing, "drawn", None)
    assert Augmentation() == (0.0, None, None)
    assert module.masks is None
    whole = batch(torch.arange(COUNT))
    torch.testing.assert_close(module.training_step(whole, 0), module.step("val", whole)[1]["total"])
