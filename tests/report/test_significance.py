"""The tests' numbers are SciPy's."""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fourm_ser.report import significance
from fourm_ser.report.cells import Section, make_sections
from fourm_ser.report.significance import (
    compare,
    holm,
    least_p,
    paired_bootstrap,
    read_predictions,
    wilcoxon,
)
from fourm_ser.runs.collect import collect
from fourm_ser.runs.resampling import tails
from tests.report.runs import write_run, write_sweep


def made(folder: Path) -> tuple[Section, list[pd.DataFrame]]:
    (section,) = make_sections(collect([folder]).runs)[0]
    return section, [read_predictions(cell.runs)[0] for cell in section.cells]


def ua(labels: np.ndarray, gains: np.ndarray) -> float:
    return float(np.mean([gains[labels == label].mean() for label in np.unique(labels)]))


@pytest.mark.parametrize("gain", [0.0, 0.06])
def test_the_bootstrap_is_scipys(gain: float) -> None:
    generator = np.random.default_rng(1)
    labels = generator.choice(4, size=300, p=[0.1, 0.2, 0.3, 0.4])
    first = (generator.random(300) < 0.65 + gain).astype(float)
    second = (generator.random(300) < 0.65).astype(float)
    found = paired_bootstrap(labels, first, second)

    def statistic_ua(places: np.ndarray) -> float:
        return ua(labels[places], (first - second)[places])

    def statistic_wa(places: np.ndarray) -> float:
        return float((first - second)[places].mean())

    for metric, statistic in (("ua", statistic_ua), ("wa", statistic_wa)):
        scipys = stats.bootstrap(
            (np.arange(300),), statistic, vectorized=False, method="percentile", n_resamples=4000, rng=7
        )
        # Quantiles of thousands of draws: their own sampling error is about 3% of the standard error here.
        tolerance = 0.15 * scipys.standard_error
        assert found[metric].difference == pytest.approx(statistic(np.arange(300)), abs=1e-12)
        assert found[metric].low == pytest.approx(scipys.confidence_interval.low, abs=tolerance)
        assert found[metric].high == pytest.approx(scipys.confidence_interval.high, abs=tolerance)
        sampled = scipys.bootstrap_distribution
        expected = min(1.0, 2 * min((sampled <= 0).mean(), (sampled >= 0).mean()))
        assert found[metric].p == pytest.approx(expected, abs=0.04)


def test_the_bootstrap_of_equal_models_finds_nothing() -> None:
    right = np.array([1.0, 0.0, 1.0, 1.0])
    for interval in paired_bootstrap(["a", "a", "b", "b"], right, right).values():
        assert (interval.difference, interval.low, interval.high, interval.p) == (0.0, 0.0, 0.0, 1.0)


def test_the_bootstrap_does_not_depend_on_the_order_of_the_utterances() -> None:
    generator = np.random.default_rng(0)
    labels, first, second = generator.choice(3, 50), generator.random(50).round(), generator.random(50).round()
    order = generator.permutation(50)
    assert paired_bootstrap(labels, first, second) == paired_bootstrap(labels[order], first[order], second[order])


@pytest.mark.parametrize("speakers", [5, 12])
def test_differences_over_speakers_are_as_sure_as_they_say(speakers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 1999)
    # Two models that are equal over all speakers, of whom some suit the one and some the other.
    rng, groups = np.random.default_rng(speakers), np.repeat(np.arange(speakers), 50)
    labels = np.tile(np.arange(2), speakers * 25)
    found = {"speakers": 0, "utterances": 0}
    for seed in range(100):
        leaning = rng.normal(0, 0.1, speakers)[groups]
        first = (rng.random(len(groups)) < 0.7 + leaning).astype(float)
        second = (rng.random(len(groups)) < 0.7 - leaning).astype(float)
        for unit in found:
            result = paired_bootstrap(labels, first, second, seed, groups if unit == "speakers" else None)["ua"]
            assert (result.p < 0.05) == (result.low > 0 or result.high < 0) or abs(result.p - 0.05) < 0.01
            found[unit] += result.p < 0.05
    assert found["speakers"] / 100 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)
    assert found["utterances"] / 100 > 0.2


def test_the_bootstrap_over_speakers_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    names = np.array([f"s{place}" for place in rng.integers(0, 7, 200)])
    labels, first, second = rng.integers(0, 3, 200), rng.random(200).round(), rng.random(200).round()
    found = paired_bootstrap(labels, first, second, groups=names)
    drawn: dict[str, list[float]] = {"ua": [], "wa": []}
    for _ in range(4000):
        places = np.concatenate([np.flatnonzero(names == name) for name in rng.choice(np.unique(names), 7)])
        drawn["ua"].append(ua(labels[places], (first - second)[places]))
        drawn["wa"].append((first - second)[places].mean())
    for metric, values in drawn.items():
        assert (found[metric].low, found[metric].high) == pytest.approx(np.quantile(values, tails(7)), abs=0.03)
    assert found["ua"].difference == pytest.approx(ua(labels, first - second), abs=1e-12)
    order = rng.permutation(200)
    again = paired_bootstrap(labels[order], first[order], second[order], groups=names[order])
    assert again["ua"] == pytest.approx(found["ua"])


