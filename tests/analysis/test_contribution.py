"""What each modality contributes."""

import json
from collections.abc import Callable
from itertools import combinations, permutations, product
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.container import BarContainer

from fourm_ser.analysis.coalitions import Encoded, answer, derangements, gather
from fourm_ser.analysis.contribution import (
    _accuracy,
    _pairs,
    _shapley,
    contribution,
    pair_auc,
    read_conditions,
    shapley,
    true_probabilities,
)
from fourm_ser.analysis.findings import Finding, write_finding
from fourm_ser.encoders.base import Features
from fourm_ser.errors import InputError
from fourm_ser.fusion.unimodal import UnimodalFusion
from fourm_ser.runs.finished import OpenRun
from fourm_ser.training.experiment import run
from tests.conftest import Compose
from tests.drawn import Drawn, lightness, marks, names, pixels

pytestmark = pytest.mark.usefixtures("no_figures")

SHUFFLES = 4


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, composed: Compose, slice_of_demo: list[str]) -> Path:
    """A run that has learned both the words and the voice: word embeddings that train, a frozen audio stem."""
    folder = tmp_path_factory.mktemp("run") / "trained"
    own = [override for override in slice_of_demo if not override.startswith("fusion.")]
    learns = ["fusion=concat", "encoder.text.layer=0", "optimizer.lr=3e-3", "stage=finetune"]
    stage = {"epochs": 8, "batch_size": 16, "encoder_learning_rate": 1e-2, "unfreeze.audio": "none"}
    run(composed(*own, *learns, *(f"stage.finetune.{key}={value}" for key, value in stage.items())), folder)
    return folder


@pytest.fixture(scope="module")
def opened(run_dir: Path) -> OpenRun:
    return OpenRun(run_dir)


@pytest.fixture(scope="module")
def encoded(opened: OpenRun) -> Encoded:
    return gather(opened, "all")


@pytest.fixture(scope="module")
def findings(opened: OpenRun) -> dict[str, Finding]:
    return {finding.name: finding for finding in contribution(opened, "all", seed=0, shuffles=SHUFFLES)}


def logits_alone(opened: OpenRun, **features: torch.Tensor) -> np.ndarray:
    """One utterance, made of these (time, dim) features, through fusion and head."""
    whole = {
        modality: Features(own[None], torch.ones(1, len(own), dtype=torch.bool)) for modality, own in features.items()
    }
    with torch.no_grad():
        fused = opened.network.fusion(whole.get("text"), whole.get("audio"))
        return opened.network.head(fused.embedding)[0].numpy()


def test_intact_utterances_are_recognised_as_the_run_recorded(run_dir: Path, opened: OpenRun) -> None:
    metrics = json.loads((run_dir / "metrics.json").read_text())
    intact = contribution(opened, "test", seed=0, shuffles=1)[0].table.set_index("condition").loc["intact"]
    assert intact["ua"] == pytest.approx(metrics["test/ua"])
    assert intact["wa"] == pytest.approx(metrics["test/wa"])
    for emotion in opened.emotions:
        assert intact[f"recall/{emotion}"] == pytest.approx(metrics[f"test/recall/{emotion}"])


def test_each_condition_is_that_of_every_utterance_alone(two_stage_run: Path) -> None:
    opened = OpenRun(two_stage_run)
    encoded = gather(opened, "test")
    orders = derangements(len(encoded), 1, seed=3)
    found = {name: drawn[0] for name, drawn in read_conditions(opened, encoded, orders).items()}
    average = {modality: torch.cat(every).mean(0) for modality, every in encoded.features.items()}
    for place in range(0, len(encoded), 5):
        own = {modality: every[place] for modality, every in encoded.features.items()}
        removed = {modality: average[modality].repeat(len(features), 1) for modality, features in own.items()}
        other = {modality: every[orders[0][place]] for modality, every in encoded.features.items()}
        expected = {
            "intact": own,
            "text removed": {**own, "text": removed["text"]},
            "speech removed": {**own, "audio": removed["audio"]},
            "text shuffled": {**own, "text": other["text"]},
            "speech shuffled": {**own, "audio": other["audio"]},
            "both removed": removed,
        }
        assert set(found) == set(expected)
        for name, features in expected.items():
            assert found[name][place] == pytest.approx(logits_alone(opened, **features), abs=1e-4)


