"""Which settings are axes, which runs are repeats, and what their means are."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fourm_ser.report.axes import find_axes
from fourm_ser.report.cells import Section, make_sections
from fourm_ser.runs.collect import collect
from tests.report.runs import write_run, write_sweep


def sections_of(folder: Path) -> list[Section]:
    return make_sections(collect([folder]).runs)[0]


def from_json(folder: Path, *metrics: str) -> pd.DataFrame:
    """A row a run, straight from the files."""
    rows = []
    for path in sorted(folder.rglob("metrics.json")):
        encoder, loss, seed, fold = path.parent.name.split("-")
        found: dict[str, Any] = json.loads(path.read_text())
        rows.append({"encoder": encoder, "loss": loss, "seed": seed, "fold": fold} | {m: found[m] for m in metrics})
    return pd.DataFrame(rows)


def test_options_are_the_axes_and_what_follows_from_them_is_not(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce", "focal", "ce_center"], seeds=2)
    (section,) = sections_of(tmp_path)
    assert section.axes == {"encoder": ["tiny", "bert_vggish"], "loss": ["ce", "focal", "ce_center"]}
    assert section.constants == {"fusion": "concat"}
    assert [len(cell.runs) for cell in section.cells] == [2] * 6
    assert section.repeat == "seed"


def test_a_key_that_varies_within_an_option_is_an_axis_with_numbers_by_size(tmp_path: Path) -> None:
    for number, weight in enumerate((1.0, 0.01, 0.1)):
        changes = {"loss.weights.center": weight}
        words = (f"loss.weights.center={weight}",)
        write_run(tmp_path / f"{number}", loss="ce_center", changes=changes, words=words, job=number)
    write_run(tmp_path / "plain", loss="ce", job=3)
    (section,) = sections_of(tmp_path)
    assert section.axes["loss"] == ["ce_center", "ce"]
    assert set(section.axes["loss.weights.center"]) == {"0.01", "0.1", "1.0", "-"}
    assert [cell.name for cell in section.cells][::3] == ["ce_center · center=1.0", "ce · center=-"]


def test_numbers_come_by_size(tmp_path: Path) -> None:
    for number, rate in enumerate((0.1, 0.02, 10.0)):
        write_run(tmp_path / f"{number}", changes={"encoder.learning_rate": rate}, job=number)
    (section,) = sections_of(tmp_path)
    assert section.axes == {"encoder.learning_rate": ["0.02", "0.1", "10.0"]}


def test_an_interpolated_key_is_one_axis_and_a_confounded_one_is_shown() -> None:
    halves = [{"weights": w, "text.weights": w, "audio.weights": w, "loss": "ce"} for w in ("a", "b")]
    assert find_axes(halves, {"weights"}, {"loss"}) == ["weights"]
    # Two sweeps, each with its own encoder and its own number of epochs: both differences are said.
    sweeps = [{"encoder": "x", "epochs": "10", "dim": "1"}, {"encoder": "y", "epochs": "20", "dim": "2"}]
    assert find_axes(sweeps, {"encoder", "epochs"}, {"encoder"}) == ["encoder", "epochs"]


def test_means_and_deviations_are_those_of_pandas(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce", "focal"], seeds=3)
    (section,) = sections_of(tmp_path)
    for metric in ("ua", "wa", "f1_macro", "ece", "recall/anger"):
        runs = from_json(tmp_path, f"test/{metric}")
        summary = section.summary(metric)
        for number, cell in enumerate(section.cells):
            mine = (runs["encoder"] == cell.values["encoder"]) & (runs["loss"] == cell.values["loss"])
            mean, std = runs.loc[mine, f"test/{metric}"].mean(), runs.loc[mine, f"test/{metric}"].std()
            assert summary["mean"][number] == pytest.approx(mean, abs=1e-12)
            assert summary["std"][number] == pytest.approx(std, abs=1e-12)
            assert summary["n"][number] == 3


def test_seeds_are_averaged_within_a_fold_first(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny"], ["ce"], seeds=3, folds=4)
    (section,) = sections_of(tmp_path)
    by_fold = from_json(tmp_path, "test/ua").groupby("fold")["test/ua"].mean()
    summary = section.summary("ua").loc[0]
    assert section.repeat == "fold"
    assert summary["n"] == 4
    assert summary["mean"] == pytest.approx(by_fold.mean(), abs=1e-12)
    assert summary["std"] == pytest.approx(by_fold.std(), abs=1e-12)
    assert "the 3 seeds are averaged within each fold first" in " ".join(section.notes)


def test_drawn_splits_are_repeats(tmp_path: Path) -> None:
    for drawn in range(3):
        write_run(tmp_path / f"{drawn}", fold=0, skill=0.4 + drawn / 10, changes={"data.split_seed": drawn})
    (section,) = sections_of(tmp_path)
    assert section.repeat == "split"
    assert section.summary("ua")["n"].tolist() == [3]


def test_a_class_that_a_fold_lacks_is_averaged_over_the_others(tmp_path: Path) -> None:
    for fold in range(3):
        write_run(tmp_path / f"{fold}", fold=fold)
    path = tmp_path / "1" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"test/recall/anger": None}))
    others = [json.loads((tmp_path / f"{fold}" / "metrics.json").read_text())["test/recall/anger"] for fold in (0, 2)]
    (section,) = sections_of(tmp_path)
    assert section.summary("recall/anger")["mean"][0] == pytest.approx(sum(others) / 2)
    assert section.summary("recall/anger")["n"][0] == 2


def test_protocols_are_not_mixed(tmp_path: Path) -> None:
    write_run(tmp_path / "demo")
    write_run(tmp_path / "demo_again", seed=1)
    write_run(tmp_path / "esd", corpus="esd")
    write_run(tmp_path / "three", emotions=["anger", "neutral", "sadness"])
    write_run(tmp_path / "validated", changes={"data.validation_fraction": 0.5})
    sections = sections_of(tmp_path)
    assert sorted(len(section.table) for section in sections) == [1, 1, 1, 2]
    told = [tuple(sorted(section.protocol.items())) for section in sections]
    assert len(set(told)) == 4
    assert {section.protocol.get("data.validation_fraction") for section in sections} == {None, "0.5", "-"}


def test_what_a_result_records_counts_more_than_what_was_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    other = write_run(tmp_path / "b", seed=1)
    metrics = json.loads((other / "metrics.json").read_text())
    (other / "metrics.json").write_text(json.dumps(metrics | {"validation": "random"}))
    assert [section.protocol["validation"] for section in sections_of(tmp_path)] == ["speakers", "random"]


def test_only_complete_cells_compete_for_the_best(tmp_path: Path) -> None:
    write_run(tmp_path / "a0", "tiny", seed=0, skill=0.4)
    write_run(tmp_path / "a1", "tiny", seed=1, skill=0.4)
    write_run(tmp_path / "b0", "bert_vggish", seed=0, skill=0.95)
    write_run(tmp_path / "b1", "bert_vggish", seed=1, finished=False)
    (section,) = sections_of(tmp_path)
    assert section.cells[section.best("ua")].values == {"encoder": "tiny"}
    assert [len(cell.others) for cell in section.cells] == [0, 1]
    assert "1 of 2 cells have fewer finished runs" in " ".join(section.notes)


def test_the_newest_of_two_equal_runs_is_used_and_the_other_named(tmp_path: Path) -> None:
    old = write_run(tmp_path / "a", skill=0.3)
    new = write_run(tmp_path / "b", skill=0.9)
    os.utime(old / "metrics.json", (1, 1))
    sections, problems = make_sections(collect([tmp_path]).runs)
    assert [run.path for run in sections[0].cells[0].runs] == [new]
    assert problems == [f"{old}: the same run as {new}, which is newer and is used instead."]


def test_a_run_without_a_command_line_is_named_like_others_of_its_config(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "tiny", "ce", seed=0)
    write_run(tmp_path / "b", "tiny", "focal", seed=0)
    write_run(tmp_path / "c", "tiny", "focal", seed=1, hydra=False)
    (section,) = sections_of(tmp_path)
    assert [(cell.values, len(cell.runs)) for cell in section.cells] == [({"loss": "ce"}, 1), ({"loss": "focal"}, 2)]


def test_runs_without_any_command_line_are_named_by_their_classes(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "tiny", "ce", hydra=False)
    write_run(tmp_path / "b", "bert_vggish", "ce_center", hydra=False)
    (section,) = sections_of(tmp_path)
    assert section.axes["encoder"] == ["tiny_bert_tiny_lstm", "bert_vggish"]
    assert len(section.cells) == 2


def test_random_weights_are_noted(tmp_path: Path) -> None:
    write_run(tmp_path / "a", weights="random")
    (section,) = sections_of(tmp_path)
    assert section.cells[0].random_weights
    assert any(note.startswith("Random weights") for note in section.notes)
