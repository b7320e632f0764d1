"""All analyses of a run: what is written, what is left out, what is refused."""

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from fourm_ser.analysis import analyses
from fourm_ser.analysis.analyses import name_runs
from fourm_ser.analysis.findings import Finding, write_finding
from fourm_ser.analysis.questions import QUESTIONS
from fourm_ser.errors import InputError
from fourm_ser.runs.collect import Run
from fourm_ser.training.experiment import run as train
from tests.conftest import CONF, PIXEL, Compose

pytestmark = pytest.mark.usefixtures("no_figures")

QUICK = ["correlation.draws=100", "contribution.shuffles=2", "attribution.steps=16", "attribution.tolerance=1.0"]


def config(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("analyze", [*QUICK, *overrides]), resolve=True)  # type: ignore


class Page(HTMLParser):
    """What a page shows and asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.ids: set[str | None] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id"))
        if tag == "img":
            self.images.append(given)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]


@pytest.fixture(scope="module", autouse=True)
def _figures_small() -> Iterator[None]:
    """Figures are drawn once, of few pixels: no tight box, which has one drawn twice, and no lines beside them."""
    own = Figure.savefig

    def save(figure: Figure, file: Any, **how: Any) -> None:
        if str(file).endswith(".svg"):
            Path(file).write_bytes(PIXEL)
        else:
            own(figure, file, format=how.get("format"), dpi=20)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", save)
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are of one pixel."""

    def save(figure: Figure, file: Any, **how: Any) -> None:
        file.write(PIXEL) if hasattr(file, "write") else Path(file).write_bytes(PIXEL)

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture(scope="module")
def written(two_stage_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All analyses of a run, on all of its utterances, for the tested side of so small a run is smaller still."""
    folder = tmp_path_factory.mktemp("analysis")
    ids = pd.read_csv(two_stage_run / "predictions.csv")["id"]
    words = [f"run={two_stage_run}", "side=all", f"output={folder}", f"examples.ids=[{ids[0]}]"]
    analyses.analyze(config(*words))
    return folder


def test_every_part_writes_its_numbers_and_figures(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {*QUESTIONS, "analysis.html"}
    for name in QUESTIONS:
        tables = list((written / name).glob("*.csv"))
        assert tables
        for path in tables:
            assert len(pd.read_csv(path)) > 0
        figures = sorted((written / name).glob("*.png"))
        assert figures
        assert [path.with_suffix(".svg") for path in figures] == sorted((written / name).glob("*.svg"))


def test_the_page_holds_every_figure_and_asks_for_nothing(written: Path) -> None:
    text = (written / "analysis.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.images) == len(list(written.glob("*/*.png")))
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.images)
    assert all(len(image["alt"] or "") > 20 for image in page.images)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= page.ids
    assert not re.search(r"url\(|@import|<script", text)
    for path in written.glob("*/*.csv"):
        assert f"{path.parent.name}/{path.name}" in text


def test_what_a_figure_says_is_short_and_how_to_read_it_is_folded_away(written: Path) -> None:
    text = (written / "analysis.html").read_text(encoding="utf-8")
    captions = re.findall(r"^</figure>\n<p>(.*?)</p>", text, re.S | re.M)
    assert len(captions) == text.count("<figure")
    lengths = [len(re.sub(r"<.*?>", "", caption).split()) for caption in captions]
    assert min(lengths) > 0
    assert max(lengths) <= 90
    methods = re.findall(r"<summary>how to read it</summary><p>(.*?)</p></details>", text, re.S)
    assert len(methods) >= 12
    assert all(len(method.split()) > 10 for method in methods)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_what_a_model_cannot_have_is_left_out_and_said(
    two_stage_run: Path,
    tmp_path: Path,
    composed: Compose,
    slice_of_demo: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    short = [word for word in slice_of_demo if not word.startswith("fusion.")]
    other = tmp_path / "concat"
    train(composed(*short, "fusion=concat", "stage=transfer", "stage.transfer.epochs=1"), other)
    parts = analyses.analyze(config(f"run={other}", "parts=[attention,contribution]", "side=all"))
    assert [part.name for part in parts if part.left_out] == ["attention"]
    assert "no attention" in parts[0].left_out
    page = (other / "analysis-all" / "analysis.html").read_text(encoding="utf-8")
    assert parts[0].left_out in page.replace("&#39;", "'")
    assert "replaces" not in caplog.text
    analyses.analyze(config(f"run={other}", "parts=[contribution]", "side=all"))
    assert "analysis-all: replaces the page of earlier analyses" in caplog.text
    # Beside one that has two sequences of one width, it is named.
    parts = analyses.analyze(
        config(f"run={two_stage_run}", f"runs=[{other}]", "parts=[alignment,projection]", f"output={tmp_path / 'out'}")
    )
    assert "concat" in parts[0].findings[0].caption
    with pytest.raises(InputError, match="none of the analyses could be done"):
        analyses.analyze(config(f"run={other}", "parts=[attention]"))


def test_runs_are_called_by_what_they_differ_in() -> None:
    def run(name: str, **options: str) -> Run:
        return Run(Path(name), "finished", options=options)

    ce, center = run("a", loss="ce", encoder="tiny"), run("b", loss="ce_center", encoder="tiny")
    assert name_runs([ce, center]) == ["ce", "ce_center"]
    assert name_runs([ce]) == ["a"]
    seeds = [Run(Path(f"s{seed}"), "finished", config={"seed": seed}, options={"loss": "ce"}) for seed in (0, 1)]
    assert name_runs(seeds) == ["seed=0", "seed=1"]
    assert name_runs([ce, run("c", loss="ce", encoder="tiny")]) == ["a", "c"]


def test_nonsense_is_refused(two_stage_run: Path, tmp_path: Path) -> None:
    unfinished = shutil.copytree(two_stage_run, tmp_path / "run")
    (unfinished / "metrics.json").unlink()
    for words, message in (
        ([], r"nothing is given. Add run=DIR"),
        ([f"run={two_stage_run}", "parts=[colours]"], r"parts=\[colours\]: expected any of alignment"),
        ([f"run={two_stage_run / 'model'}"], "is a model directory. Analyses need the run"),
        ([f"run={tmp_path / 'nowhere'}"], "nowhere"),
        ([f"run={unfinished}"], "unfinished"),
        ([f"run={two_stage_run}", "device=tpu"], r"device=tpu: PyTorch sees .* here\. Expected one of auto, cpu"),
    ):
        with pytest.raises(InputError, match=message):
            analyses.analyze(config(*words))


@pytest.mark.usefixtures("undrawn")
def test_an_analysis_that_fails_in_any_way_loses_its_own_part_alone(
    two_stage_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> list[Finding]:
        raise ZeroDivisionError("of nothing\nat all")

    def unwritable(finding: Finding, folder: Path) -> None:
        if folder.name == "alignment":
            raise TypeError("no figure")
        write_finding(finding, folder)

    monkeypatch.setattr(analyses, "space", broken)
    monkeypatch.setattr(analyses, "write_finding", unwritable)
    words = "parts=[space,alignment,contribution]"
    parts = analyses.analyze(config(f"run={two_stage_run}", words, f"output={tmp_path}"))
    assert [bool(part.findings) for part in parts] == [False, False, True]
    page = (tmp_path / "analysis.html").read_text(encoding="utf-8")
    for said in ("It failed (ZeroDivisionError: of nothing at all).", "It failed (TypeError: no figure)."):
        assert said in page
    assert list((tmp_path / "contribution").glob("*.csv"))