def test_the_demo_s_words_tell_valence_and_its_voice_tells_arousal(findings: dict[str, Finding]) -> None:
    table = findings["contribution-pairs"].table
    pairs = table.set_index(["first", "second"])
    valence = [("anger", "happiness"), ("sadness", "neutral")]
    arousal = [("anger", "sadness"), ("happiness", "neutral")]
    for needs, other, shuffled in ((valence, arousal, "text shuffled"), (arousal, valence, "speech shuffled")):
        lost = pairs["intact"] - pairs[shuffled]
        for pair in needs:
            assert lost[pair] > 0.25
            assert pairs.loc[pair, shuffled] == pytest.approx(0.5, abs=0.2)
        for pair in other:
            assert lost[pair] < 0.12
    ua = findings["contribution"].table.set_index("condition")["ua"]
    assert ua["intact"] - ua.drop("intact").max() > 0.1


def test_shapley_values_are_what_each_adds_in_both_orders(
    opened: OpenRun, encoded: Encoded, findings: dict[str, Finding]
) -> None:
    table = findings["contribution-shapley"].table
    gained = table["both"] - table["none"]
    assert (table["shapley/text"] + table["shapley/speech"]).to_numpy() == pytest.approx(gained.to_numpy(), abs=1e-9)
    conditions = read_conditions(opened, encoded, [])
    names = {"": "both removed", "text": "speech removed", "speech": "text removed", "speech text": "intact"}
    for worth, measure in (("probability", _probability), ("recall", _ua)):
        row = table[(table["worth"] == worth) & (table["emotion"] == "all")].iloc[0]
        totals = {"text": 0.0, "speech": 0.0}
        for order in permutations(totals):
            come: list[str] = []
            for modality in order:
                before = measure(conditions[names[" ".join(sorted(come))]][0], encoded.labels)
                come.append(modality)
                after = measure(conditions[names[" ".join(sorted(come))]][0], encoded.labels)
                totals[modality] += (after - before) / 2
        assert {modality: row[f"shapley/{modality}"] for modality in totals} == pytest.approx(totals, abs=1e-6)
    recall = table[(table["worth"] == "recall") & (table["emotion"] != "all")]
    ua = table[(table["worth"] == "recall") & (table["emotion"] == "all")].iloc[0]
    assert recall["shapley/text"].mean() == pytest.approx(ua["shapley/text"])


def _probability(logits: np.ndarray, labels: np.ndarray) -> float:
    probabilities = torch.from_numpy(logits).double().softmax(1)
    return float(probabilities[torch.arange(len(labels)), torch.from_numpy(labels)].mean())


def _ua(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([(logits[labels == label].argmax(1) == label).mean() for label in np.unique(labels)]))


def test_shapley_values_of_numbers_by_hand() -> None:
    worth = {
        "none": np.array([0.25]),
        "text only": np.array([0.45]),
        "speech only": np.array([0.5]),
        "both": np.array([0.9]),
    }
    found = shapley(worth)
    assert list(found) == ["text", "audio"]
    assert found["text"] == pytest.approx((0.2 + 0.4) / 2)
    assert found["audio"] == pytest.approx((0.25 + 0.45) / 2)


def test_the_area_is_the_chance_that_a_pair_is_told_apart() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, 40), rng.normal(size=(40, 3)).round(1)
    difference = logits[:, 2] - logits[:, 0]
    wins = [
        1.0 if one > other else 0.5 if one == other else 0.0
        for one in difference[labels == 2]
        for other in difference[labels == 0]
    ]
    assert pair_auc(logits, labels, 2, 0) == pytest.approx(np.mean(wins))
    assert np.isnan(pair_auc(logits, np.zeros(40, dtype=int), 0, 1))
    assert np.isnan(true_probabilities(logits, np.zeros(40, dtype=int))).tolist() == [False, True, True]


