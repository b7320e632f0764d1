"""Integrated gradients over words and time."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from fourm_ser.analysis.attribution import Attribution, _draw_modalities, _figure, attribute, attribution, read_features
from fourm_ser.analysis.examples import Example, choose_examples
from fourm_ser.analysis.findings import write_finding
from fourm_ser.analysis.words import Words, read_words
from fourm_ser.encoders.base import Features
from fourm_ser.encoders.tokens import Tokens
from fourm_ser.fusion.unimodal import UnimodalFusion
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.runs.finished import OpenRun
from tests.drawn import Drawn, distance, lightness, names, pixels


@pytest.fixture(scope="module")
def opened(two_stage_run: Path) -> OpenRun:
    return OpenRun(two_stage_run)


@pytest.fixture(scope="module")
def examples(opened: OpenRun) -> list[Example]:
    return choose_examples(opened, "test", [], 1, 1)[:2]


def stem(opened: OpenRun, row: int) -> dict[str, Tensor]:
    """An utterance's features, (time, dim) by modality, from its raw content and by itself."""
    found = {}
    with torch.no_grad():
        for modality, encoder in opened.network.by_modality.items():
            inputs = encoder.collate([encoder.frontend(opened.data.readers()[modality](row))])
            found[modality] = encoder.stem_features(inputs).features[0]
    return found


def by_hand(
    network: EmotionNetwork, own: Mapping[str, Tensor], average: Mapping[str, Tensor], target: int, steps: int
) -> dict[str, np.ndarray]:
    """The definition: the mean gradient over the middles of the steps, times the difference, summed over features."""
    totals = {modality: torch.zeros_like(features) for modality, features in own.items()}
    for step in range(steps):
        share = (step + 0.5) / steps
        points = {
            modality: (average[modality] + share * (features - average[modality])).requires_grad_()
            for modality, features in own.items()
        }
        given = {
            modality: Features(point[None], torch.ones(1, len(point), dtype=torch.bool))
            for modality, point in points.items()
        }
        logit = network(given.get("text"), given.get("audio")).logits[0, target]
        for modality, gradient in zip(points, torch.autograd.grad(logit, list(points.values())), strict=True):
            totals[modality] += gradient / steps
    return {
        modality: (totals[modality] * (own[modality] - average[modality])).sum(1).detach().numpy() for modality in own
    }


def test_features_and_their_average_are_those_of_the_utterances_alone(opened: OpenRun, examples: list[Example]) -> None:
    rows = [example.row for example in examples]
    found, average = read_features(opened, rows, "test")
    every: dict[str, list[Tensor]] = {"text": [], "audio": []}
    for row in opened.corpus.rows("test"):
        for modality, features in stem(opened, row).items():
            every[modality].append(features)
            if row in rows:
                torch.testing.assert_close(found[row][modality], features, rtol=1e-4, atol=1e-4)
    for modality, parts in every.items():
        torch.testing.assert_close(average[modality], torch.cat(parts).mean(0), rtol=1e-4, atol=1e-4)


def test_attributions_follow_the_definition(opened: OpenRun, examples: list[Example]) -> None:
    features, average = read_features(opened, [example.row for example in examples], "test")
    for example in examples:
        own = features[example.row]
        found = attribute(opened.network, own, average, target=2, steps=64, tolerance=1e-3, most_steps=256)
        assert found.gap < 1e-2
        expected = by_hand(opened.network, own, average, target=2, steps=200)
        for modality, values in expected.items():
            scale = float(np.abs(values).max())
            assert found.values[modality] == pytest.approx(values, abs=0.02 * scale)


