"""report.html, as a browser and a reader take it."""

import html
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from fourm_ser.errors import InputError
from fourm_ser.report.__main__ import report
from fourm_ser.report.cells import make_sections
from fourm_ser.report.commands import cell_commands
from fourm_ser.report.drawings import _histories
from fourm_ser.runs.collect import collect
from tests.report.drawn import read_bars, read_heat_map, read_points
from tests.report.runs import write_run, write_sweep

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Elements, text, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f" {' '.join(data.split())}"

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def page_of(*folders: Path) -> Page:
    report(list(folders), folders[0] / "report")
    return Page(folders[0] / "report" / "report.html")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("full")
    write_sweep(folder, ["tiny", "bert_vggish"], ["ce", "focal"], seeds=2, folds=5, utterances=60)
    return page_of(folder)


def test_every_figure_is_drawn_described_and_a_table(full: Page) -> None:
    images = re.findall(r"<svg.*?</svg>", full.source, flags=re.S)
    # Two heat maps, two of effects, recall, confusion, losses, a curve for each of four cells, time.
    assert len(images) == full.count("figure") == 2 + 2 + 1 + 1 + 1 + 4 + 1
    assert full.count("details") == len(images)
    for image in images:
        drawn = ET.fromstring(image)
        assert drawn.get("role") == "img"
        assert len(drawn.get("aria-label") or "") > 30
        assert len(drawn) > 5
        assert "nan" not in image
        _, _, width, height = (float(number) for number in (drawn.get("viewBox") or "").split())
        for element in drawn.iter():
            for name, limit in (("x", width), ("cx", width), ("x2", width), ("y", height), ("cy", height)):
                assert -1 <= float(element.get(name, 0)) <= limit + 1


def test_the_contents_lead_to_what_is_there_and_results_come_first(full: Page) -> None:
    ids = re.findall(r'id="([^"]+)"', full.source)
    links = re.findall(r'href="#([^"]+)"', full.source)
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)
    for key in ("section-1", "results-1", "every-cell-1", "protocol-1", "commands-1"):
        assert key in links
    main = full.source[full.source.index("<main>") :]
    assert main.index('id="results-1"') < main.index("<svg") < main.index('id="protocol-1"')
    title = re.search(r"<title>(.*?)</title>", full.source)
    assert title is not None
    assert re.search(r"split by \w+: UA \d+\.\d+", title[1])


def test_a_figure_and_the_table_below_it_say_the_same(full: Page) -> None:
    kinds = dict.fromkeys(("heat", "interval", "bar0"), 0)
    for part in re.findall(r"<figure>.*?</figure>", full.source, flags=re.S):
        image = part[part.index("<svg") : part.index("</svg>") + len("</svg>")]
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.S) for row in part.split("<tr>")[1:]]
        header, *rows = [[html.unescape(cell) for cell in row] for row in cells]
        names = [row[0] for row in rows]
        kind = next((kind for kind in kinds if f'class="{kind}"' in image), None)
        if kind is None:
            continue  # of curves, the table has the last values alone
        kinds[kind] += 1
        if kind == "heat":
            drawn = read_heat_map(image, names, header[1:])
            for row in rows:
                for column, cell in zip(header[1:], row[1:], strict=True):
                    assert re.split(r"[· ]+", cell) == " ".join(drawn[row[0], column].lines).split()
        elif kind == "interval":
            points = read_points(image, [row[1] for row in rows])
            for _, value, effect, interval in rows:
                low, high = (float(end) for end in interval.split(" to "))
                assert points[value] == pytest.approx((float(effect), low, high), abs=0.2)
        else:
            bars = read_bars(image, names)
            scale = {sum(width for _, _, width in bars[row[0]]) / float(row[-1]) for row in rows}
            assert max(scale) == pytest.approx(min(scale), rel=0.02)
    assert kinds == {"heat": 4, "interval": 2, "bar0": 1}


def test_the_page_needs_nothing_from_elsewhere(full: Page) -> None:
    assert full.count("script") == full.count("img") == full.count("iframe") == 0
    for tag, attributes in full.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("#", "data:")), (tag, value)
    assert "url(" not in full.source
    assert "@import" not in full.source
    assert "://" not in full.source


def test_the_page_states_its_methods(full: Page) -> None:
    assert "Mean and standard deviation are over 5 folds; the 2 seeds are averaged within each fold first." in full.text
    assert "With 5 folds it cannot give a p below 0.0625, and below 0.312 after the correction" in full.text
    assert "no difference between these cells, however large, can reach 0.05 in this test" in full.text
    assert "5 for the bootstrap, 5 for Wilcoxon" in full.text
    assert "95% t-interval over 5 folds" in full.text
    assert "summed over 5 folds and 2 seeds" in full.text
    assert "Nothing: every run that was begun has finished" in full.text
    assert "fourm_ser train -m encoder=tiny loss=ce seed=0,1 data.fold=0,1,2,3,4" in full.text


def test_light_dark_phone_and_print_have_their_styles(full: Page) -> None:
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in full.elements
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 30rem"):
        assert rule in full.source
    colours = re.sub(r"<style>.*?</style>", "", full.source, flags=re.S)
    assert not re.search(r"(fill|stroke)=\"#", colours)