def test_orders_leave_nobody_in_place_and_follow_the_seed() -> None:
    orders = derangements(5, 300, seed=1)
    assert all((order != np.arange(5)).all() and sorted(order) == list(range(5)) for order in orders)
    assert len({tuple(order) for order in orders}) == 44  # all that there are
    assert [order.tolist() for order in derangements(5, 300, seed=1)] == [order.tolist() for order in orders]
    assert [order.tolist() for order in derangements(5, 300, seed=2)] != [order.tolist() for order in orders]
    with pytest.raises(InputError, match="1 utterance: shuffling takes two or more"):
        derangements(1, 1, seed=0)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(opened: OpenRun, findings: dict[str, Finding], tmp_path: Path) -> None:
    for finding in contribution(opened, "all", seed=0, shuffles=SHUFFLES):
        pd.testing.assert_frame_equal(finding.table, findings[finding.name].table)
        if finding.name == "contribution":
            write_finding(finding, tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".png", ".svg"]
    other = contribution(opened, "all", seed=1, shuffles=SHUFFLES)[1].table
    assert not other["text shuffled"].equals(findings["contribution-pairs"].table["text shuffled"])


@pytest.mark.parametrize(("modality", "name"), [("text", "text"), ("audio", "speech")])
def test_one_modality_is_removed_and_shuffled_alone(run_dir: Path, modality: str, name: str) -> None:
    single = OpenRun(run_dir)
    network = single.network
    del network.encoders["audio" if modality == "text" else "text"]
    torch.manual_seed(0)
    dims = {modality: network.by_modality[modality].dim}
    network.fusion = UnimodalFusion(
        dims=dims, modalities=[modality], dim=network.fusion.dim, heads=4, dropout=0.0, pool="mean"
    ).eval()
    accuracy, pairs = contribution(single, "test", seed=0, shuffles=2)
    assert accuracy.table["condition"].tolist() == ["intact", f"{name} removed", f"{name} shuffled"]
    assert pairs.table.columns.tolist() == ["first", "second", "intact", f"{name} shuffled"]
    encoded = gather(single, "test")
    intact = answer(network, encoded.features, single.device)
    assert intact[3] == pytest.approx(logits_alone(single, **{modality: encoded.features[modality][3]}), abs=1e-4)


DRAWN_EMOTIONS = ["anger", "happiness", "sadness"]
DRAWN_LABELS = np.repeat([0, 1, 2], [10, 6, 4])


def conditions() -> dict[str, list[np.ndarray]]:
    """Made-up logits that know the label the better the earlier the condition is named."""
    own = np.eye(3)[DRAWN_LABELS]
    generator = np.random.default_rng(0)
    names_of = ["intact", "text removed", "speech removed", "text shuffled", "speech shuffled", "both removed"]
    strength = dict(zip(names_of, (3.0, 0.6, 1.5, 0.3, 1.0, 0.0), strict=True))
    return {
        name: [skill * own + generator.normal(size=own.shape) for _ in range(2 if "shuffled" in name else 1)]
        for name, skill in strength.items()
    }


def drawn_figure(draw: Callable[..., Finding], *more: object) -> tuple[Finding, list[Axes], Drawn]:
    """A finding of the made-up logits, its axes, and it drawn."""
    finding = draw(cast(OpenRun, SimpleNamespace(emotions=DRAWN_EMOTIONS)), "test", DRAWN_LABELS, conditions(), *more)
    assert finding.figure is not None
    drawn = Drawn(finding.figure)
    return finding, finding.figure.axes, drawn


def bar_ends(axes: Axes, label: str, rows: dict[str, float]) -> dict[str, list[float]]:
    """From where to where the bars of a label reach, in pixels, by the name of the row that each stands in."""
    (bars,) = [bars for bars in axes.containers if isinstance(bars, BarContainer) and bars.get_label() == label]
    found = {}
    for box in (patch.get_window_extent() for patch in bars.patches):
        name = min(rows, key=lambda name: abs(rows[name] - (box.y0 + box.y1) / 2))
        assert name not in found
        found[name] = [float(box.x0), float(box.x1)]
    return found