def test_the_gap_is_between_the_sum_and_the_logits(opened: OpenRun, examples: list[Example]) -> None:
    row = examples[0].row
    features, average = read_features(opened, [row], "test")
    found = attribute(opened.network, features[row], average, target=0, steps=4, tolerance=1.0, most_steps=4)
    with torch.no_grad():
        logits = [
            opened.network(
                *(
                    Features(given[modality][None], torch.ones(1, len(given[modality]), dtype=torch.bool))
                    for modality in ("text", "audio")
                )
            ).logits[0, 0]
            for given in (
                features[row],
                {modality: average[modality].expand_as(own) for modality, own in features[row].items()},
            )
        ]
    difference = float(logits[0] - logits[1])
    assert (found.logit, found.reference) == pytest.approx(tuple(map(float, logits)), abs=1e-5)
    assert found.gap == pytest.approx(abs(sum(found.sums.values()) - difference) / abs(difference), rel=1e-3)


def test_steps_are_doubled_while_the_gap_is_too_large(opened: OpenRun, examples: list[Example]) -> None:
    row = examples[0].row
    features, average = read_features(opened, [row], "test")
    for tolerance, steps in ((0.0, 24), (9.9, 4)):
        found = attribute(opened.network, features[row], average, target=0, steps=4, tolerance=tolerance, most_steps=24)
        assert found.steps == steps
    *each, last = attribution(opened, examples[:1], "test", 2, 0.0, 4)
    assert "with 4 steps, more than the 0% that were wanted" in each[0].caption
    assert last.table["complete"].tolist() == [False]
    assert f"stays above 0% for {examples[0].id}" in last.caption


def test_findings_sum_tokens_to_words_and_all_to_the_logit(
    opened: OpenRun, examples: list[Example], tmp_path: Path
) -> None:
    *each, summary = attribution(opened, examples, "test", 64, 0.02, 1024)
    frontend = opened.network.by_modality["text"].frontend
    assert isinstance(frontend, Tokens)
    for finding, example, row in zip(each, examples, summary.table.to_dict("records"), strict=True):
        text = finding.table[finding.table["modality"] == "text"]
        audio = finding.table[finding.table["modality"] == "audio"]
        assert text["word"].tolist() == read_words(frontend, example.text).names
        assert text["attribution"].sum() == pytest.approx(row["text"], abs=1e-5)
        assert audio["attribution"].sum() == pytest.approx(row["audio"], abs=1e-5)
        assert audio["end"].max() == pytest.approx(example.seconds - 0.0125, abs=0.0125)  # whole frames
        assert row["gap"] <= 0.02
        assert row["text"] + row["audio"] == pytest.approx(row["logit"] - row["reference"], rel=0.02)
        assert (row["id"], row["predicted"]) == (example.id, example.predicted)
        assert row["average_predicted"] in opened.emotions
    again = attribution(opened, examples, "test", 64, 0.02, 1024)
    assert [finding.table.equals(other.table) for finding, other in zip([*each, summary], again, strict=True)]
    write_finding(each[0], tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".png", ".svg"]


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_one_modality_is_explained_alone(two_stage_run: Path, examples: list[Example], modality: str) -> None:
    opened = OpenRun(two_stage_run)
    network, other = opened.network, "audio" if modality == "text" else "text"
    del network.encoders[other]
    dims = {modality: network.by_modality[modality].dim}
    network.fusion = UnimodalFusion(dims=dims, modalities=[modality], dim=128, heads=4, dropout=0.0, pool="mean").eval()
    finding, summary = attribution(opened, examples[:1], "test", 64, 0.02, 1024)
    assert set(finding.table["modality"]) == {modality}
    assert other not in summary.table
    row = summary.table.iloc[0]
    assert row[modality] == pytest.approx(row["logit"] - row["reference"], rel=0.02)


EXAMPLE = Example(0, "u1", "well this is not so good", 2.0, "anger", "anger", 0.9, "the surest anger")


