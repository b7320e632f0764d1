"""Correlations between speech and text of a run, and what is said of their changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fourm_ser.analysis.canonical import HeldOut
from fourm_ser.analysis.correlation import correlation, readers_of_both
from fourm_ser.analysis.correlation_findings import verdict
from fourm_ser.analysis.correlation_measures import Score, component_correlations, correlation_with, retrieval_ranks
from fourm_ser.analysis.findings import Finding, UnsuitedError, write_finding
from fourm_ser.analysis.kernel_alignment import debiased_cka
from fourm_ser.errors import InputError
from fourm_ser.fusion.cross_attention import CrossAttentionFusion
from fourm_ser.models.inference import Outputs
from fourm_ser.runs.finished import OpenRun
from fourm_ser.training.experiment import run
from tests.conftest import Compose

pytestmark = pytest.mark.usefixtures("no_figures")

CHOICES: dict[str, Any] = {"seed": 0, "folds": 4, "components": 6, "regularisation": 0.1, "draws": 200}
STATES = ["before training", "after transfer", "after finetune"]


@pytest.fixture(scope="module")
def opened(two_stage_run: Path) -> OpenRun:
    return OpenRun(two_stage_run)


@pytest.fixture(scope="module")
def found(opened: OpenRun) -> dict[str, Finding]:
    return {finding.name: finding for finding in correlation(opened, "all", **CHOICES)}


def linked(opened: OpenRun, changes: dict[str, float]) -> OpenRun:
    """The same run with made-up features: in each state both sides see shared values, with so much noise."""
    other = OpenRun(opened.run_dir, name="linked")
    features = opened.features(opened.trained, "all")
    generator = np.random.default_rng(0)
    latent = generator.normal(size=(len(features.labels), 4))
    loads = generator.normal(size=(4, 40)), generator.normal(size=(4, 30))
    for state, noise in changes.items():
        sides = {
            modality: latent @ load + noise * np.random.default_rng(place).normal(size=(len(latent), load.shape[1]))
            for place, (modality, load) in enumerate(zip(("text", "audio"), loads, strict=True))
        }
        other._features[state, "all"] = features._replace(encoded=sides, fused=sides)
    return other


@pytest.mark.slow
def test_every_state_and_kind_of_features_is_measured(
    opened: OpenRun, found: dict[str, Finding], tmp_path: Path
) -> None:
    assert list(found) == [f"correlation_{name}" for name in ("changes", "cka", "canonical", "retrieval", "components")]
    table = found["correlation_cka"].table
    assert table["state"].unique().tolist() == STATES
    assert table["features"].unique().tolist() == ["encoders", "fusion"]
    assert table["emotion"].unique().tolist() == ["all", *opened.emotions]
    features: Outputs = opened.features(opened.trained, "all")
    last = table[(table["state"] == "after finetune") & (table["measure"] == "cka")]
    for place, pooled in (("encoders", features.encoded), ("fusion", features.fused)):
        for emotion in ["all", *opened.emotions]:
            chosen = slice(None) if emotion == "all" else features.labels == opened.emotions.index(emotion)
            row = last[(last["features"] == place) & (last["emotion"] == emotion)].iloc[0]
            assert row["value"] == pytest.approx(debiased_cka(pooled["text"][chosen], pooled["audio"][chosen])[0])
            assert row["low"] < row["value"] < row["high"]
    for finding in found.values():
        write_finding(finding, tmp_path)
        assert "nan" not in finding.caption + finding.method
        assert (tmp_path / f"{finding.name}.svg").stat().st_size > 5000


def test_what_a_frozen_stem_gives_is_the_same_after_transfer(found: dict[str, Finding]) -> None:
    table = found["correlation_changes"].table
    first = table[(table["features"] == "encoders") & (table["to"] == "after transfer")]
    assert set(first["same_features"]) == {"text"}  # the speech encoder has a top that always trains
    assert "; the text features are the same in both" in found["correlation_changes"].method
    last = table[(table["features"] == "encoders") & (table["from"] == "after transfer")]
    assert set(last["same_features"]) == {""}
    assert set(zip(table["from"], table["to"], strict=True)) == {
        (STATES[0], STATES[1]),
        (STATES[1], STATES[2]),
        (STATES[0], STATES[2]),
    }


@pytest.mark.slow
def test_numbers_do_not_hang_on_chance(opened: OpenRun, found: dict[str, Finding]) -> None:
    for again in correlation(opened, "all", **CHOICES):
        pd.testing.assert_frame_equal(again.table, found[again.name].table)


def test_sides_that_come_closer_are_said_to_be_aligned(opened: OpenRun) -> None:
    noises = dict(zip(STATES, (4.0, 4.0, 0.5), strict=True))
    made = {finding.name: finding for finding in correlation(linked(opened, noises), "all", **CHOICES)}
    changes = made["correlation_changes"].table
    everyone = changes[(changes["emotion"] == "all") & (changes["measure"] == "cka")]
    assert everyone["verdict"].tolist() == ["unchanged", "aligned more", "aligned more"]
    assert (everyone["change"] == everyone["after"] - everyone["before"]).all()
    ranks = made["correlation_retrieval"].table
    assert ranks["recall@1"].iloc[2] > 3 * ranks["recall@1"].iloc[0]
    assert ranks["median_rank"].iloc[2] <= 2
    assert ranks["chance_recall@5"].iloc[0] == pytest.approx(5 / ranks["transcripts"].iloc[0])
    canonical = made["correlation_canonical"].table
    assert canonical.query("state == 'after finetune' and pair <= 4")["held_out"].min() > 0.8
    assert "unchanged, for the features of neither side changed" in made["correlation_changes"].method
    # The fusion hands on the same features: nothing more to compare.
    assert set(changes["features"]) == {"encoders"}
    assert "hands the encoders' features on as they are" in made["correlation_changes"].method


def test_sides_that_have_nothing_in_common_are_found_by_chance_alone(opened: OpenRun) -> None:
    made = {
        finding.name: finding for finding in correlation(linked(opened, dict.fromkeys(STATES, 1e6)), "all", **CHOICES)
    }
    cka = made["correlation_cka"].table.query("emotion == 'all' and measure == 'cka'").iloc[0]
    assert cka["low"] < 0 < cka["high"]
    plain = made["correlation_cka"].table.query("emotion == 'anger' and measure == 'plain_cka'").iloc[0]
    assert plain["value"] > 0.2
    ranks = made["correlation_retrieval"].table.iloc[0]
    assert ranks["median_rank"] == pytest.approx(ranks["chance_median_rank"], rel=0.2)
    first = made["correlation_canonical"].table.iloc[0]
    assert abs(first["held_out"]) < 0.25 < first["fitted"]


def test_a_change_is_what_its_interval_says() -> None:
    assert verdict(0.01, 0.2, False) == "aligned more"
    assert verdict(-0.2, -0.01, False) == "aligned less"
    assert verdict(-0.1, 0.2, False) == "no detectable change"
    assert verdict(0.0, 0.0, True) == "unchanged"
    assert verdict(float("nan"), 0.2, False) == "cannot be told"
    low, high = Score(0.0, np.append(np.arange(1001) / 1000, np.nan)).interval
    assert (low, high) == pytest.approx((0.025, 0.975))
    assert np.isnan(Score(0.0, np.full(5, np.nan)).interval).all()


def test_a_transcript_is_looked_for_among_its_fold_s() -> None:
    generator = np.random.default_rng(0)
    transcripts = np.array([0, 0, 1, 2, 3, 3, 4, 5])
    folds = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    text, audio = generator.normal(size=(6, 3))[transcripts], generator.normal(size=(8, 3))
    ranks, sizes = retrieval_ranks(HeldOut(folds, text, audio, np.zeros((2, 3))), transcripts)
    assert sizes.tolist() == [3.0] * 8
    for place, (fold, own) in enumerate(zip(folds, transcripts, strict=True)):
        cosines = {
            other: float(audio[place] @ text[row] / np.linalg.norm(audio[place]) / np.linalg.norm(text[row]))
            for row, other in enumerate(transcripts)
            if folds[row] == fold
        }
        assert ranks[place] == 1 + sum(value > cosines[own] + 1e-9 for value in cosines.values())


def test_component_correlations_are_pearson_s() -> None:
    generator = np.random.default_rng(0)
    text, audio = generator.normal(size=(50, 6)) * [9, 5, 3, 1, 1, 1], generator.normal(size=(50, 4)) * [7, 3, 1, 1]
    table, shares = component_correlations(text, audio, 2)
    scores = []
    for vectors, share in zip((text, audio), shares, strict=True):
        values, directions = np.linalg.eigh(np.cov(vectors.T))
        scores.append((vectors - vectors.mean(0)) @ directions[:, ::-1][:, :2])
        assert share == pytest.approx(values[::-1][:2].sum() / values.sum())
    for row in table.to_dict("records"):
        pair = scores[0][:, row["text_component"] - 1], scores[1][:, row["audio_component"] - 1]
        assert abs(row["r"]) == pytest.approx(abs(np.corrcoef(*pair)[0, 1]))


def test_a_variate_that_is_length_correlates_with_length() -> None:
    seconds = np.random.default_rng(0).uniform(1, 9, size=40)
    other = np.random.default_rng(1).normal(size=40)
    folds = np.arange(40) % 2
    signed = np.where(folds == 0, seconds, 5 - 2 * seconds)  # each fold has a sign and scale of its own
    held = HeldOut(folds, np.stack([signed, other], 1), np.stack([other, signed], 1), np.zeros((2, 2)))
    sizes = correlation_with(seconds, held)
    assert sizes[[0, 1], [0, 1]] == pytest.approx([1.0, 1.0])
    assert sizes[[0, 1], [1, 0]].max() < 0.6


def test_a_fusion_whose_sequences_read_each_other_is_told(opened: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert readers_of_both(opened, "test") == []
    dims = {modality: encoder.dim for modality, encoder in opened.network.by_modality.items()}
    crossing = CrossAttentionFusion(
        dims=dims, modalities=["text", "audio"], dim=8, heads=4, dropout=0.0, pool="mean"
    ).eval()
    monkeypatch.setattr(opened.network, "fusion", crossing)
    assert readers_of_both(opened, "test") == ["text", "audio"]


def test_what_cannot_be_correlated_is_refused(
    opened: OpenRun, tmp_path: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    with pytest.raises(InputError, match="folds=1: expected 2 or more"):
        correlation(opened, "all", **{**CHOICES, "folds": 1})
    with pytest.raises(InputError, match="regularisation=-1: expected 0 or more"):
        correlation(opened, "all", **{**CHOICES, "regularisation": -1})
    same = OpenRun(opened.run_dir)
    same.corpus.frame["text"] = "the same words"
    with pytest.raises(UnsuitedError, match="have 1 different transcripts"):
        correlation(same, "all", **CHOICES)
    short = OpenRun(opened.run_dir)
    short.corpus.split = short.corpus.split._replace(test=short.corpus.split.test[:12])
    with pytest.raises(InputError, match=r"side=test: 12 utterances of demo are too few .* Take side=all"):
        correlation(short, "test", **CHOICES)
    overrides = [word for word in slice_of_demo if not word.startswith("encoder.audio")]
    run(composed(*overrides, "fusion=text_attention", "stage=transfer", "stage.transfer.epochs=1"), tmp_path / "words")
    with pytest.raises(UnsuitedError, match="words reads text alone"):
        correlation(OpenRun(tmp_path / "words"), "all", **CHOICES)