@pytest.mark.parametrize(("folds", "unit"), [(4, "utterances"), (5, "speakers")])
def test_cells_are_compared_over_speakers_where_there_are_five(tmp_path: Path, folds: int, unit: str) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce"], folds=folds)  # one speaker a fold
    assert {comparison.resampled for comparison in compare(*made(tmp_path), "ua")} == {unit}


def test_wilcoxon_is_scipys(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce"], seeds=2, folds=6)
    section, predictions = made(tmp_path)
    for comparison in compare(section, predictions, "ua"):
        values = section.values(comparison.metric)
        first, second = values.loc[comparison.first], values.loc[comparison.second]
        assert comparison.repeats == 6
        assert comparison.wilcoxon == stats.wilcoxon(first, second).pvalue


def test_what_wilcoxon_cannot_do() -> None:
    assert math.isnan(wilcoxon(np.array([0.5]), np.array([0.4])))
    assert wilcoxon(np.array([0.5, 0.6]), np.array([0.5, 0.6])) == 1.0
    for n in range(2, 11):
        rising = np.arange(1, n + 1) / 20
        assert least_p(n) == pytest.approx(stats.wilcoxon(rising).pvalue)
    assert least_p(5) == 0.0625


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(values: list[float]) -> None:
    # A hypothesis is as doubtful as the least doubtful set of hypotheses with it, by Bonferroni.
    every = range(len(values))
    expected = [
        max(
            min(1.0, len(chosen) * min(values[n] for n in chosen))
            for size in range(1, len(values) + 1)
            for chosen in combinations(every, size)
            if place in chosen
        )
        for place in every
    ]
    assert holm(values) == pytest.approx(expected)


def test_holm_counts_only_tests_that_were_done() -> None:
    corrected = holm([0.01, math.nan, 0.04])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.04)


def test_cells_are_compared_on_common_utterances_pooled_over_runs(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce", "focal"], seeds=2, folds=3, utterances=80)
    section, predictions = made(tmp_path)
    comparisons = compare(section, predictions, "ua")
    best, baseline = section.best("ua"), section.baseline
    assert baseline == 0
    pairs = {(c.first, c.second) for c in comparisons}
    assert pairs == {(best, n) for n in range(4) if n != best} | {(n, 0) for n in range(4) if n not in (0, best)}
    files = {
        (cell, run.path.name): pd.read_csv(run.path / "predictions.csv").set_index("id")
        for cell in range(4)
        for run in section.cells[cell].runs
    }
    right = [
        pd.concat([1.0 * (t["emotion"] == t["predicted"]) for (n, _), t in files.items() if n == cell])
        .groupby("id")
        .mean()
        for cell in range(4)
    ]
    labels = pd.concat([table["emotion"] for table in files.values()]).groupby("id").first()
    for c in comparisons:
        assert c.utterances == 240
        gains = (right[c.first] - right[c.second]).loc[labels.index].to_numpy()
        expected = gains.mean() if c.metric == "wa" else ua(labels.to_numpy(), gains)
        assert c.bootstrap is not None
        assert c.bootstrap.difference == pytest.approx(expected, abs=1e-12)
    for metric in ("ua", "wa"):
        of_metric = [c for c in comparisons if c.metric == metric]
        assert [c.wilcoxon_holm for c in of_metric] == holm([c.wilcoxon for c in of_metric])
        assert [c.bootstrap_holm for c in of_metric] == holm([c.bootstrap.p for c in of_metric if c.bootstrap])


def test_cells_without_common_utterances_are_not_resampled(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "tiny", fold=0)
    write_run(tmp_path / "b", "bert_vggish", fold=1)
    section, predictions = made(tmp_path)
    for comparison in compare(section, predictions, "ua"):
        assert (comparison.utterances, comparison.bootstrap, comparison.repeats) == (0, None, 0)
        assert math.isnan(comparison.wilcoxon)


def test_predictions_that_are_not_the_results_are_left_out_and_named(tmp_path: Path) -> None:
    write_run(tmp_path / "good", seed=0)
    swapped = write_run(tmp_path / "swapped", seed=1)
    table = pd.read_csv(swapped / "predictions.csv")
    table.assign(predicted=table["emotion"]).to_csv(swapped / "predictions.csv", index=False)
    damaged = write_run(tmp_path / "damaged", seed=2)
    (damaged / "predictions.csv").write_text("id,emotion\n1,anger\n")
    missing = write_run(tmp_path / "missing", seed=3)
    (missing / "predictions.csv").unlink()
    (section,) = make_sections(collect([tmp_path]).runs)[0]
    predictions, problems = read_predictions(section.cells[0].runs)
    assert set(predictions.index.get_level_values("seed")) == {"0"}
    assert len(problems) == 3
    assert any("does not belong to the metrics.json" in problem and "swapped" in problem for problem in problems)
