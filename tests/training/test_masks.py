"""SpecAugment on features: how much is hidden, by what, of whom."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourm_ser.encoders.augment import draw_share
from fourm_ser.encoders.base import Features, length_mask
from fourm_ser.errors import InputError
from fourm_ser.training.masks import FeatureMasks

WIDTH = 12


def make(
    time: float = 0.0, feature: float = 0.0, modalities: tuple[str, ...] = ("audio",), width: int = WIDTH
) -> FeatureMasks:
    masks = FeatureMasks(modalities=list(modalities), time=time, time_length=4, feature=feature, feature_length=3)
    masks.setup({"text": width, "audio": width})
    return masks


def sequence(lengths: list[int], seed: int = 0, width: int = WIDTH) -> Features:
    """Features with rubbish where padding stands."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(lengths), max(lengths) + 2, width, generator=generator) + 5
    mask = length_mask(torch.tensor(lengths), features.shape[1])
    return Features(features.masked_fill(~mask[..., None], float("nan")), mask)


def spans(row: Tensor) -> list[int]:
    """The lengths of the runs of True."""
    ends = torch.nn.functional.pad(row.int(), (1, 1)).diff()
    return ((ends == -1).nonzero() - (ends == 1).nonzero()).flatten().tolist()


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    more=st.integers(0, 5),
    share=st.floats(0.01, 0.99),
    length=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_spans_lie_within_a_row_s_own_places_and_never_cover_all(
    lengths: list[int], more: int, share: float, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    own = torch.tensor(lengths)
    hidden = draw_share(own, max(lengths) + more, share=share, length=length)
    assert not (hidden & ~length_mask(own, hidden.shape[1])).any()
    for count, row in zip(lengths, hidden, strict=True):
        width = int(min(max(share * count, 1), length))
        assert int(row.sum()) < count
        assert int(row.sum()) <= share * count + width
        assert all(span >= width for span in spans(row))


@pytest.mark.parametrize("own", [3, 12, 50])  # tokens of a short sentence, and frames
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_share_is_the_one_asked_for_whoever_the_neighbours_are(own: int, share: float) -> None:
    torch.manual_seed(0)
    shares = []
    for neighbour in (1, 200):
        lengths = torch.tensor([neighbour, *[own] * 3000])
        hidden = draw_share(lengths, 200, share=share, length=1)[1:]  # spans of one place do not overlap
        shares.append(float(hidden.float().sum() / (3000 * own)))
    assert shares == pytest.approx([share, share], abs=0.01)


def test_longer_spans_overlap_a_little() -> None:
    torch.manual_seed(0)
    hidden = draw_share(torch.full((2000,), 100), 100, share=0.2, length=8)
    assert 0.16 < float(hidden.float().mean()) < 0.2
    assert {span for row in hidden for span in spans(row)} >= {8}


def test_where_a_frame_is_hidden_stands_the_mean_of_the_utterance_s_own_frames() -> None:
    torch.manual_seed(1)
    given = sequence([30, 9, 1])
    found = make(time=0.4)({"audio": given})["audio"]
    assert torch.equal(found.mask, given.mask)
    changes = 0
    for before, after, own in zip(given.features, found.features, given.mask, strict=True):
        changed = (before[own] != after[own]).any(1)
        mean = torch.stack([before[place] for place in own.nonzero().flatten()]).mean(0)
        assert torch.allclose(after[own][changed], mean.expand(int(changed.sum()), -1), atol=1e-5)
        assert int(changed.sum()) < int(own.sum())
        changes += int(changed.sum())
    assert changes > 8
    assert torch.equal(found.features[2, 0], given.features[2, 0])  # one frame, as pooled encoders give


def test_where_a_feature_is_hidden_stands_its_mean_over_the_utterances_that_training_has_shown() -> None:
    torch.manual_seed(2)
    masks = make(feature=0.3)
    seen: list[Tensor] = []
    for step in range(3):
        given = sequence([5, 1, 8], seed=step)
        seen.append(torch.stack([row[own].mean(0) for row, own in zip(given.features, given.mask, strict=True)]))
        found = masks({"audio": given})["audio"]
        usual = torch.stack(seen).mean((0, 1))  # the first batches count alike
        hidden = 0
        for before, after, own in zip(given.features, found.features, given.mask, strict=True):
            changed = (before[own] != after[own]).any(0)
            assert torch.allclose(after[own][:, changed], usual[changed].expand(int(own.sum()), -1), atol=1e-5)
            assert torch.equal(after[own][:, ~changed], before[own][:, ~changed])
            assert int(changed.sum()) < WIDTH
            hidden += int(changed.sum())
        assert hidden


def test_masks_are_drawn_anew_by_the_seed_and_in_training_alone() -> None:
    given = {"audio": sequence([40, 20]), "text": sequence([7, 5])}
    masks = make(time=0.3, feature=0.3)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(make(time=0.3, feature=0.3)(given)["audio"].features.nan_to_num())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert masks(given)["text"] is given["text"]  # of other modalities nothing is hidden
    mean = masks.means["audio"].mean.clone()  # type: ignore[operator]
    masks.eval()
    assert masks(given) == given
    assert torch.equal(masks.means["audio"].mean, mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_precision_and_gradients_stay(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    given = sequence([20, 20])
    features = given.features.nan_to_num().to(dtype).requires_grad_()
    masks = make(time=0.2, feature=0.2).to(torch.float64 if dtype == torch.float64 else torch.float32)
    found = masks({"audio": Features(features, given.mask)})["audio"].features
    assert found.dtype == dtype
    found.float().square().sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"modalities": ["video"]}, r"augment\.spec\.modalities=\[video\]: expected"),
        ({"modalities": ["audio", "audio"]}, r"augment\.spec\.modalities=\[audio, audio\]: expected"),
        ({"modalities": "audio"}, r"augment\.spec\.modalities="),
        ({"time": 1.0}, r"augment\.spec\.time=1\.0: expected a share"),
        ({"feature": -0.1}, r"augment\.spec\.feature=-0\.1: expected a share"),
        ({"time_length": 0}, r"augment\.spec\.time_length=0: expected a whole number"),
        ({"feature_length": 1.5}, r"augment\.spec\.feature_length=1\.5: expected a whole number"),
    ],
)
def test_numbers_out_of_range_are_refused(values: dict[str, object], said: str) -> None:
    right = {"modalities": ["audio"], "time": 0.1, "time_length": 4, "feature": 0.1, "feature_length": 4}
    with pytest.raises(InputError, match=said):
        FeatureMasks(**{**right, **values})  # type: ignore[arg-type]
