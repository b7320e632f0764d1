"""Baselines in the report: cells of their own, each network held against its own, and what is said of it."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from fourm_ser.report.__main__ import report
from fourm_ser.report.baselines import Against, hold_against, sentences
from fourm_ser.report.cells import Section, make_sections
from fourm_ser.report.drawings import effects_figure, heat_maps
from fourm_ser.report.significance import holm, paired_bootstrap, read_predictions
from fourm_ser.runs.collect import collect
from tests.report.runs import write_run

TARGETS = {"linear_probe": "linear_probe.LinearProbe", "egemaps": "egemaps.Egemaps"}


def write_baseline(
    folder: Path, kind: str = "linear_probe", modalities: tuple[str, ...] = ("text", "audio"), **arguments: Any
) -> None:
    """Write a baseline's run as it is recorded: without what it does not read, under options that a sweep chose."""
    write_run(folder, words=(f"baseline={kind}",), **arguments)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    own = {"encoder": {"name": "egemaps"}} if kind == "egemaps" else {}
    config = {key: value for key, value in config.items() if key not in ("loss", "stage", *own)}
    config["baseline"] = {"_target_": f"fourm_ser.baselines.{TARGETS[kind]}", "C": 0.01, **own}
    config["fusion"] = {"modalities": [] if own else list(modalities)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    hydra = folder / ".hydra" / "hydra.yaml"
    node = yaml.safe_load(hydra.read_text())
    node["hydra"]["runtime"]["choices"]["baseline"] = kind
    hydra.write_text(yaml.safe_dump(node))


def write_grid(folder: Path, probe: float, network: float = 0.6, folds: int = 6, seeds: int = 1) -> None:
    for fold in range(folds):
        for seed in range(seeds):
            write_run(folder / f"network-{seed}-{fold}", seed=seed, fold=fold, skill=network)
        write_baseline(folder / f"probe-{fold}", fold=fold, skill=probe)


def made(folder: Path) -> tuple[Section, list[Against], list[pd.DataFrame]]:
    (section,) = make_sections(collect([folder]).runs)[0]
    predictions = [read_predictions(cell.runs)[0] for cell in section.cells]
    return section, hold_against(section, predictions), predictions


def names(section: Section) -> set[str]:
    return {cell.name for cell in section.cells}


def test_a_baseline_is_a_cell_of_its_own_whatever_loss_a_sweep_gave_it(tmp_path: Path) -> None:
    for loss in ("ce", "focal"):
        write_run(tmp_path / loss, loss=loss)
        write_baseline(tmp_path / f"probe-{loss}", loss=loss)
    (section,), problems = make_sections(collect([tmp_path]).runs)
    assert names(section) == {"ce", "focal", "linear_probe"}
    assert list(section.axes) == ["baseline", "loss"]
    assert section.constants["encoder"] == "tiny"
    assert not problems  # the second probe is no double that one has to know of


def test_probes_of_one_modality_and_of_both_are_two_cells(tmp_path: Path) -> None:
    write_run(tmp_path / "network")
    write_baseline(tmp_path / "both")
    write_baseline(tmp_path / "audio", modalities=("audio",))
    (section,), _ = make_sections(collect([tmp_path]).runs)
    assert names(section) == {"concat", "linear_probe · text+audio", "linear_probe · audio"}


def test_the_only_network_beside_its_probe_is_called_so(tmp_path: Path) -> None:
    write_grid(tmp_path, probe=0.5, folds=2)
    (section, *_) = made(tmp_path)
    assert names(section) == {"network", "linear_probe"}
    for chart in (*heat_maps(section), *effects_figure(section)[0]):
        assert {"network", "linear_probe"} <= {cell for row in chart.rows for cell in row}, chart.title


def test_a_network_is_held_against_what_reads_the_same(tmp_path: Path) -> None:
    for encoder in ("tiny", "bert_vggish"):
        write_run(tmp_path / encoder, encoder=encoder)
    write_run(
        tmp_path / "text", words=("fusion=text",), changes={"fusion": {"_target_": "Text", "modalities": ["text"]}}
    )
    write_baseline(tmp_path / "probe", encoder="bert_vggish")
    write_baseline(tmp_path / "of_audio", encoder="bert_vggish", modalities=("audio",))
    write_baseline(tmp_path / "functionals", kind="egemaps")
    section, found, _ = made(tmp_path)
    pairs = {
        (section.cells[each.network].runs[0].path.name, section.cells[each.baseline].runs[0].path.name)
        for each in found
    }
    assert pairs == {("tiny", "functionals"), ("bert_vggish", "functionals"), ("bert_vggish", "probe")}


@pytest.mark.parametrize("seeds", [1, 3])
def test_tests_are_paired_over_folds_and_seeds_are_averaged_first(tmp_path: Path, seeds: int) -> None:
    write_grid(tmp_path, probe=0.7, seeds=seeds)
    section, (found,), predictions = made(tmp_path)
    network, probe = predictions[found.network].reset_index(), predictions[found.baseline].reset_index()
    ours = network.groupby("id")["correct"].mean()
    theirs = probe.set_index("id")["correct"].loc[ours.index]
    emotions, speakers = (probe.set_index("id")[name].loc[ours.index] for name in ("emotion", "speaker"))
    expected = paired_bootstrap(emotions.to_numpy(), ours.to_numpy(), theirs.to_numpy(), groups=speakers.to_numpy())
    assert found.comparison.bootstrap == expected["ua"]
    assert found.comparison.utterances == 6 * 120
    table = section.table.groupby(["cell", "fold"])["test/ua"].mean().unstack(0)
    p = stats.wilcoxon(table[found.network], table[found.baseline]).pvalue
    assert found.comparison.repeats == 6
    assert found.comparison.wilcoxon == pytest.approx(p)
    assert (found.own, found.other) == pytest.approx(tuple(table[[found.network, found.baseline]].mean()))


def test_holms_correction_is_over_the_pairs_of_networks_and_baselines(tmp_path: Path) -> None:
    write_grid(tmp_path, probe=0.7)
    for fold in range(6):
        write_run(tmp_path / f"focal-{fold}", loss="focal", fold=fold, skill=0.65)
    _, found, _ = made(tmp_path)
    assert len(found) == 2
    plain = [each.comparison.bootstrap.p for each in found if each.comparison.bootstrap]
    assert [each.comparison.bootstrap_holm for each in found] == holm(plain)


@pytest.mark.parametrize(
    ("probe", "network", "said"),
    [
        (0.8, 0.5, r"^network: UA [\d.]+ is below its baseline linear_probe's [\d.]+ \(p [<=] 0\.0[\d]+\)\.$"),
        (
            0.6,
            0.61,
            r"^network: UA [\d.]+ is above its baseline linear_probe's .* by no more than chance .* \(p = [\d.]+\)\.$",
        ),
        (0.4, 0.8, None),
    ],
)
def test_a_network_that_does_not_beat_its_probe_is_told_and_one_that_does_is_not(
    tmp_path: Path, probe: float, network: float, said: str | None
) -> None:
    write_grid(tmp_path, probe, network)
    section, found, _ = made(tmp_path)
    told = sentences(section, found)
    lines = report([tmp_path], tmp_path / "report")
    page, written = ((tmp_path / "report" / name).read_text() for name in ("report.html", "results.md"))
    assert "Networks and their baselines" in page
    if said is None:
        assert found[0].beaten
        assert not told
        assert "its baseline linear_probe" not in page + written + "".join(lines)
        return
    assert len(told) == 1
    assert re.match(said, told[0])
    values = [100 * section.summary("ua")["mean"][number] for number in (found[0].network, found[0].baseline)]
    assert [float(number) for number in re.findall(r"\d+\.\d", told[0])[:2]] == pytest.approx(values, abs=0.06)
    assert told[0] in lines
    assert f"- {told[0]}" in written
    assert told[0].replace("'", "&#39;").replace("<", "&lt;") in page


def test_equal_and_unknown_are_told_apart(tmp_path: Path) -> None:
    write_grid(tmp_path, 0.6, folds=1)
    section, (found,), _ = made(tmp_path)
    (equal,) = sentences(section, [found._replace(own=0.5, other=0.5)])
    assert "UA 50.0 is that of its baseline linear_probe's 50.0" in equal
    assert sentences(section, [found._replace(own=math.nan, other=math.nan)]) == []


def test_a_baseline_of_one_seed_is_complete_beside_networks_of_three(tmp_path: Path) -> None:
    write_grid(tmp_path, 0.6, folds=2, seeds=3)
    section, _, _ = made(tmp_path)
    assert section.complete == [0, 1]
    assert not section.cells[section.baseline].is_baseline
    report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "other cells have this seed" not in page
    assert "(incomplete)" not in (tmp_path / "report" / "results.md").read_text()


def test_a_fold_that_a_baseline_lacks_is_missing(tmp_path: Path) -> None:
    write_grid(tmp_path, 0.6, folds=2, seeds=3)
    write_run(tmp_path / "more", fold=2)
    section, (found,), _ = made(tmp_path)
    assert section.cells[0].runs[0].config.get("baseline") is None
    assert section.complete == [0]
    assert found.comparison.repeats == 2
    report([tmp_path], tmp_path / "report")
    assert "seed 0, fold 2" in (tmp_path / "report" / "report.html").read_text()
    assert np.isfinite(found.own)
