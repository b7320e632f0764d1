"""A run that is refitted on train and validation, and one that keeps averaged weights, from first to last."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file

from fourm_ser.config import build
from fourm_ser.data.splits import Split, write_split
from fourm_ser.errors import InputError
from fourm_ser.report.cells import make_sections
from fourm_ser.runs import evaluation
from fourm_ser.runs.collect import read_run
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.runs.finished import OpenRun
from fourm_ser.training.experiment import Experiment, resume, run
from fourm_ser.training.loggers import EpochTable
from tests.conftest import CONF, Compose
from tests.training.runs import DiedError, lasting, read_metrics

pytestmark = pytest.mark.usefixtures("no_figures")

STAGE = [f"stage.transfer.{word}" for word in ("epochs=null", "steps=12", "batch_size=auto", "ema=0.8", "smooth=2")]
STAGE = [*STAGE, "stage.transfer.min_epochs=null", "stage.transfer.select=best"]
WORDS = ["stage=two_stage", "stage.finetune.epochs=2", "stage.finetune.keep=always", *STAGE]
WORDS = [*WORDS, "stage.transfer.monitor=val/loss", "loss=ce_center"]
AUGMENT = ["augment=waveform", "augment.copies=1", "augment.seed=77", "augment.mixup=0.4", "augment.spec.feature=0.2"]
STAGES = ("0-transfer", "1-finetune")


@pytest.fixture(scope="module")
def config(composed: Compose, slice_of_demo: list[str]) -> DictConfig:
    return composed(
        *slice_of_demo, "data.utterances=100", *WORDS, *AUGMENT, "refit=true", "loss.terms.ce.class_weights=balanced"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: DictConfig) -> Path:
    run_dir = tmp_path_factory.mktemp("refit") / "run"
    run(config, run_dir)
    return run_dir


def test_a_refit_leaves_its_stages_beside_the_first_ones_and_says_so(finished: Path) -> None:
    metrics, directory = read_metrics(finished), RunDirectory(finished)
    assert metrics["refit"] is True
    sides = directory.read_corpus()
    assert sides is not None
    utterances = sides["side"].value_counts()
    log = " ".join((finished / "train.log").read_text().split())
    assert f"refit: anew, on {utterances['train'] + utterances['val']} utterances, validation included" in log
    steps = -(-utterances["train"] // 32)
    epochs = -(-12 // steps)
    assert f"stage transfer: {epochs} epochs of {steps} steps ({epochs * steps} steps), batches of 32," in log
    assert metrics["batch_size/transfer"] == metrics["batch_size/refit/transfer"] == 32
    for number, name in enumerate(("transfer", "finetune")):
        first, again = (directory.stage(number, name, refit) for refit in (False, True))
        chosen = first.read_best()["global_step"]
        table = pd.read_csv(again.epochs)
        assert not [column for column in table if str(column).startswith("val/")]
        batches = -(-(utterances["train"] + utterances["val"]) // metrics[f"batch_size/{name}"])
        assert again.read_best()["global_step"] == len(table) * batches == metrics[f"steps/refit/{name}"]
        assert chosen <= len(table) * batches < chosen + batches
        assert metrics[f"steps/{name}"] == chosen
    assert directory.chosen_stage.path == finished / "refit" / "1-finetune"


def test_a_stage_is_judged_by_the_mean_of_its_last_scores(finished: Path) -> None:
    stage = RunDirectory(finished).stage(0, "transfer")
    table = pd.read_csv(stage.epochs)
    expected = table["val/loss"].rolling(2, min_periods=1).mean()
    assert table["val/score"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert stage.read_best()["epoch"] == table["val/score"].idxmin()


def test_a_stages_score_is_that_of_the_weights_that_it_ends_with(finished: Path) -> None:
    directory = RunDirectory(finished)
    scores = [pd.read_csv(directory.stage(0, "transfer").epochs)["val/score"].min()]
    scores.append(pd.read_csv(directory.stage(1, "finetune").epochs)["val/ua"].max())
    found = [directory.stage(number, name).read_score() for number, name in enumerate(("transfer", "finetune"))]
    assert found == pytest.approx(scores, rel=1e-5)


def test_those_who_validated_are_heard_in_all_versions_once_they_are_trained_on(finished: Path) -> None:
    sides = RunDirectory(finished).read_corpus()
    assert sides is not None
    copies = int(sides["side"].isin(["train", "val"]).sum())
    assert read_metrics(finished)["encoded/audio"] in (
        copies,
        copies + len(sides),
    )  # another test may have stored the rest


def test_validation_figures_are_of_the_first_pass_and_the_model_is_the_refit(
    finished: Path, tmp_path: Path, config: DictConfig
) -> None:
    plain = config.copy()
    plain.refit = False
    first, metrics = run(plain, tmp_path / "plain"), read_metrics(finished)
    assert first["refit"] is False
    of_validation = {name: value for name, value in first.items() if name.startswith("val/")}
    assert of_validation == {name: value for name, value in metrics.items() if name.startswith("val/")}
    assert first["test/loss"] != metrics["test/loss"]
    model = load_file(finished / "model" / "model.safetensors")
    kept = RunDirectory(finished).chosen_stage.read_weights("network")
    shared = [name for name in model if name in kept]
    assert any(name.startswith("fusion") for name in shared)
    assert all(torch.equal(model[name], kept[name]) for name in shared)
    sections, problems = make_sections([read_run(finished), read_run(tmp_path / "plain")])
    assert not problems
    assert [cell.values for cell in sections[0].cells] == [{"refit": "true"}, {"refit": "false"}]


@pytest.mark.slow
def test_a_refit_is_the_run_that_one_would_make_by_hand(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str], cache: Path
) -> None:
    words = [*slice_of_demo, "data.utterances=100", "stage=transfer", "loss=ce", "loss.class_weights=balanced"]
    words += ["scheduler=constant", *STAGE[2:4], "stage.transfer.epochs=4"]
    metrics = run(composed(*words, "refit=true"), tmp_path / "run")
    corpus = build(composed(*words).data, cache=cache)
    corpus.setup()
    half = len(corpus.split.test) // 2  # a run by hand needs somebody who validates
    by_hand = Split(corpus.split.joined().train, corpus.split.test[:half], corpus.split.test[half:])
    write_split(corpus.frame, by_hand, tmp_path / "split.csv")
    epochs = len(pd.read_csv(tmp_path / "run" / "refit" / "0-transfer" / "metrics.csv"))
    more = [f"data.split_file={tmp_path}/split.csv", f"stage.transfer.epochs={epochs}", "stage.transfer.select=last"]
    run(composed(*words, *more), tmp_path / "hand")
    assert metrics["steps/refit/transfer"] == read_metrics(tmp_path / "hand")["steps/transfer"]
    tables = [pd.read_csv(tmp_path / name / "predictions.csv").set_index("id") for name in ("run", "hand")]
    pd.testing.assert_frame_equal(tables[0].loc[tables[1].index], tables[1])


@pytest.mark.slow
def test_a_run_that_died_in_each_stage_ends_as_if_undisturbed(
    finished: Path, config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, places = EpochTable.log_metrics, [f"{kind}/{name}" for kind in ("stages", "refit") for name in STAGES]

    def die(self: EpochTable, metrics: Any, step: Any = None) -> None:
        own(self, metrics, step)
        if left and self.path.parent == tmp_path / "run" / left[0] and len(self.rows) == (2 if left[0] in long else 1):
            left.pop(0)
            raise DiedError

    left, long = [*places], places[::2]
    with monkeypatch.context() as patched:
        patched.setattr(EpochTable, "log_metrics", die)
        for _ in places:
            with pytest.raises(DiedError):
                run(config, tmp_path / "run")
    assert not left
    assert lasting(resume(tmp_path / "run")) == lasting(read_metrics(finished))
    for name in places:
        tables = [pd.read_csv(folder / name / "metrics.csv") for folder in (tmp_path / "run", finished)]
        pd.testing.assert_frame_equal(tables[0], tables[1])


def evaluate(*words: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return evaluation.evaluate(compose("evaluate", ["resamples=50", *words]), changes or {})


def test_an_evaluation_finds_the_metrics_of_the_refit_and_knows_whom_it_was_trained_on(
    finished: Path, tmp_path: Path
) -> None:
    found, metrics = evaluate(f"run={finished}", f"output={tmp_path / 'test'}"), read_metrics(finished)
    for name in ("test/ua", "test/loss", "test/loss/ce", "test/loss/center"):
        assert found[name] == pytest.approx(metrics[name], abs=1e-5)
    with pytest.raises(InputError, match="the model was trained on"):
        evaluate(f"run={finished}", "side=val", f"output={tmp_path / 'val'}")
    assert found["seen_utterances"] == 0


def test_what_looks_into_runs_sees_the_refit(finished: Path) -> None:
    opened = OpenRun(finished)
    vectors = opened.class_vectors()
    assert vectors is not None
    kept = RunDirectory(finished).chosen_stage.read_weights("loss")
    assert any(torch.equal(torch.from_numpy(vectors), tensor) for tensor in kept.values())
    states = {snapshot.name: snapshot.network.state_dict() for snapshot in opened.snapshots()}
    assert list(states) == ["before training", "after transfer", "after finetune"]
    weights = RunDirectory(finished).stage(0, "transfer", refit=True).read_weights("network")
    trained = [name for name in weights if name.startswith("fusion")]
    assert all(torch.equal(states["after transfer"][name], weights[name]) for name in trained)


def test_a_refit_has_no_validation_that_a_plateau_could_follow(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    config = composed(*slice_of_demo, "refit=true", "scheduler@stage.finetune.scheduler=plateau")
    with pytest.raises(InputError, match=r"refit=true: the scheduler of stage\.finetune is plateau"):
        run(config, tmp_path)


@pytest.mark.slow
def test_of_two_stages_those_up_to_the_better_one_are_refitted(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = ["stage=two_stage", "stage.transfer.epochs=2", "stage.finetune.epochs=2", "stage.finetune.ema=0.5"]
    stages = [*stages, "stage.transfer.select=best"]
    nothing = [
        "optimizer@stage.finetune.optimizer=sgd",
        "stage.finetune.optimizer.lr=0",
    ]  # equal: the earlier is better
    unmoved = "stage.finetune.encoder_learning_rate=1e-30"
    words = [*slice_of_demo, "data.utterances=60", *stages, *nothing, unmoved]
    for name in ("transfer", "finetune"):
        words += [f"stage.{name}.monitor=val/loss", f"stage.{name}.batch_size=auto"]
    config = composed(*words, "refit=true")
    metrics = run(config, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    assert metrics["chosen_stage"] == "transfer"
    assert [path.name for path in (tmp_path / "run" / "refit").iterdir()] == ["0-transfer"]
    assert directory.chosen_stage.path == tmp_path / "run" / "refit" / "0-transfer"
    assert metrics.keys() >= {"steps/transfer", "steps/finetune", "steps/refit/transfer"}
    assert "steps/refit/finetune" not in metrics
    table = pd.read_csv(directory.stage(0, "transfer").epochs)
    assert metrics["val/loss"] == pytest.approx(table["val/loss"].min(), abs=1e-5)
    kept = directory.chosen_stage.read_weights("network")
    model = load_file(directory.model / "model.safetensors")
    assert all(torch.equal(model[name], kept[name]) for name in model if name in kept)
    assert not any(".stem." in name for name in model)
    found = evaluate(f"run={tmp_path / 'run'}", f"output={tmp_path / 'test'}")
    assert {name: found[name] for name in ("test/ua", "test/loss")} == {
        name: metrics[name] for name in ("test/ua", "test/loss")
    }
    assert [snapshot.name for snapshot in OpenRun(tmp_path / "run").snapshots()] == [
        "before training",
        "after transfer",
    ]

    def die(*arguments: Any) -> None:
        raise DiedError

    with monkeypatch.context() as patched:
        patched.setattr(Experiment, "_finish", die)
        with pytest.raises(DiedError):
            run(config, tmp_path / "again")
    assert lasting(resume(tmp_path / "again")) == lasting(metrics)


@pytest.mark.parametrize("select", ["best", "last"])
def test_with_the_last_weights_the_score_is_theirs(
    select: str, tmp_path: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    words = [*slice_of_demo, "data.utterances=60", "stage=transfer", "scheduler=constant", "optimizer.lr=0.05"]
    words += [f"stage.transfer.{word}" for word in ("epochs=4", f"select={select}", "monitor=val/loss", "ema=0.5")]
    run(composed(*words), tmp_path)
    folder = RunDirectory(tmp_path).stage(0, "transfer")
    scores = pd.read_csv(folder.epochs)["val/loss"]
    expected = scores.min() if select == "best" else scores.iloc[-1]
    assert folder.read_score() == pytest.approx(expected, rel=1e-5)
    assert read_metrics(tmp_path)["val/loss"] == pytest.approx(expected, abs=1e-4)
