"""Marginal effects, by plain loops."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fourm_ser.report.cells import Section, make_sections
from fourm_ser.report.effects import marginal_effects
from fourm_ser.runs.collect import collect
from tests.report.runs import write_sweep


def section_of(folder: Path) -> Section:
    (section,) = make_sections(collect([folder]).runs)[0]
    return section


def score(section: Section, encoder: str, loss: str, repeat: str) -> float:
    (number,) = [n for n, cell in enumerate(section.cells) if cell.values == {"encoder": encoder, "loss": loss}]
    return float(section.values("ua")[repeat].iloc[number])


def test_effects_are_mean_distances_with_a_t_interval_over_folds(tmp_path: Path) -> None:
    encoders, losses = ["tiny", "bert_vggish", "bert_wav2vec"], ["ce", "focal"]
    write_sweep(tmp_path, encoders, losses, folds=4)
    section = section_of(tmp_path)
    found = marginal_effects(section, "encoder", "ua")
    assert (found.settings, found.n, found.over) == (2, 4, "folds")
    for effect in found.effects:
        by_fold = []
        for fold in "0123":
            distances = [
                score(section, effect.value, loss, fold)
                - sum(score(section, encoder, loss, fold) for encoder in encoders) / 3
                for loss in losses
            ]
            by_fold.append(sum(distances) / 2)
        low, high = stats.t.interval(0.95, 3, loc=np.mean(by_fold), scale=stats.sem(by_fold))
        assert effect.mean == pytest.approx(np.mean(by_fold), abs=1e-12)
        assert (effect.low, effect.high) == pytest.approx((low, high), abs=1e-12)


def test_without_repeats_the_interval_is_over_the_other_axes(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce", "focal", "ce_center"])
    section = section_of(tmp_path)
    found = marginal_effects(section, "encoder", "ua")
    assert (found.n, found.over) == (3, "settings of the other axes")
    halves = [
        (score(section, "bert_vggish", loss, "0") - score(section, "tiny", loss, "0")) / 2
        for loss in ("ce", "focal", "ce_center")
    ]
    assert found.effects[1].mean == pytest.approx(np.mean(halves))
    interval = stats.t.interval(0.95, 2, loc=np.mean(halves), scale=stats.sem(halves))
    assert (found.effects[1].low, found.effects[1].high) == pytest.approx(interval)


def test_a_setting_that_lacks_a_value_favours_nobody(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce", "focal"])
    shutil.rmtree(tmp_path / "tiny-focal-0-0")
    section = section_of(tmp_path)
    found = marginal_effects(section, "encoder", "ua")
    half = (score(section, "bert_vggish", "ce", "0") - score(section, "tiny", "ce", "0")) / 2
    assert found.settings == 1
    assert found.effects[1].mean == pytest.approx(half)
    assert math.isnan(found.effects[1].low)


def test_no_common_setting_gives_no_effect(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce", "focal"])
    shutil.rmtree(tmp_path / "tiny-focal-0-0")
    shutil.rmtree(tmp_path / "bert_vggish-ce-0-0")
    assert marginal_effects(section_of(tmp_path), "encoder", "ua").effects == []
