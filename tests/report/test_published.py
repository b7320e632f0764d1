"""Published figures: the README's, under our names, and set beside cells of one protocol alone."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from fourm_ser.report.__main__ import report
from fourm_ser.report.published import FIGURES, Figure, _choices, differences, figure_of
from fourm_ser.runs.collect import Run
from tests.conftest import CONF, Compose
from tests.report.runs import EMOTIONS, write_run

README = "\n".join(
    path.read_text(encoding="utf-8")
    for path in (CONF.parent / "README.md", *sorted((CONF.parent / "docs").glob("*.md")))
)
each = pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"{figure.model} {figure.corpus}")


def as_published(figure: Figure, **changes: Any) -> Run:
    """A run of a preset under its protocol; `changes` by `options`, `data`, `metrics` or `overrides`."""
    split = figure.splits[-1]
    data = {**figure.data, "split": split, "fractions": figure.fractions, "stratify": False, **changes.get("data", {})}
    metrics: dict[str, Any] = {"corpus": figure.corpus, "split": split, "weights": "pretrained"}
    metrics |= {f"test/recall/{emotion}": 0.5 for emotion in EMOTIONS}
    options = {**_choices(figure.model), "experiment": figure.model, **changes.get("options", {})}
    return Run(
        Path("run"),
        "finished",
        "",
        {"data": data},
        metrics=metrics | changes.get("metrics", {}),
        options=options,
        overrides=changes.get("overrides", []),
    )


@each
def test_the_readme_gives_every_published_figure_under_our_names(figure: Figure) -> None:
    rows = [
        line for line in README.splitlines() if line.startswith(f"| `protocol={figure.model} data={figure.corpus} ")
    ]
    assert len(rows) == 1
    assert re.findall(r"\d\d\.\d\d", rows[0].split("|")[3]) == [f"{figure.ua:.2f}", f"{figure.wa:.2f}"]


@each
def test_a_figure_s_protocol_is_its_preset_s(figure: Figure, composed: Compose) -> None:
    data = composed(f"experiment={figure.model}", f"data={figure.corpus}").data
    assert {key: data[key] for key in figure.data} == figure.data
    if figure.corpus == "iemocap":
        assert data.fractions == figure.fractions


@each
def test_a_run_under_its_protocol_compares(figure: Figure) -> None:
    run = as_published(figure)
    assert figure_of(run) == figure
    assert differences(run, figure) == []


@each
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"metrics": {"split": "session"}}, "data.split=session"),
        ({"metrics": {"weights": "random"}}, "random weights"),
        ({"metrics": {"test/recall/fear": 0.1}}, "classes anger, happiness, sadness, neutral, fear"),
        ({"metrics": {"split": "random"}, "data": {"fractions": [0.6, 0.2, 0.2]}}, r"data.fractions=[0.6, 0.2, 0.2]"),
        ({"metrics": {"split": "random"}, "data": {"stratify": True}}, "data.stratify=True"),
        ({"data": {"clean": "tags"}}, "data.clean=tags"),
        ({"data": {"max_seconds": 30.0}}, "data.max_seconds=30.0, not null"),
        ({"options": {"loss": "arcface"}}, "loss=arcface, not ce"),
        ({"options": {"precision": "auto"}}, "precision=auto, not fp32"),
        ({"overrides": ["stage.transfer.epochs=3"]}, "stage.transfer.epochs=3"),
        ({"overrides": ["encoder/text=roberta"]}, "encoder/text=roberta"),
        ({"overrides": ["refit=true"]}, "refit=true"),
    ],
)
def test_what_differs_is_named(figure: Figure, changes: dict[str, Any], word: str) -> None:
    found = differences(as_published(figure, **changes), figure)
    assert len(found) == 1
    assert word in found[0]


def test_nothing_was_published_of_other_models_and_corpora() -> None:
    for changes in ({"options": {"experiment": "from_scratch"}}, {"metrics": {"corpus": "meld"}}):
        assert figure_of(as_published(FIGURES[2], **changes)) is None


def test_a_report_sets_cells_beside_published_figures(tmp_path: Path) -> None:
    figure = FIGURES[2]
    for name, words in (("same", []), ("other", ["loss.label_smoothing=0.1"])):
        folder = write_run(tmp_path / name, changes={"seed": len(words)})
        told = as_published(figure)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["data"] |= told.config["data"]
        config["loss"]["label_smoothing"] = 0.1 * len(words)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps({**metrics, "corpus": "iemocap", "split": "published"}))
        path = folder / ".hydra" / "hydra.yaml"
        node = yaml.safe_load(path.read_text())
        node["hydra"]["runtime"]["choices"] = {**told.options, "data": "iemocap"}
        node["hydra"]["overrides"]["task"] = [f"experiment={figure.model}", *words]
        path.write_text(yaml.safe_dump(node))
    assert not any("as published" in line for line in report([tmp_path], tmp_path / "plain"))
    assert not (tmp_path / "plain" / "published.csv").exists()
    lines = [line for line in report([tmp_path], tmp_path / "beside", published=True) if "as published" in line]
    assert len(lines) == 2
    assert sum(line.endswith("77.65, 77.08, under one protocol.") for line in lines) == 1
    assert sum("not comparable: loss.label_smoothing=0.1." in line for line in lines) == 1
    table = pd.read_csv(tmp_path / "beside" / "published.csv")
    assert sorted(table["comparable"]) == [False, True]
    assert set(table["published_ua"]) == {77.65}
    text = (tmp_path / "beside" / "results.md").read_text()
    assert all(f"- {line}" in text for line in lines)
