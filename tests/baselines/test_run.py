"""Baselines as runs: what they leave, that they go on, and that evaluate and predict use them as any other."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fourm_ser.baselines import run as baseline_run
from fourm_ser.config import build
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.runs import evaluation
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.runs.finished import OpenRun
from fourm_ser.training.experiment import resume, run
from fourm_ser.training.launch import processes
from fourm_ser.training.sweeps import has_finished
from tests.conftest import CONF, Compose

PROBE = ["baseline=linear_probe", "baseline.C=0.1", "refit=true"]
KINDS = {
    "both": PROBE,
    "audio": [*PROBE, "fusion=audio_only"],
    "pooled": [*PROBE, "fusion=text_only", "encode.pool=mean_std"],
    "computed": [*PROBE, "fusion=text_only", "encode.store=false"],
    "train": [*PROBE[:2], "refit=false"],
    "chosen": ["baseline=linear_probe", "fusion=text_only", "encoder.text.layer=weighted", "baseline.layer=best"],
    "egemaps": ["baseline=egemaps"],
}


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def words(slice_of_demo: list[str]) -> list[str]:
    few = [word for word in slice_of_demo if not word.startswith(("data.utterances", "fusion."))]
    return [*few, "data.utterances=80"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, composed: Compose, words: list[str]) -> dict[str, Path]:
    """A finished run of each kind, made where one is first asked for."""
    folder = tmp_path_factory.mktemp("baselines")

    class Runs(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            run(composed(*words, *KINDS[name]), folder / name)
            self[name] = folder / name
            return self[name]

    return Runs()


def metrics_of(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    return {name: value for name, value in found.items() if not name.startswith(("seconds/", "encoded/"))}


def evaluate(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", ["resamples=100", *overrides])
    return evaluation.evaluate(config, {})


def record_of(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((run_dir / "config.yaml").read_text())
    return found


@pytest.mark.parametrize("name", KINDS)
def test_a_baselines_run_leaves_what_a_networks_does(runs: dict[str, Path], two_stage_run: Path, name: str) -> None:
    assert {
        "config.yaml",
        "corpus.csv",
        "train.log",
        "metrics.json",
        "predictions.csv",
        "confusion_matrix.png",
        "model",
    } == {path.name for path in runs[name].iterdir() if not path.name.startswith(".")}
    own, networks = metrics_of(runs[name]), metrics_of(two_stage_run)
    of_training = {key for key in networks if "/loss/" in key or key.startswith(("steps/", "batch_size/"))}
    assert networks.keys() - own.keys() == {*of_training, "chosen_stage"}
    assert own["refit"] is ("refit=true" in KINDS[name])
    assert all(key.startswith("baseline") for key in own.keys() - networks.keys())
    table = pd.read_csv(runs[name] / "predictions.csv")
    assert list(table) == list(pd.read_csv(two_stage_run / "predictions.csv"))
    assert own["test/wa"] == pytest.approx((table["emotion"] == table["predicted"]).mean())
    assert "any effect" in (runs[name] / "train.log").read_text()


@pytest.mark.parametrize(("name", "fusion"), [("both", ["text", "audio"]), ("audio", ["audio"]), ("egemaps", [])])
def test_the_record_holds_what_the_run_read_and_nothing_else(
    runs: dict[str, Path], name: str, fusion: list[str]
) -> None:
    record = record_of(runs[name])
    assert record["fusion"] == {"modalities": fusion}
    unread = {"head", "loss", "augment", "stage", "optimizer", "scheduler", "lora"}
    assert not record.keys() & (unread | ({"encoder"} if name == "egemaps" else set()))
    assert record["baseline"]["_target_"].startswith("fourm_ser.baselines.")


def stored(config: DictConfig) -> tuple[EmotionDataModule, dict[str, np.ndarray]]:
    """The corpus, and mean and deviation of each utterance's stored frames by modality, read from the shards."""
    data = EmotionDataModule(build(config.data, cache=Path(config.cache)), pin_memory=False, seed=0)
    data.setup()
    found = {}
    for modality, name in (("text", "tiny_bert"), ("audio", "tiny_lstm")):
        rows: list[np.ndarray] = []
        for folder in sorted((Path(config.cache) / "embeddings").glob(f"{name}-*")):
            about = json.loads((folder / "store.json").read_text())
            if about["pool"] != "none" or about.get("layer", "last") != "last":
                continue
            store = FeatureStore(root=folder.parent, name=name, fingerprint=about["fingerprint"], made_by={})
            if not store.missing(data.keys()[modality]):
                rows = [store.read(key).double().numpy() for key in data.keys()[modality]]
        deviations = [np.sqrt(own.var(0) + 1e-6) for own in rows]
        found[modality] = np.stack(
            [np.concatenate([own.mean(0), deviation]) for own, deviation in zip(rows, deviations, strict=True)]
        )
    return data, found


