"""Standardised statistics: against NumPy, the running scale, pooled encoders, mixing, wrong words."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fourm_ser.encoders.base import Features, length_mask
from fourm_ser.errors import InputError
from fourm_ser.fusion.standardised import STATISTICS, StandardisedFusion
from fourm_ser.fusion.statistics import FLOOR
from tests.fusion.sequences import fuse, utterances

DIMS = {"text": 6, "audio": 4}
TEXTS = utterances((2, 5, 40, 1), DIMS["text"], seed=1)
AUDIOS = utterances((60, 1, 7, 9), DIMS["audio"], seed=2)
BOTH = ("text", "audio")


def build(modalities: Sequence[str] = BOTH, **statistics: Sequence[str]) -> StandardisedFusion:
    torch.manual_seed(0)
    wanted = {"text": ["mean"], "audio": ["mean", "deviation"], **statistics}
    return StandardisedFusion(dims=DIMS, modalities=modalities, statistics=wanted, dim=3, dropout=0.5)


def by_numpy(frames: np.ndarray, wanted: Sequence[str]) -> np.ndarray:
    found = {"mean": frames.mean(0), "deviation": np.sqrt(frames.var(0) + FLOOR)}
    return np.concatenate([found[name] for name in wanted])


@pytest.mark.parametrize("modalities", [("text", "audio"), ("audio", "text"), ("audio",), ("text",)])
@pytest.mark.parametrize("audio", [["mean"], ["deviation"], ["deviation", "mean"], ["mean", "deviation"]])
def test_each_row_s_own_frames_standardised_by_what_training_showed(
    modalities: Sequence[str], audio: list[str]
) -> None:
    fusion = build(modalities, audio=audio)
    given = {"text": TEXTS, "audio": AUDIOS}
    wanted = {"text": ["mean"], "audio": audio}
    rows = [
        np.concatenate([by_numpy(given[name][row].double().numpy(), wanted[name]) for name in modalities])
        for row in range(len(TEXTS))
    ]
    fuse(fusion.train(), TEXTS, AUDIOS, float("nan"))  # the first batch is all that was shown
    output = fuse(fusion.eval(), TEXTS, AUDIOS, float("inf"))
    statistics = np.stack(rows)
    standardised = (statistics - statistics.mean(0)) / np.sqrt(statistics.var(0) + FLOOR)
    weight, bias = (tensor.detach().double().numpy() for tensor in fusion.linear.parameters())
    np.testing.assert_allclose(output.embedding.detach(), standardised @ weight.T + bias, atol=2e-4)
    assert fusion.dim == output.embedding.shape[1] == 3
    assert fusion.widths == {name: DIMS[name] for name in modalities}


def test_the_deviation_of_pooled_features_says_nothing() -> None:
    fusion = build(["audio"])
    one = torch.randn(5, 1, 4)
    pooled = Features(one, length_mask(torch.ones(5, dtype=torch.long), 1))
    fusion.train()(None, pooled)
    fusion.eval()
    with torch.no_grad():
        fusion.linear.weight[:, :4] = 0.0  # the means' weights
    torch.testing.assert_close(fusion(None, pooled).embedding, fusion.linear.bias.expand(5, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("wanted", [["active_mean"], ["mean", "active_deviation"], list(STATISTICS)])
def test_active_statistics_are_of_frames_by_their_activity(wanted: list[str]) -> None:
    activity = [torch.tensor([1.0, 0.25, *[float(place % 3 == 0) for place in range(2, len(row))]]) for row in AUDIOS]
    given = [torch.cat([row, own[: len(row), None]], 1) for row, own in zip(AUDIOS, activity, strict=True)]
    torch.manual_seed(0)
    fusion = StandardisedFusion(
        dims={"audio": DIMS["audio"] + 1},
        modalities=["audio"],
        statistics={"audio": wanted},
        dim=3,
        dropout=0.5,
        activity=["audio"],
    )
    fuse(fusion.train(), TEXTS, given, float("nan"))
    output = fuse(fusion.eval(), TEXTS, given, float("inf"))
    rows = []
    for row in given:
        frames, weights = row[:, :-1].double().numpy(), row[:, -1].double().numpy()
        mean = np.average(frames, axis=0, weights=weights)
        deviation = np.sqrt(np.average((frames - mean) ** 2, axis=0, weights=weights) + FLOOR)
        found = {"mean": by_numpy(frames, ["mean"]), "active_mean": mean, "active_deviation": deviation}
        found["deviation"] = by_numpy(frames, ["deviation"])
        rows.append(np.concatenate([found[name] for name in wanted]))
    statistics = np.stack(rows)
    standardised = (statistics - statistics.mean(0)) / np.sqrt(statistics.var(0) + FLOOR)
    weight, bias = (tensor.detach().double().numpy() for tensor in fusion.linear.parameters())
    np.testing.assert_allclose(output.embedding.detach(), standardised @ weight.T + bias, atol=2e-4)
    assert fusion.widths == {"audio": DIMS["audio"] + 1}


@pytest.mark.parametrize("texts", [1, 2])
def test_each_hidden_state_is_a_view_of_its_own(texts: int) -> None:
    states = {
        "text": [[0, 1, 2, 3, 4, 5]] if texts == 1 else [[0, 1, 2], [3, 4, 5]],
        "audio": [[0, 2], [1, 3]],  # as pooled features have them: two means, two deviations
    }
    wanted = {"text": ["mean"], "audio": ["mean", "active_mean", "deviation"]}
    activity = [torch.rand(len(row), 1) for row in AUDIOS]
    given = [torch.cat([row, own], 1) for row, own in zip(AUDIOS, activity, strict=True)]
    arguments: dict[str, Any] = {"modalities": BOTH, "statistics": wanted, "dim": 3, "dropout": 0.5}
    arguments["activity"] = ["audio"]
    fusion = StandardisedFusion(dims={"text": 6, "audio": 5}, states=states, **arguments)
    assert (fusion.views, fusion.dim) == (2, 6)
    fuse(fusion.train(), TEXTS, given, float("nan"))
    found = fuse(fusion.eval(), TEXTS, given, float("inf")).embedding
    for view in range(2):
        places = {"text": states["text"][view % texts], "audio": [*states["audio"][view], 4]}
        texts_read = [row[:, places["text"]] for row in TEXTS]
        audios_read = [row[:, places["audio"]] for row in given]
        dims = {name: len(read) for name, read in places.items()}
        alone = StandardisedFusion(dims=dims, **arguments)
        fuse(alone.train(), texts_read, audios_read, float("nan"))
        alone.linear.load_state_dict(fusion.linears[view].state_dict())
        expected = fuse(alone.eval(), texts_read, audios_read).embedding
        torch.testing.assert_close(found[:, 3 * view : 3 * view + 3], expected, rtol=0, atol=1e-5)


def test_states_that_are_not_as_many_are_paired_by_their_order() -> None:
    states = {"text": [[0, 1], [2, 3], [4, 5]], "audio": [[0], [1], [2], [3]]}
    wanted = {"text": ["mean"], "audio": ["mean"]}
    fusion = StandardisedFusion(dims=DIMS, modalities=BOTH, statistics=wanted, dim=3, dropout=0.5, states=states)
    assert fusion.read.tolist() == [[0, 1, 6], [0, 1, 7], [2, 3, 8], [4, 5, 9]]


@pytest.mark.parametrize("wanted", [["mean"], ["deviation", "mean"], ["active_mean"], list(STATISTICS)])
def test_what_it_reads_of_an_utterance_is_as_good_as_its_frames(wanted: list[str]) -> None:
    given = [torch.cat([row, torch.rand(len(row), 1)], 1) for row in AUDIOS]
    arguments: dict[str, Any] = {
        "dims": {"text": DIMS["text"], "audio": DIMS["audio"] + 1},
        "modalities": BOTH,
        "statistics": {"text": ["mean"], "audio": wanted},
        "dim": 3,
        "dropout": 0.5,
        "activity": ["audio"],
    }
    torch.manual_seed(0)
    fusion = StandardisedFusion(**arguments)
    other = StandardisedFusion(**arguments)
    other.load_state_dict(fusion.state_dict())
    assert fusion.summaries.keys() == {"text", "audio"}
    summary = pickle.loads(pickle.dumps(fusion.summaries))
    texts, audios = (
        [summary[name](Features(row[None], torch.ones(1, len(row), dtype=torch.bool))) for row in rows]
        for name, rows in (("text", TEXTS), ("audio", given))
    )
    for mode in (True, False):
        torch.manual_seed(1)
        expected = fuse(fusion.train(mode), TEXTS, given).embedding
        torch.manual_seed(1)
        found = fuse(other.train(mode), texts, audios).embedding
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_deviation_alone_as_wide_as_the_frames_is_no_summary() -> None:
    assert build(audio=["deviation"]).summaries.keys() == {"text"}
    assert build(audio=["mean"]).summaries.keys() == {"text", "audio"}


def test_active_statistics_are_left_out_where_the_encoder_does_not_tell() -> None:
    plain, left_out = build(), build(text=["active_mean", "mean"], audio=list(STATISTICS))
    assert left_out.statistics == plain.statistics
    torch.testing.assert_close(
        fuse(left_out.eval(), TEXTS, AUDIOS).embedding, fuse(plain.eval(), TEXTS, AUDIOS).embedding
    )


@pytest.mark.parametrize(
    ("modalities", "statistics", "message"),
    [
        ([], {}, r"fusion\.modalities=\[\]: expected text, audio or both"),
        (["audio", "audio"], {}, r"fusion\.modalities="),
        (
            ["audio"],
            {"audio": []},
            r"fusion\.statistics\.audio=\[\]: expected a list of any of mean, deviation, active_mean",
        ),
        (["audio"], {"audio": "mean"}, r"fusion\.statistics\.audio=mean: expected a list"),
        (["text"], {"text": ["mean", "mean"]}, r"fusion\.statistics\.text=\['mean', 'mean'\]: expected a list"),
        (["text"], {"text": ["median"]}, r"fusion\.statistics\.text=median: expected one of mean, deviation"),
        (["audio"], {"audio": ["active_mean"]}, r"fusion\.statistics\.audio=.*does not tell speech from pauses"),
        (["text"], {"video": ["mean"]}, r"fusion\.statistics: unknown key video"),
    ],
)
def test_words_that_are_none_are_refused(modalities: list[str], statistics: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(modalities, **statistics)


@pytest.mark.parametrize(("key", "value"), [("dim", 0), ("dim", 1.5), ("dropout", 1.0), ("dropout", -0.1)])
def test_numbers_out_of_range_are_refused(key: str, value: Any) -> None:
    statistics = {modality: list(STATISTICS) for modality in BOTH}
    arguments: dict[str, Any] = {"dim": 3, "dropout": 0.5, key: value}
    with pytest.raises(InputError, match=rf"fusion\.{key}={value}"):
        StandardisedFusion(dims=DIMS, modalities=BOTH, statistics=statistics, **arguments)
