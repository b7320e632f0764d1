"""Evaluating: a run's own numbers again, another side, another corpus, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from omegaconf import DictConfig

from fourm_ser.data.manifest import write_manifest
from fourm_ser.errors import InputError
from fourm_ser.runs import evaluation, results
from fourm_ser.runs.finished import OpenRun
from tests.conftest import CONF, draw_again
from tests.drawn import Drawn, pixels, written

pytestmark = pytest.mark.usefixtures("no_figures")


def composed_evaluation(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", ["resamples=200", *overrides])


def evaluate(*overrides: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The command without its command line; `changes` are those of a run's own corpus."""
    return evaluation.evaluate(composed_evaluation(*overrides), changes)


@pytest.fixture(scope="module")
def table(two_stage_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's corpus as a manifest, with some utterances of an emotion that the model does not know."""
    frame = OpenRun(two_stage_run).corpus.frame.copy()
    frame.loc[frame.index[::10], "emotion"] = "fear"
    path = tmp_path_factory.mktemp("table") / "corpus.csv"
    write_manifest(frame.assign(split="test", start=float("nan"), end=float("nan")), path)
    return path


def other(table: Path, model: Path, *overrides: str) -> list[str]:
    return [
        f"model={model}",
        "data=manifest",
        f"data.manifest={table}",
        "data.workers=0",
        "data.split=speaker",
        f"cache={table.parent / 'cache'}",
        f"output={table.parent / 'out'}",
        "allow_seen=true",  # it is the run's own corpus, under another name
        *overrides,
    ]


def without(table: Path, emotion: str) -> Path:
    """A copy of a manifest without the utterances of an emotion."""
    frame = pd.read_csv(table, keep_default_na=False)
    path = table.with_name(f"without_{emotion}.csv")
    frame[frame["emotion"] != emotion].to_csv(path, index=False)
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn here, after all."""
    for module in (evaluation, results):
        draw_again(monkeypatch, module)


@pytest.mark.usefixtures("drawn")
def test_a_run_gives_exactly_its_own_metrics(two_stage_run: Path, tmp_path: Path) -> None:
    recorded = json.loads((two_stage_run / "metrics.json").read_text())
    for side in ("test", "val"):
        found = evaluate(f"run={two_stage_run}", f"side={side}", f"output={tmp_path / side}", changes={})
        names = [name for name in recorded if name.startswith(f"{side}/")]
        assert len(names) > 10
        assert {name: found[name] for name in names} == {name: recorded[name] for name in names}
        for name in ("ua", "wa", "f1_macro", "ece", "recall/anger"):
            assert found[f"{side}/{name}/low"] <= found[f"{side}/{name}"] <= found[f"{side}/{name}/high"]
        assert found == json.loads((tmp_path / side / "metrics.json").read_text())
    assert (tmp_path / "test" / "predictions.csv").read_bytes() == (two_stage_run / "predictions.csv").read_bytes()
    for name in ("confusion_matrix.png", "reliability.png"):
        assert (tmp_path / "test" / name).stat().st_size > 5_000


@pytest.mark.usefixtures("drawn")
def test_the_figures_are_of_the_predictions(
    two_stage_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = dict[str, Figure]()
    for module in (evaluation, results):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: saved.update({path.stem: figure}))
    evaluate(f"run={two_stage_run}", f"output={tmp_path}", changes={})
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    emotions = OpenRun(two_stage_run).emotions
    Drawn(saved["confusion_matrix"])
    for (label, predicted), text in written(saved["confusion_matrix"].axes[0]).items():
        count = ((predictions["emotion"] == label) & (predictions["predicted"] == predicted)).sum()
        assert text.split("\n")[0] == str(count)
    Drawn(saved["reliability"])
    upper, _ = saved["reliability"].axes
    right, sure = predictions["emotion"] == predictions["predicted"], predictions[emotions].max(axis=1)
    for patch in upper.patches:
        box = patch.get_window_extent()
        left, right_end = pixels(upper.xaxis, [0, 1])
        first, last = ((edge - left) / (right_end - left) for edge in (box.x0, box.x1))
        top = last + 1e-3 if patch is upper.patches[-1] else last - 1e-6
        accuracy = right[(sure >= first - 1e-6) & (sure < top)].mean()
        assert box.y1 == pytest.approx(pixels(upper.yaxis, accuracy), abs=0.5)


def test_what_was_resampled_is_recorded_and_the_terminal_says_so(
    two_stage_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = evaluate(f"run={two_stage_run}", f"output={tmp_path}", changes={})
    assert (few["speakers"], few["resampled"]) == (2, "utterances")
    assert "200 resamples of utterances: of fewer than 5 speakers (2)" in " ".join(capsys.readouterr().out.split())
    asked = evaluate(f"run={two_stage_run}", "resample=speakers", f"output={tmp_path}", changes={})
    assert (asked["speakers"], asked["resampled"]) == (2, "speakers")
    assert "200 resamples of speakers\n" in capsys.readouterr().out
    assert asked["test/ece/low"] != few["test/ece/low"]


def test_tables_are_those_of_the_predictions(two_stage_run: Path, tmp_path: Path) -> None:
    evaluate(f"run={two_stage_run}", f"output={tmp_path}", changes={})
    predictions = pd.read_csv(tmp_path / "predictions.csv", dtype={"speaker": str})
    right = predictions["emotion"] == predictions["predicted"]
    worst = pd.read_csv(tmp_path / "confusions.csv", keep_default_na=False)
    assert set(worst["id"]) == set(predictions["id"][~right])
    assert worst["probability"].is_monotonic_decreasing
    text = OpenRun(two_stage_run).corpus.frame.set_index("id")["text"]
    assert worst["text"].tolist() == text[worst["id"]].tolist()
    speakers = pd.read_csv(tmp_path / "speakers.csv", dtype={"speaker": str}).set_index("speaker")
    for speaker, rows in predictions.assign(right=right).groupby("speaker"):
        found = speakers.loc[str(speaker)]
        assert found["utterances"] == len(rows)
        assert found["wa"] == pytest.approx(rows["right"].mean())
        assert found["ua"] == pytest.approx(rows.groupby("emotion")["right"].mean().mean())


def test_keys_change_the_run_s_own_corpus(two_stage_run: Path, tmp_path: Path) -> None:
    words = (f"run={two_stage_run}", f"output={tmp_path}")
    with pytest.raises(InputError, match=r"was trained on 40 of the 40 utterances to test \(Ses03.*allow_seen=true"):
        evaluate(*words, changes={"data.fold": 2})
    found = evaluate(*words, "allow_seen=true", changes={"data.fold": 2})
    assert found["fold"] == 2
    assert (found["speaker_independent"], found["seen_utterances"], found["seen_speakers"]) == (False, 40, 2)
    ids = pd.read_csv(tmp_path / "predictions.csv")["id"]
    assert set(ids.str[:5]) == {"Ses03"}


def test_the_command_repeats_the_run_and_takes_changes(
    two_stage_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fourm_ser.evaluate import evaluate as command

    monkeypatch.chdir(tmp_path)
    for words, fold in (((), 0), (("data.fold=1", "allow_seen=true"), 1)):
        monkeypatch.setattr("sys.argv", ["evaluate", f"run={two_stage_run}", "resamples=100", "output=out", *words])
        command()
        assert json.loads(Path("out/metrics.json").read_text())["fold"] == fold
        printed = capsys.readouterr().out
        assert "the surest mistakes" in printed
        assert "by speaker" in printed
    monkeypatch.setattr("sys.argv", ["evaluate", f"run={two_stage_run}", "side=nobody"])
    with pytest.raises(SystemExit, match="error: side=nobody: expected train, val, test, all"):
        command()


def test_another_corpus_is_tested_under_the_model_s_classes(two_stage_run: Path, table: Path) -> None:
    found = evaluate(*other(table, two_stage_run / "model", "side=all"))
    assert found["classes"] == found["model_classes"] == ["anger", "happiness", "sadness", "neutral"]
    assert found["left_out"] == 20  # of another emotion
    assert found["utterances"] == 180
    assert "all/loss" not in found
    # The same utterances as on the run's own corpus get the same probabilities.
    own = pd.read_csv(two_stage_run / "predictions.csv").set_index("id")
    mine = pd.read_csv(table.parent / "out" / "predictions.csv").set_index("id")
    both = own.index.intersection(mine.index)
    assert len(both) > 20
    columns = found["classes"]
    assert mine.loc[both, columns].to_numpy() == pytest.approx(own.loc[both, columns].to_numpy(), abs=1e-5)


def test_a_class_that_the_corpus_lacks_is_refused_or_taken_out(two_stage_run: Path, table: Path) -> None:
    lacking = without(table, "sadness")
    words = other(lacking, two_stage_run / "model", "side=all")
    with pytest.raises(InputError, match=r"no utterance of sadness.*anger, happiness, neutral, fear.*classes=shared"):
        evaluate(*words)
    found = evaluate(*words, "classes=shared")
    assert found["classes"] == ["anger", "happiness", "neutral"]
    predictions = pd.read_csv(table.parent / "out" / "predictions.csv")
    assert set(predictions["predicted"]) <= set(found["classes"])
    assert predictions[found["classes"]].sum(axis=1).to_numpy() == pytest.approx(1.0, abs=1e-5)
    own = pd.read_csv(two_stage_run / "predictions.csv").set_index("id")[found["classes"]]
    mine = predictions.set_index("id")[found["classes"]]
    both = own.index.intersection(mine.index)
    expected = own.loc[both].div(own.loc[both].sum(axis=1), axis=0)
    assert mine.loc[both].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-5)


def test_nonsense_is_refused(two_stage_run: Path, table: Path, tmp_path: Path) -> None:
    for words, changes, message in (
        ((), {}, "either run=DIR, a finished run, or model=DIR"),
        ((f"model={two_stage_run / 'model'}",), {}, "a model directory has no corpus. Choose one: data="),
        (other(table, two_stage_run), None, "is a run. Give run="),
        ((f"run={two_stage_run / 'model'}",), {}, "It is a model directory: give the run's own"),
        ((f"run={tmp_path}",), {}, "no config.yaml there. Expected the directory of a finished run"),
        ((f"run={two_stage_run}", "side=holdout"), {}, "side=holdout: expected train, val, test, all"),
        ((f"run={two_stage_run}", "classes=some"), {}, "classes=some: expected all or shared"),
        (other(without(table, "x"), tmp_path), None, "no model.safetensors there"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(*words, changes=changes)


def test_a_text_model_needs_transcripts(two_stage_run: Path, table: Path) -> None:
    frame = pd.read_csv(table, keep_default_na=False)
    silent = table.with_name("silent.csv")
    frame.assign(text="").to_csv(silent, index=False)
    with pytest.raises(InputError, match="reads text, and no utterance of manifest has a transcript"):
        evaluate(*other(silent, two_stage_run / "model", "side=all"))


def test_a_lost_checkpoint_costs_the_loss_alone(
    two_stage_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(two_stage_run, copy)
    shutil.rmtree(copy / "stages")
    with caplog.at_level("WARNING", "fourm_ser"):
        found = evaluate(f"run={copy}", changes={})
    assert "the loss is left out" in caplog.text
    recorded = json.loads((two_stage_run / "metrics.json").read_text())
    assert "test/loss" not in found
    assert found["test/ua"] == recorded["test/ua"]
    assert (copy / "evaluation" / "demo-test-fold0" / "metrics.json").is_file()


@pytest.mark.slow
def test_what_is_claimed_is_about_whom_the_model_was_trained_on(
    two_stage_run: Path, table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = evaluate(f"run={two_stage_run}", f"output={tmp_path / 'own'}", changes={})
    assert (own["speaker_independent"], own["seen_utterances"], own["seen_speakers"]) == (True, 0, 0)
    validated = evaluate(f"run={two_stage_run}", "side=val", f"output={tmp_path / 'val'}", changes={})
    assert validated["speaker_independent"] is False
    assert validated["seen_utterances"] == validated["utterances"]
    # The same recordings under other names, split at random: the names hide nothing.
    frame = pd.read_csv(table, keep_default_na=False, dtype=str)
    renamed = tmp_path / "renamed.csv"
    frame.assign(id="x" + frame["id"], speaker="x" + frame["speaker"]).to_csv(renamed, index=False)
    words = other(renamed, two_stage_run / "model", "side=all", f"output={tmp_path / 'renamed'}")
    with pytest.raises(InputError, match=r"was trained on \d+ of the \d+ utterances to test \(xSes"):
        evaluate(*(word for word in words if word != "allow_seen=true"))
    found = evaluate(*words)
    assert found["speaker_independent"] is False
    assert found["seen_speakers"] == 8  # all but those of the tested session
    # A model directory by itself does not know.
    alone = tmp_path / "alone"
    shutil.copytree(two_stage_run / "model", alone)
    unknown = evaluate(*other(table, alone, "side=all", f"output={tmp_path / 'unknown'}"))
    assert unknown["speaker_independent"] is unknown["seen_utterances"] is unknown["seen_speakers"] is None
    assert "whether the test is speaker-independent is not known" in caplog.text


def test_a_run_s_own_corpus_is_the_one_it_was_trained_on(two_stage_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two_stage_run, run)
    recorded = pd.read_csv(run / "corpus.csv", keep_default_na=False, dtype=str)
    key, was = recorded["id"].iloc[0], recorded["emotion"].iloc[0]
    recorded.loc[0, "emotion"] = "fear"
    recorded.to_csv(run / "corpus.csv", index=False)
    (run / ".corpus.csv.xxh").unlink()
    told = rf"has changed since the run: 1 label changed \({key}: fear, now {was}\).*name it as another corpus: data="
    for changes in ({}, {"data.fold": 1}, {"data.max_seconds": 2.0}):
        with pytest.raises(InputError, match=told):
            evaluate(f"run={run}", "allow_seen=true", f"output={tmp_path / 'out'}", changes=changes)
    assert evaluate(f"run={run}", f"output={tmp_path / 'out'}", changes={"data.min_seconds": 0.1})["utterances"] > 0


@pytest.mark.slow
def test_no_evaluation_takes_the_place_of_another(
    two_stage_run: Path, table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(two_stage_run, run)
    lacking = without(table, "sadness")
    tested = [word for word in other(table, tmp_path, "side=all") if not word.startswith(("output=", "model="))]
    ways: list[tuple[list[str], dict[str, Any] | None]] = [
        ([], {}),
        (["side=val"], {}),
        (["allow_seen=true"], {"data.fold": 1}),
        ([], {"data.max_seconds": 2.0}),
        (tested, None),
        ([*tested, f"data.manifest={lacking}", "classes=shared"], None),
    ]
    for count, (words, changes) in enumerate(ways, 1):
        evaluate(f"run={run}", *words, changes=changes)
        assert len(list(run.glob("evaluation/*/metrics.json"))) == count
    assert "replaces" not in caplog.text
    names = {path.name for path in (run / "evaluation").iterdir()}
    assert {"demo-test-fold0", "demo-val-fold0", "demo-test-fold1"} < names
    evaluate(f"run={run}", changes={})
    assert "demo-test-fold0: replaces the results of an earlier evaluation" in caplog.text
    with pytest.raises(InputError, match="is a run or a model: its own results would be lost"):
        evaluate(f"run={run}", f"output={run}", changes={})