@pytest.mark.parametrize(("name", "refit"), [("both", True), ("train", False), ("audio", True)])
def test_a_probe_is_scikit_learns_on_the_stored_features(runs: dict[str, Path], name: str, refit: bool) -> None:
    data, found = stored(RunDirectory(runs[name]).read_record())
    parts = [found["audio"]] if name == "audio" else [found["text"][:, : found["text"].shape[1] // 2], found["audio"]]
    numbers, corpus = np.hstack(parts), data.corpus
    rows = np.union1d(corpus.split.train, corpus.split.val) if refit else corpus.split.train
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=800, class_weight="balanced"))
    plain.fit(numbers[rows], corpus.label[rows])
    expected = plain.predict_proba(numbers[corpus.split.test])
    table = pd.read_csv(runs[name] / "predictions.csv")
    assert table["id"].tolist() == corpus.frame["id"].iloc[corpus.split.test].tolist()
    assert np.allclose(table[corpus.emotions].to_numpy(), expected, atol=1e-4)


def test_validation_is_of_the_training_side_alone_whether_or_not_all_is_fitted_to_then(runs: dict[str, Path]) -> None:
    whole, part = (metrics_of(runs[name]) for name in ("both", "train"))
    assert {k: v for k, v in whole.items() if k.startswith("val/")} == {
        k: v for k, v in part.items() if k.startswith("val/")
    }
    assert whole["test/loss"] != part["test/loss"]


@pytest.mark.parametrize("name", ["both", "chosen", "egemaps"])
def test_the_same_run_again_encodes_nothing_and_finds_the_same(
    runs: dict[str, Path], name: str, tmp_path: Path, composed: Compose, words: list[str]
) -> None:
    first = metrics_of(runs[name])
    again = run(composed(*words, *KINDS[name], "seed=3"), tmp_path / "again")
    assert [value for key, value in again.items() if key.startswith("encoded/")] in ([0, 0], [0])
    assert metrics_of(tmp_path / "again") == first


def test_a_network_and_its_probe_share_the_store_of_all_layers(
    runs: dict[str, Path], tmp_path: Path, composed: Compose, words: list[str]
) -> None:
    assert metrics_of(runs["chosen"])["baseline/layers/text"] in ([0], [1], [2])
    short = ["fusion=text_attention", "fusion.heads=4", "stage=transfer", "stage.transfer.epochs=1"]
    network = run(composed(*words, *short, "encoder.text.layer=weighted"), tmp_path / "network")
    assert network["encoded/text"] == 0


@pytest.mark.parametrize("name", ["both", "computed", "chosen", "egemaps"])
def test_evaluate_finds_the_runs_own_numbers_and_encodes_nothing(
    runs: dict[str, Path], name: str, tmp_path: Path
) -> None:
    recorded = metrics_of(runs[name])
    cache = Path(record_of(runs[name])["cache"])
    before = sorted(cache.glob("embeddings/*/shard-*"))
    found = evaluate(f"run={runs[name]}", f"output={tmp_path / 'out'}")
    names = [key for key in recorded if key.startswith("test/") and key != "test/loss"]
    assert {key: found[key] for key in names} == {key: recorded[key] for key in names}
    assert sorted(cache.glob("embeddings/*/shard-*")) == before