def check_heat(drawn: Drawn, axes: Axes, rows: dict[str, float], expected: dict[tuple[str, str], float]) -> None:
    """Each number stands in its row and column, in a colour that is the lighter the larger the number."""
    columns = names(axes.xaxis)
    wide = axes.get_window_extent().width / len(columns)
    shades = []
    for (row, column), value in expected.items():
        x, y = columns[column], rows[row]
        at = [text.get_transform().transform(text.get_position()) for text in axes.texts]
        nearest = int(np.argmin([np.hypot(*(place - [x, y])) for place in at]))
        assert axes.texts[nearest].get_text() == f"{value:.2f}"
        shades.append((value, lightness(drawn.colour(x + 0.4 * wide, y))))
    light = np.array([shade for _, shade in sorted(shades)])
    assert (np.diff(light) > -0.01).all()
    assert light[-1] - light[0] > 0.2


def test_bars_of_conditions_are_as_long_as_their_accuracies() -> None:
    _, (bars, heat), drawn = drawn_figure(_accuracy, 2)
    rows = names(bars.yaxis)
    assert sorted(rows, key=lambda name: -rows[name]) == list(conditions())
    expected = {}
    ends = {key: bar_ends(bars, key, rows) for key in ("UA", "WA")}
    for name, several in conditions().items():
        hit = [logits.argmax(1) == DRAWN_LABELS for logits in several]
        recalls = [[own[label == DRAWN_LABELS].mean() for label in range(3)] for own in hit]
        for key, value in (("UA", np.mean(recalls)), ("WA", np.mean(hit))):
            assert ends[key][name] == pytest.approx(pixels(bars.xaxis, [0.0, float(value)]), abs=0.5)
        for emotion, recall in zip(DRAWN_EMOTIONS, np.mean(recalls, axis=0), strict=True):
            expected[name, emotion] = float(recall)
    (guessing,) = [marks(line) for line in bars.lines if line.get_label() == "guessing"]
    assert guessing[:, 0] == pytest.approx(pixels(bars.xaxis, [1 / 3, 1 / 3]), abs=0.5)
    check_heat(drawn, heat, rows, expected)


def test_a_pair_s_area_stands_in_its_row_and_condition() -> None:
    _, (axes,), drawn = drawn_figure(_pairs, 2)
    shown = {name: several for name, several in conditions().items() if "removed" not in name}
    expected = {}
    for (first, second), (name, several) in product(combinations(range(3), 2), shown.items()):
        areas = []
        for logits in several:
            margin = logits[:, first] - logits[:, second]
            wins = np.greater.outer(margin[first == DRAWN_LABELS], margin[second == DRAWN_LABELS])
            areas.append(wins.mean())
        expected[f"{DRAWN_EMOTIONS[first]} / {DRAWN_EMOTIONS[second]}", name] = float(np.mean(areas))
    check_heat(drawn, axes, names(axes.yaxis), expected)


def test_shapley_bars_stand_on_their_side_of_zero_and_sum_to_the_mark() -> None:
    finding, grid, _ = drawn_figure(_shapley)
    rows = names(grid[0].yaxis)
    assert sorted(rows, key=lambda name: -rows[name]) == [*DRAWN_EMOTIONS, "all"]
    assert [axes.get_title() for axes in grid] == ["mean probability of the true emotion", "recall (all: UA)"]
    for axes, key in zip(grid, ("probability", "recall"), strict=True):
        table = finding.table[finding.table["worth"] == key].set_index("emotion")
        (both,) = [marks(line) for line in axes.lines if line.get_label() == "both together"]
        for modality in ("text", "speech"):
            for emotion, ends in bar_ends(axes, modality, rows).items():
                value = float(table.loc[emotion, f"shapley/{modality}"])  # type: ignore[arg-type]
                assert ends == pytest.approx(sorted(pixels(axes.xaxis, [0.0, value])), abs=0.5)
        for emotion, y in rows.items():
            (mark,) = both[np.abs(both[:, 1] - y) < 1]
            gained = float(table.loc[emotion, ["shapley/text", "shapley/speech"]].sum())  # type: ignore[arg-type]
            assert mark[0] == pytest.approx(pixels(axes.xaxis, gained), abs=0.5)