def test_words_and_moments_that_speak_for_the_emotion_are_red_and_those_against_it_blue() -> None:
    words = Words(["well", "this", "is", "not", "so", "good"], np.array([0, 1, 1, 2, 3, 4, 5]), np.zeros(6, dtype=bool))
    by_word = np.array([0.4, -0.1, 0.0, 1.0, 0.7, -0.8])
    values = {
        "text": np.array([0.4, 0.2, -0.3, 0.0, 1.0, 0.7, -0.8]),
        "audio": np.array([0.3, -0.2, 0.05, -0.3, 0.25]),
    }
    edges = np.array([0.0, 0.5, 0.75, 1.0, 1.6, 2.0])
    samples = np.sin(np.arange(32_000) / 50).astype(np.float32)
    figure = _figure(EXAMPLE, Attribution(values, 2.0, 0.5, 1, 8), "said", words, samples, edges)
    drawn = Drawn(figure)
    _, time, cells, bar = figure.axes
    strengths = []
    for name, value in zip(words.names, by_word, strict=True):
        (text,) = [text for text in cells.texts if text.get_text() == name]
        (patch,) = [patch for patch in cells.patches if patch.get_window_extent().contains(*_middle(text))]
        box = patch.get_window_extent()
        colour = drawn.colour(box.x0 + 3, box.y0 + 3)
        assert distance(colour, drawn.bar_colour(bar.xaxis, value)) < 0.03
        strengths.append((value, lightness(colour)))
        assert np.sign(round(colour[0] - colour[2], 2)) == np.sign(value)
    for sign in (1, -1):
        light = [shade for value, shade in sorted(strengths, key=lambda pair: abs(pair[0])) if sign * value >= 0]
        assert (np.diff(light) < 0).all()
    zero = float(pixels(time.yaxis, 0))
    for start, end, value in zip(edges, edges[1:], values["audio"], strict=False):
        x = float(pixels(time.xaxis, (start + end) / 2))
        height = float(pixels(time.yaxis, value / (end - start))) - zero
        assert np.sign(height) == np.sign(value)
        for share in (0.2, 0.9):
            red, _, blue = drawn.colour(x, zero + share * height)
            assert red - blue > 0.3 if value > 0 else blue - red > 0.3
        for beyond in (zero + height + 4 * np.sign(height), zero - 8 * np.sign(height)):
            assert distance(drawn.colour(x, beyond), "white") < 0.2  # but for the grid


def test_bars_of_modalities_end_at_their_sums() -> None:
    examples = [EXAMPLE._replace(id=f"u{number}") for number in range(4)]
    sums = np.random.default_rng(0).uniform(-2.0, 3.0, (4, 2))
    found = [
        Attribution({"text": np.array([text - 1, 1.0]), "audio": np.array([audio])}, text + audio, 0.0, 0, 8)
        for text, audio in sums
    ]
    figure = _draw_modalities(["anger", "sadness"], examples, found, 0.01).figure
    assert isinstance(figure, Figure)
    drawn = Drawn(figure)
    (axes,) = figure.axes
    rows = names(axes.yaxis)
    assert sorted(rows, key=lambda name: -rows[name]) == [f"u{number}: anger" for number in range(4)]
    looks = {str(bars.get_label()): to_rgb(bars.patches[0].get_facecolor()) for bars in axes.containers}  # type: ignore[attr-defined]
    for (name, y), ends in zip(rows.items(), sums, strict=True):
        found_ends = {}
        for patch in axes.patches:
            box = patch.get_window_extent()
            if abs((box.y0 + box.y1) / 2 - y) < abs(rows["u0: anger"] - rows["u1: anger"]) / 2:
                inside = drawn.colour((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
                (modality,) = [key for key, look in looks.items() if distance(inside, np.array(look)) < 0.02]
                found_ends[modality] = [box.x0, box.x1]
        for modality, end in zip(("text", "audio"), ends, strict=True):
            assert found_ends[modality] == pytest.approx(sorted(pixels(axes.xaxis, [0.0, end])), abs=0.5), name


def _middle(text: Text) -> tuple[float, float]:
    x, y = text.get_transform().transform(text.get_position())
    return float(x), float(y)