@pytest.mark.parametrize(("name", "is_refused"), [("both", True), ("train", False)])
@pytest.mark.parametrize("whole", [True, False])
def test_a_validation_side_that_was_fitted_to_is_refused(
    runs: dict[str, Path], name: str, is_refused: bool, whole: bool, tmp_path: Path
) -> None:
    corpus = [f"{key}={value}" for key, value in (("data", "demo"), ("data.utterances", 80), ("data.workers", 0))]
    words = (
        [f"run={runs[name]}"]
        if whole
        else [f"model={runs[name] / 'model'}", *corpus, f"cache={record_of(runs[name])['cache']}"]
    )
    words += ["side=val", f"output={tmp_path / 'out'}"]

    def done() -> dict[str, Any]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("evaluate", ["resamples=100", *words])
        return evaluation.evaluate(config, {} if whole else None)

    if is_refused:
        with pytest.raises(InputError, match="was trained on"):
            done()
    else:
        assert done()["val/ua"] == metrics_of(runs[name])["val/ua"]


@pytest.mark.parametrize("name", ["both", "pooled", "computed", "chosen", "egemaps"])
def test_the_model_directory_predicts_what_the_run_predicted(runs: dict[str, Path], name: str) -> None:
    record = RunDirectory(runs[name]).read_record()
    corpus = build(record.data, cache=Path(record.cache))
    corpus.setup()
    row = int(corpus.split.test[0])
    own = corpus.frame.iloc[row]
    predictor = Predictor.load(runs[name], device="cpu", cache=record.cache)
    given = {"text": own["text"], "audio": own["file"]}
    found = predictor(**{modality: given[modality] for modality in predictor.modalities})
    recorded = pd.read_csv(runs[name] / "predictions.csv").iloc[0]
    assert isinstance(found, Prediction)
    assert found.emotion == recorded["predicted"]
    assert list(found.probabilities.values()) == pytest.approx([recorded[e] for e in predictor.emotions], abs=1e-4)


@pytest.mark.parametrize("name", ["both", "egemaps"])
def test_a_run_that_was_interrupted_goes_on_and_ends_as_if_undisturbed(
    runs: dict[str, Path],
    name: str,
    tmp_path: Path,
    composed: Compose,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(baseline_run, "write_results", lambda *given: sys.exit("killed"))
        with pytest.raises(SystemExit):
            run(composed(*words, *KINDS[name]), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    resume(tmp_path / "run")
    assert metrics_of(tmp_path / "run") == metrics_of(runs[name])
    before = (tmp_path / "run" / "metrics.json").stat().st_mtime_ns
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "others", "is_same"),
    [
        ("both", ["loss=focal", "stage=finetune", "optimizer=sgd", "head=server", "fusion=concat"], True),
        ("both", ["fusion=audio_only"], False),
        ("both", ["baseline.C=0.2"], False),
        ("both", ["baseline.C=auto"], False),
        ("both", ["encode.precision=auto"], True),
        ("both", ["refit=false"], False),
        ("both", ["augment=mixup"], True),
        ("both", ["data.fold=1"], False),
        ("egemaps", ["encoder.audio.hidden=32", "fusion=text_only", "loss=focal"], True),
        ("egemaps", ["baseline.gamma=0.1"], False),
    ],
)
def test_a_sweep_skips_a_baseline_whatever_is_chosen_of_what_it_does_not_read(
    runs: dict[str, Path], name: str, others: list[str], is_same: bool, composed: Compose, words: list[str]
) -> None:
    assert has_finished(composed(*words, *KINDS[name], *others), RunDirectory(runs[name])) is is_same


