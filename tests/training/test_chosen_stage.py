"""Runs of several stages end with the one that validates best: by its weights, its stem and all that comes later."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from fourm_ser.encoders import lora
from fourm_ser.errors import InputError
from fourm_ser.files import write_text
from fourm_ser.models.directory import load_model
from fourm_ser.runs.directory import RunDirectory, StageDirectory
from fourm_ser.runs.finished import OpenRun
from fourm_ser.training.experiment import Experiment, resume, run
from fourm_ser.training.loggers import EpochTable
from fourm_ser.training.stages import ROUNDING, Stage, choose_stage, told_score
from tests.accelerator.networks import WAV2VEC
from tests.conftest import Compose
from tests.training.runs import DiedError, evaluate, lasting, read_metrics
from tests.training.test_module import STAGE

pytestmark = pytest.mark.usefixtures("no_figures")

VOICES = [  # which the voice tells apart
    *("data.emotions=[anger,sadness]", "data.drop_other=true", "fusion=audio_attention", "stage.transfer.select=best"),
    *("loss=ce", "augment=none", "optimizer.lr=1e-3", "optimizer.weight_decay=0.1"),
]
LEARNS = [f"stage.transfer.{word}" for word in ("epochs=6", "batch_size=6", "patience=null")]
LEARNS_NOTHING = ["stage.transfer.epochs=1", "optimizer@stage.transfer.optimizer=sgd", "stage.transfer.optimizer.lr=0"]
RUINS = [f"stage.finetune.{word}" for word in ("epochs=2", "batch_size=6", "encoder_learning_rate=30")]
RUINS = [*RUINS, "optimizer@stage.finetune.optimizer=adam", "stage.finetune.optimizer.lr=30", "scheduler=constant"]
HELPS = [f"stage.finetune.{word}" for word in ("epochs=12", "batch_size=6", "encoder_learning_rate=0.01")]
ADAPTS = ["stage=two_stage_lora", "lora.r=2", "stage.transfer.epochs=1", "stage.finetune.epochs=2"]
WHOLE = ["stage.transfer.unfreeze={text: none, audio: all}", "stage.transfer.encoder_learning_rate=0.01"]
RUNS = {  # by name: words, which stage is chosen, whether its stem trained
    "ruined and left": ([*LEARNS, *RUINS], "transfer", False),
    "helped": ([*LEARNS_NOTHING, *HELPS], "finetune", True),
    "ruined and kept": ([*LEARNS, *RUINS, "stage.finetune.keep=always"], "finetune", True),
    "ruined without a store": ([*LEARNS, *RUINS, "encode.store=false"], "transfer", False),
    "adapters that count as worse": ([*ADAPTS, *WAV2VEC], "transfer", False),  # random weights' features tell little
    "adapters behind a trained stem": ([*ADAPTS, *WAV2VEC, *WHOLE], "transfer", True),
}


def best_epoch(run_dir: Path, stage: str) -> dict[str, float]:
    """The first row of the highest validation UA."""
    rows = pd.read_csv(run_dir / "stages" / stage / "metrics.csv").to_dict(orient="records")
    return {str(name): float(value) for name, value in max(rows, key=lambda row: row["val/ua"]).items()}


@pytest.fixture(scope="module", autouse=True)
def _scripted_score() -> Iterator[None]:
    """Where adapters train, the first stage counts as the better one."""
    own = StageDirectory.read_score

    def read_score(self: StageDirectory) -> float:
        return float(self.name == "transfer") if "adapters" in self.path.parent.parent.name else own(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StageDirectory, "read_score", read_score)
        yield


@pytest.fixture(scope="module")
def words(slice_of_demo: list[str]) -> list[str]:
    given = [word for word in slice_of_demo if not word.startswith(("encoder.audio", "data.utterances"))]
    return [*given, *VOICES, "data.utterances=80"]


@pytest.fixture(scope="module", params=RUNS)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, composed: Compose, words: list[str]
) -> Path:
    run_dir = tmp_path_factory.mktemp("chosen") / request.param.replace(" ", "_")
    run(composed(*words, *RUNS[request.param][0]), run_dir)
    return run_dir


def expected_stage(run_dir: Path) -> str:
    return RUNS[run_dir.name.replace("_", " ")][1]


def has_trained_stem(run_dir: Path) -> bool:
    return RUNS[run_dir.name.replace("_", " ")][2]


@pytest.mark.slow(but=["helped"])
def test_the_better_stage_is_tested_and_told(finished: Path) -> None:
    metrics, chosen = read_metrics(finished), expected_stage(finished)
    assert metrics["chosen_stage"] == chosen
    folder = RunDirectory(finished).chosen_stage
    assert folder.name == chosen
    row = best_epoch(finished, folder.path.name)
    for name in ("ua", "wa", "loss"):
        assert metrics[f"val/{name}"] == pytest.approx(row[f"val/{name}"], abs=1e-5)
    if "adapters" in finished.name:
        return
    scores = [best_epoch(finished, stage)["val/ua"] for stage in ("0-transfer", "1-finetune")]
    assert scores[0] != scores[1]  # else the runs show nothing
    log = " ".join((finished / "train.log").read_text().split())
    found = zip(("transfer", "finetune"), scores, strict=True)
    first, second = (rf"{name} validation UA {score:.4f}( ± 0\.\d{{4}})?" for name, score in found)
    told = re.search(f"stage {chosen} is what the run ends with: {first}, {second}", log)
    assert bool(told) == ("kept" not in finished.name)


@pytest.mark.slow(but=["helped"])
def test_the_model_carries_the_stem_of_the_chosen_stage(finished: Path, tmp_path: Path) -> None:
    written = load_file(finished / "model" / "model.safetensors")
    settings = OmegaConf.load(finished / "model" / "config.yaml")
    assert any(".stem." in name for name in written) == has_trained_stem(finished)
    assert not any(map(lora.is_adapter, written))
    assert "lora" not in settings
    assert settings.use.stored == ([] if has_trained_stem(finished) else ["audio"])
    model = load_model(finished / "model", tmp_path)
    assert not lora.adapters(model.network)
    folder = RunDirectory(finished).chosen_stage
    state = model.network.state_dict()
    for name, tensor in folder.read_weights("network").items():
        if not lora.is_adapter(name):
            assert torch.equal(state[name.replace(".base_layer.", ".")], tensor), name


@pytest.mark.slow(but=["ruined and left", "helped"])
def test_all_that_comes_later_works_on_the_chosen_stage(finished: Path, tmp_path: Path) -> None:
    metrics, chosen = read_metrics(finished), expected_stage(finished)
    found = evaluate(f"run={finished}", f"output={tmp_path / 'out'}")
    assert {name: found[name] for name in ("test/ua", "test/loss")} == {
        name: metrics[name] for name in ("test/ua", "test/loss")
    }
    opened = OpenRun(finished)
    assert opened.trained.name == f"after {chosen}"
    names = ["before training", "after transfer", *(["after finetune"] if chosen == "finetune" else [])]
    states = list(opened.snapshots())
    assert [snapshot.name for snapshot in states] == names
    assert states[-1].network is opened.network
    outputs = opened.features(opened.trained, "test")
    predicted = pd.read_csv(finished / "predictions.csv")["predicted"]
    assert [opened.emotions[label] for label in outputs.predicted] == predicted.tolist()


@pytest.mark.slow(but=["helped"])
def test_a_run_that_went_back_encodes_nothing_again(finished: Path) -> None:
    if "store" in finished.name:
        pytest.skip("keeps no features")
    metrics = read_metrics(finished)
    assert metrics["encoded/audio"] in (0, len(RunDirectory(finished).read_corpus()))  # type: ignore[arg-type]


@pytest.mark.slow
def test_wherever_a_run_dies_it_chooses_alike(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "helped" not in finished.name and "worse" not in finished.name:
        pytest.skip("the others die no other way")
    copy = tmp_path / finished.name
    write_text(copy / "config.yaml", (finished / "config.yaml").read_text())
    own = EpochTable.log_metrics

    def die_after_an_epoch(stage: str) -> Any:
        def log_metrics(self: EpochTable, metrics: Any, step: Any = None) -> None:
            own(self, metrics, step)
            if self.path.parent.name == stage and len(self.rows) == 1:
                raise DiedError

        return log_metrics

    def die(*arguments: Any, **others: Any) -> Any:
        raise DiedError

    deaths: list[tuple[type, str, Any]] = [
        (EpochTable, "log_metrics", die_after_an_epoch("0-transfer")),
        (EpochTable, "log_metrics", die_after_an_epoch("1-finetune")),
        (Experiment, "_choose", die),
        (Experiment, "_test", die),
        (Experiment, "_finish", die),
    ]
    for owner, name, dies in deaths:
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, dies)
            with pytest.raises(DiedError):
                resume(copy)
    assert lasting(resume(copy)) == lasting(read_metrics(finished))
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (finished, copy))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow(but=["ruined and left", "helped"])
def test_a_run_without_results_is_not_taken_for_a_finished_one(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    (copy / "model").mkdir(parents=True)
    (copy / "stages").mkdir()
    write_text(copy / "config.yaml", (finished / "config.yaml").read_text())
    with pytest.raises(InputError, match=r"has not finished\. Go on with it"):
        RunDirectory(copy).read_finished_record()


@pytest.mark.slow(but=["ruined and left", "helped"])
def test_a_run_of_an_earlier_version_ends_with_its_last_stage(
    finished: Path, tmp_path: Path, composed: Compose, words: list[str]
) -> None:
    record = OmegaConf.load(finished / "config.yaml")
    metrics = read_metrics(finished)
    del metrics["chosen_stage"]
    for entry in record.stage.values():
        for key in ("keep", "learning_rate", "layer_decay", "lora_learning_rate"):
            del entry[key]
    write_text(tmp_path / "config.yaml", OmegaConf.to_yaml(record))
    write_text(tmp_path / "metrics.json", json.dumps(metrics))
    directory = RunDirectory(tmp_path)
    assert directory.chosen_stage.name == "finetune"
    assert {
        (entry.keep, entry.learning_rate, entry.layer_decay, entry.lora_learning_rate)
        for entry in directory.read_record().stage.values()
    } == {("always", None, None, None)}


@pytest.mark.parametrize(
    ("scores", "keeps", "expected"),
    [
        ([0.5], ["better"], 0),
        ([0.5, 0.6], ["better", "better"], 1),
        ([0.6, 0.5], ["better", "better"], 0),
        ([0.5, 0.5], ["better", "better"], 0),  # equal: the earlier
        ([0.5, 0.5 + ROUNDING / 2], ["better", "better"], 0),  # equal but for roundings
        ([0.6, 0.5], ["better", "always"], 1),
        ([0.6, 0.5, 0.55], ["always", "better", "better"], 0),
        ([0.6, 0.5, 0.55], ["always", "always", "better"], 2),  # better than what took the first one's place
        ([0.6, 0.7, 0.65], ["always", "better", "better"], 1),
        ([0.6, 0.7, 0.65], ["always", "better", "always"], 2),
    ],
)
@pytest.mark.parametrize(("monitor", "sign"), [("val/ua", 1), ("val/wa", 1), ("val/loss", -1)])
def test_the_better_stage_is_chosen_and_of_equal_ones_the_earlier(
    scores: list[float], keeps: list[str], expected: int, monitor: str, sign: int
) -> None:
    stages = [
        Stage(**{**vars(STAGE), "number": place, "keep": keep, "monitor": monitor}) for place, keep in enumerate(keeps)
    ]
    assert choose_stage(stages, [sign * score for score in scores], [10**9]) is stages[expected]


@pytest.mark.parametrize(
    ("monitor", "counts"), [("val/ua", [12, 4, 0, 8]), ("val/wa", [12, 4, 0, 8]), ("val/ua", [44])]
)
def test_a_later_stage_is_better_by_more_than_its_score_s_standard_error(monitor: str, counts: list[int]) -> None:
    stages = [Stage(**{**vars(STAGE), "number": place, "keep": "better", "monitor": monitor}) for place in (0, 1)]
    rng, share = np.random.default_rng(0), 0.8
    recalls = np.stack([rng.binomial(count, share, 200_000) / count for count in counts if count])
    weights = np.array([count for count in counts if count]) if monitor == "val/wa" else None
    error = float(np.average(recalls, axis=0, weights=weights).std())
    assert choose_stage(stages, [share, share + 0.98 * error], counts) is stages[0]
    assert choose_stage(stages, [share, share + 1.02 * error], counts) is stages[1]
    assert float(told_score(stages[0], share, counts).partition(" ± ")[2]) == pytest.approx(error, rel=0.02)


def test_losses_that_differ_by_their_roundings_are_equal() -> None:
    stages = [Stage(**{**vars(STAGE), "number": place, "keep": "better", "monitor": "val/loss"}) for place in (0, 1)]
    assert choose_stage(stages, [40.0, 40.0 * (1 - ROUNDING / 2)], [2, 3]) is stages[0]
    assert choose_stage(stages, [40.0, 40.0 * (1 - ROUNDING * 2)], [2, 3]) is stages[1]


@pytest.mark.parametrize("name", ["3m_ser", "4m_ser", "server", "memocmt"])
def test_published_presets_end_with_their_last_stage(name: str, composed: Compose) -> None:
    assert {entry.keep for entry in composed(f"experiment={name}").stage.values()} == {"always"}


@pytest.mark.parametrize("name", ["two_stage", "two_stage_last", "two_stage_lora", "finetune"])
def test_a_second_stage_is_kept_where_it_is_better(name: str, composed: Compose) -> None:
    assert composed(f"stage={name}").stage.finetune.keep == "better"


@pytest.mark.parametrize(("name", "what"), [("two_stage_last", 1), ("two_stage_lora", "lora")])
def test_all_modalities_are_told_alike_what_trains_behind_transfer(name: str, what: Any, composed: Compose) -> None:
    stages = composed(f"stage={name}").stage
    assert [dict(entry.unfreeze) for entry in stages.values()] == [
        {"text": "none", "audio": "none"},
        {"text": what, "audio": what},
    ]
    assert all(left != right for left, right in itertools.pairwise(stages.values()))