def test_confusion_is_summed_over_the_runs(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny"], ["ce"], folds=3, utterances=50)
    page = page_of(tmp_path)
    figure = next(part for part in page.source.split("<figure>") if "Confusion matrix" in part)
    counts = [int(number) for number in re.findall(r"<td>(\d+) · \d+%</td>", figure)]
    assert len(counts) == 16
    assert sum(counts) == 150


def test_curves_of_runs_that_stopped_early_begin_each_stage_together(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1)
    write_run(tmp_path / "c", seed=2)
    rows = "epoch,train/loss,val/ua\n" + "".join(f"{n},1.0,0.5\n" for n in range(5))
    for name in "ab":
        stage = tmp_path / name / "stages" / "1-finetune"
        stage.mkdir()
        (stage / "metrics.csv").write_text(rows)
    (tmp_path / "a" / "stages" / "0-transfer" / "metrics.csv").write_text(rows)
    (tmp_path / "c" / "stages" / "0-transfer" / "metrics.csv").write_text("epoch,val/ua\n0,broken\n")
    (section,) = make_sections(collect([tmp_path]).runs)[0]
    histories, stages = _histories(section.cells[0])
    assert stages == [("transfer", 1.0), ("finetune", 6.0)]
    assert histories["a"]["at"].tolist() == list(range(1, 11))
    assert histories["b"]["at"].tolist() == [1, 2, 3, 6, 7, 8, 9, 10]
    assert histories["c"]["val/ua"].isna().all()
    assert page_of(tmp_path).count("figure") > 0


def test_a_running_sweep_shows_what_is_there(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "tiny", skill=0.5)
    write_run(tmp_path / "b", "bert_vggish", finished=False, job=1)
    failed = write_run(tmp_path / "c", "bert_wav2vec", finished=False, job=2)
    (failed / "failure.json").write_text(json.dumps({"error": "no weights: bert", "overrides": []}))
    node = {
        "overrides": {"task": ["encoder=tiny,bert_vggish,bert_wav2vec", "loss=ce,focal", "seed=0", "data.fold=0"]},
        "sweeper": {"_target_": "x.BasicSweeper", "params": None},
    }
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": node}))
    page = page_of(tmp_path)
    assert "1 finished, 1 unfinished, 1 failed, 3 not begun" in page.text
    assert "no weights: bert" in page.text
    assert f"resume={failed}" in page.text
    assert "fourm_ser train encoder=bert_vggish loss=focal seed=0 data.fold=0" in page.text
    assert page.count("figure") > 0


def test_a_sweep_of_which_nothing_finished_is_a_report_too(tmp_path: Path) -> None:
    write_run(tmp_path / "a", finished=False)
    page = page_of(tmp_path)
    assert "No run has finished yet." in page.text
    assert page.count("figure") == 0
    assert (tmp_path / "report" / "results.csv").is_file()


def test_a_missing_seed_is_listed(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce"], seeds=2)
    shutil.rmtree(tmp_path / "tiny-ce-1-0")
    page = page_of(tmp_path)
    assert "seed 1, fold 0 not run" in page.text
    assert "incomplete" in page.text


def test_several_corpora_have_a_section_each_and_random_weights_are_flagged(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", ["tiny"], ["ce"], weights="random")
    write_sweep(tmp_path / "b", ["tiny"], ["ce"], corpus="esd")
    write_sweep(tmp_path / "c", ["tiny"], ["ce"], emotions=["anger", "neutral"])
    page = page_of(tmp_path)
    assert "The runs follow 3 protocols" in page.text
    assert len([1 for tag, attributes in page.elements if (attributes.get("id") or "").startswith("section-")]) == 3
    assert page.text.count("† random weights") == 1 + 3  # the cell, and the note under each table


def test_names_and_messages_are_text(tmp_path: Path) -> None:
    write_run(tmp_path / "a", changes={"encoder.text.name": "<script>alert(1)</script>"})
    failed = write_run(tmp_path / "b", changes={"encoder.text.name": "b&\"'"}, finished=False)
    (failed / "failure.json").write_text(json.dumps({"error": "<b>bold</b> & so on"}))
    page = page_of(tmp_path)
    assert page.count("script") == 0
    assert "<b>bold</b> & so on" in page.text


def test_commands_repeat_their_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0, words=("data.emotions=[a, b]",))
    write_run(tmp_path / "b", seed=1, words=("data.emotions=[a, b]",), job=1)
    write_run(tmp_path / "c", seed=2, hydra=False)
    runs = collect([tmp_path]).runs
    common = "encoder=tiny loss=ce 'data.emotions=[a, b]'"
    by_name = {run.path.name: run for run in runs}
    both = [by_name["a"], by_name["b"]]
    assert cell_commands(both) == [f"fourm_ser train -m {common} seed=0,1 data.fold=0"]
    assert cell_commands(both[:1]) == ["fourm_ser train encoder=tiny loss=ce seed=0 data.fold=0 'data.emotions=[a, b]'"]
    (again,) = cell_commands([by_name["c"]])
    assert str(tmp_path / "c" / "config.yaml") in again
    assert again.endswith("fourm_ser train resume=again")


def test_the_command_line(tmp_path: Path) -> None:
    write_run(tmp_path / "sweep" / "a")
    call = [sys.executable, "-m", "fourm_ser.report"]
    ended = subprocess.run([*call, "sweep"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "1 of 1 runs have finished" in ended.stdout
    for name in ("results.csv", "results.md", "results.tex", "report.html"):
        assert (tmp_path / "sweep" / "report" / name).is_file()
    (tmp_path / "empty").mkdir()
    failed = subprocess.run([*call, "empty"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: no run found. empty: holds no run")
    with pytest.raises(InputError, match="no such folder"):
        report([tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_loads_nothing_heavy_and_the_report_no_torch() -> None:
    heavy = "any(name in sys.modules for name in ('torch', 'pandas', 'scipy', 'hydra'))"
    code = f"import sys, fourm_ser.report.__main__; bad = {heavy}; import fourm_ser.report.page; "
    code += "sys.exit(bad or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