def test_a_network_of_the_same_choices_is_another_run(
    runs: dict[str, Path], composed: Compose, words: list[str]
) -> None:
    assert not has_finished(composed(*words), RunDirectory(runs["both"]))


def test_a_network_recorded_before_there_were_baselines_is_the_same_run(
    two_stage_run: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    assert "baseline" not in record_of(two_stage_run)
    stages = [*(f"stage.{name}.epochs=2" for name in ("transfer", "finetune")), "stage.finetune.keep=always"]
    words = [*slice_of_demo, "loss=ce_center", "stage=two_stage", *stages]
    assert has_finished(composed(*words), RunDirectory(two_stage_run))
    assert has_finished(composed(*words, "baseline=none"), RunDirectory(two_stage_run))


@pytest.mark.parametrize("name", ["both", "egemaps"])
def test_folds_are_those_of_networks(
    runs: dict[str, Path], name: str, tmp_path: Path, composed: Compose, words: list[str]
) -> None:
    found = run(composed(*words, *KINDS[name], "data.fold=1"), tmp_path / "fold")
    assert found["fold"] == 1
    tested = [set(pd.read_csv(path / "predictions.csv")["speaker"]) for path in (runs[name], tmp_path / "fold")]
    assert not tested[0] & tested[1]


def test_without_opensmile_nothing_is_begun(
    tmp_path: Path, composed: Compose, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opensmile", None)
    fresh = [word for word in words if not word.startswith("cache=")]
    with pytest.raises(InputError, match=r"baseline=egemaps: opensmile is not installed .*fourm_ser\[opensmile\]"):
        run(composed(*fresh, *KINDS["egemaps"], f"cache={tmp_path / 'cache'}"), tmp_path / "run")
    assert not (tmp_path / "cache").exists()


def test_a_layer_that_the_store_does_not_hold_is_refused(tmp_path: Path, composed: Compose, words: list[str]) -> None:
    with pytest.raises(InputError, match=r"baseline.layer=1: of text .* encoder.text.layer=weighted"):
        run(composed(*words, *PROBE, "baseline.layer=1"), tmp_path / "run")


def test_a_training_side_of_one_emotion_is_refused(tmp_path: Path, composed: Compose, words: list[str]) -> None:
    whole = build(composed(*words).data, cache=Path(composed(*words).cache))
    whole.setup()
    anger = whole.label == 0
    sides = np.where(anger, "train", np.where(np.arange(len(anger)) % 2, "val", "test"))
    pd.DataFrame({"id": whole.frame["id"], "split": sides}).to_csv(tmp_path / "split.csv", index=False)
    with pytest.raises(InputError, match="all that is trained on is anger"):
        run(composed(*words, *PROBE, f"data.split_file={tmp_path / 'split.csv'}"), tmp_path / "run")


def test_a_baseline_is_done_by_one_process_however_many_train_a_network(
    runs: dict[str, Path], tmp_path: Path, composed: Compose, words: list[str]
) -> None:
    several = [*words, *KINDS["both"], "trainer=ddp_cpu", "trainer.precision=32-true"]
    assert processes(composed(*words, "trainer=ddp_cpu")) == 2
    assert processes(composed(*several)) == 1
    run(composed(*several), tmp_path / "run")
    assert metrics_of(tmp_path / "run") == metrics_of(runs["both"])


def test_a_baseline_is_not_looked_into(runs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="a baseline's run"):
        OpenRun(runs["both"])


def test_no_file_of_a_baseline_needs_pickle(runs: dict[str, Path]) -> None:
    suffixes = {path.suffix for run_dir in runs.values() for path in run_dir.rglob("*") if path.is_file()}
    assert suffixes <= {".yaml", ".csv", ".log", ".json", ".png", ".safetensors", ".txt", ".lock", ".xxh", ""}
    assert all(math.isfinite(metrics_of(run_dir)["test/loss"]) for run_dir in runs.values())
