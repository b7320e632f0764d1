"""results.csv, results.md and results.tex."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from fourm_ser.report.cells import Section, make_sections
from fourm_ser.report.tables import markdown, percent, tex, write_tables
from fourm_ser.runs.collect import collect
from tests.report.runs import write_run, write_sweep


def written(folder: Path) -> list[Section]:
    sections = make_sections(collect([folder]).runs)[0]
    write_tables(sections, folder / "report")
    return sections


def from_json(folder: Path) -> pd.DataFrame:
    rows = []
    for path in sorted(folder.rglob("metrics.json")):
        encoder, loss, seed, fold = path.parent.name.split("-")
        found: dict[str, Any] = json.loads(path.read_text())
        numbers = {name.removeprefix("test/"): x for name, x in found.items() if name.startswith("test/")}
        told = {"encoder": encoder, "loss": loss, "seed": seed, "fold": fold, "seconds": found["seconds/transfer"]}
        rows.append(told | numbers)
    return pd.DataFrame(rows)


def test_results_csv_is_what_pandas_computes(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce", "focal"], seeds=2, folds=3)
    shutil.rmtree(tmp_path / "tiny-focal-1-2")
    written(tmp_path)
    table = pd.read_csv(tmp_path / "report" / "results.csv").set_index(["encoder", "loss"])
    runs = from_json(tmp_path)
    numbers = [str(name) for name in runs if name not in ("encoder", "loss", "seed", "fold", "seconds")]
    by_fold = runs.groupby(["encoder", "loss", "fold"])[numbers].mean()
    cells = by_fold.groupby(["encoder", "loss"])
    assert len(numbers) == 9
    for name in numbers:
        expected = cells[name].agg(["mean", "std"]).loc[table.index]
        pd.testing.assert_series_equal(table[f"{name}_mean"], expected["mean"], check_names=False, rtol=1e-12)
        pd.testing.assert_series_equal(table[f"{name}_std"], expected["std"], check_names=False, rtol=1e-9, atol=1e-12)
    seconds = runs.groupby(["encoder", "loss"])["seconds"].mean().loc[table.index]
    pd.testing.assert_series_equal(table["seconds"], seconds, check_names=False)
    assert table["runs"].to_dict() == runs.groupby(["encoder", "loss"]).size().to_dict()
    assert (table["n"] == 3).all()
    assert table["complete"].to_dict()["tiny", "focal"] == 0


def test_several_protocols_are_several_tables(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", ["tiny", "bert_vggish"], ["ce"])
    write_sweep(tmp_path / "b", ["tiny"], ["ce", "focal"], corpus="esd", weights="random")
    written(tmp_path)
    table = pd.read_csv(tmp_path / "report" / "results.csv")
    assert table["corpus"].tolist() == ["demo", "demo", "esd", "esd"]
    assert table["encoder"].tolist() == ["tiny", "bert_vggish", "tiny", "tiny"]
    assert table["loss"].tolist() == ["ce", "ce", "ce", "focal"]
    assert table["weights"].tolist() == ["pretrained", "pretrained", "random", "random"]
    text = (tmp_path / "report" / "results.md").read_text()
    assert text.index("## demo, split by session") < text.index("## esd, split by session")
    assert "Random weights" in text
    assert "tiny | ce† |" not in text.partition("## esd")[0]


def test_the_best_is_bold_and_only_that(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce", "focal"], seeds=2)
    (section,) = written(tmp_path)
    summary, best = section.summary("ua"), section.best("ua")
    text = percent(summary["mean"][best], summary["std"][best])
    lines = (tmp_path / "report" / "results.md").read_text().splitlines()
    bold = [line for line in lines if f"**{text}**" in line]
    assert len(bold) == 1
    assert bold[0].startswith(f"| {' | '.join(section.cells[best].values.values())} |")
    assert sum(line.count("**") for line in lines) == 2 * 4
    tex = (tmp_path / "report" / "results.tex").read_text()
    assert tex.count(r"\textbf{") == 4
    assert rf"\textbf{{{text}}}".replace(" ± ", r"\,$\pm$\,") in tex


def test_tex_has_no_bare_special_signs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "bert_vggish", "ce_center", weights="random")
    written(tmp_path)
    tex = (tmp_path / "report" / "results.tex").read_text()
    body = "\n".join(line for line in tex.splitlines() if not line.startswith("%"))
    assert r"bert\_vggish & ce\_center\dag{}" in body
    assert not re.search(r"(?<!\\)[_#%]", body)
    rows = re.findall(r"\\midrule\n(.*) \\\\\n", body)
    assert all(len(row.split("&")) == 2 + 5 for row in rows)


def test_one_repeat_has_no_deviation(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    written(tmp_path)
    table = pd.read_csv(tmp_path / "report" / "results.csv")
    assert table["ua_std"].isna().all()
    assert "±" not in (tmp_path / "report" / "results.md").read_text()


NASTY = "=cmd|' /C calc'!A0\n\n\\input{/etc/passwd}\r<script>alert(1)</script> [a](javascript:b) `x` ^^5cinput\u2028"


def test_what_data_are_called_cannot_leave_its_cell(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["tiny", "bert_vggish"], ["ce", "focal"])
    usual = written(tmp_path)
    lines = (tmp_path / "report" / "results.tex").read_text().splitlines()
    for path in tmp_path.glob("*/metrics.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "corpus": NASTY}))
    (section,) = written(tmp_path)
    assert len(usual) == 1
    assert NASTY in section.protocol.values()
    assert pd.read_csv(tmp_path / "report" / "results.csv")["corpus"].unique().tolist() == [f"'{NASTY}"]
    text = (tmp_path / "report" / "results.md").read_text()
    assert "<script>" not in text
    assert "](java" not in text.replace("\\]", "")
    assert text.splitlines()[0].endswith("^^5cinput , split by session")
    written_tex = (tmp_path / "report" / "results.tex").read_text().splitlines()
    assert len(written_tex) == len(lines)
    assert all(line.startswith("% corpus: ") for line in written_tex if "input" in line)


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_stays_in_its_cell(text: str) -> None:
    shown = tex(text)
    assert len(shown.splitlines()) <= 1
    commands = ("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "dag")
    bare = re.sub(rf"\\(?:{'|'.join((*commands, 'textperiodcentered'))})\{{\}}|\\[&%$#_{{}}]", "", shown)
    assert not set(bare) & set("\\~^&%$#_{}")
    assert len(markdown(text).splitlines()) <= 1
    assert not set(re.sub(r"\\[\\|`*\]]", "", markdown(text))) & set("\\|`<>*")
