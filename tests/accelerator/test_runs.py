"""Whole runs on a pretend accelerator, from an empty cache to the last figure, beside the same on the CPU."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from fourm_ser.analysis import analyses
from fourm_ser.analysis.questions import QUESTIONS
from fourm_ser.prediction.items import Item
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.prediction.transcriber import Transcriber
from fourm_ser.runs import evaluation
from fourm_ser.serving.effects import effects_of
from fourm_ser.training import experiment
from fourm_ser.training.experiment import resume, run
from fourm_ser.training.module import EmotionModule
from tests.accelerator.device import NAME, Pretend
from tests.conftest import CONF, Compose
from tests.prediction.predictors import ctc, noise, whisper
from tests.training.runs import lasting, read_metrics

pytestmark = [
    pytest.mark.usefixtures("without_figures"),
    pytest.mark.filterwarnings("ignore:.*GradScaler is enabled, but CUDA is not"),  # Lightning's, before it is replaced
]
ENCODING = {"32-true": "32", "bf16-mixed": "bf16", "16-mixed": "16"}
SMALL = [
    "data.utterances=60",
    "encoder.text.architecture.hidden_size=32",
    "encoder.text.architecture.intermediate_size=32",
    "encoder.audio.hidden=16",
    "encoder.audio.frontend.hop=1600",
    "loss=ce_center",
    "fusion=self_attention",
    "fusion.heads=4",
    # The CPU draws the dropout of attention in another way.
    "fusion.dropout=0.0",
    "++encoder.text.architecture.attention_probs_dropout_prob=0.0",
]
SHORT = [f"stage.{stage}.{words}" for stage in ("transfer", "finetune") for words in ("epochs=2", "batch_size=8")]
SHORT += ["stage.finetune.ema=0.9", "stage.finetune.keep=always"]
PRECISIONS = pytest.mark.parametrize("precision", ENCODING)


def close(metrics: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """What equals metrics that are as near."""
    return {
        name: pytest.approx(value, abs=tolerance, rel=tolerance) if isinstance(value, float) else value
        for name, value in metrics.items()
    }


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory, composed: Compose) -> Callable[..., DictConfig]:
    """The config of a run of two stages of two epochs each, on 60 utterances; a cache for each kind of device."""
    home = tmp_path_factory.mktemp("caches")

    def configured(kind: str, precision: str, *words: str, folder: str = "") -> DictConfig:
        rounded = [f"trainer.precision={precision}", f"encode.precision={ENCODING[precision]}"]
        where = [f"trainer={kind}", f"cache={home / (folder or kind)}", "data.workers=0"]
        return composed(*where, *rounded, *SMALL, *(words or SHORT))

    return configured


@pytest.fixture(scope="module")
def finished(
    device: torch.device, tmp_path_factory: pytest.TempPathFactory, configure: Callable[..., DictConfig]
) -> Callable[[str], Path]:
    """A finished run on the accelerator, in a precision."""
    done: dict[str, Path] = {}

    def get(precision: str) -> Path:
        if precision not in done:
            done[precision] = tmp_path_factory.mktemp("runs") / precision
            run(configure("gpu", precision), done[precision])
        return done[precision]

    return get


@pytest.mark.slow(but=["bf16-mixed"])
@PRECISIONS
def test_both_stages_train_there(precision: str, finished: Callable[[str], Path], pretend: Pretend) -> None:
    run_dir = finished(precision)
    metrics = read_metrics(run_dir)
    assert metrics["finished"]
    assert metrics["encoded/text"] == metrics["encoded/audio"] == 60
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))
    record = OmegaConf.load(run_dir / "config.yaml")
    assert (record.trainer.accelerator, record.trainer.precision) == ("gpu", precision)
    for stage in ("0-transfer", "1-finetune"):
        last = torch.load(run_dir / f"stages/{stage}/checkpoints/last.ckpt", map_location="cpu", weights_only=True)
        assert ("MixedPrecision" in last) == (precision == "16-mixed")  # the state of its gradient scaler
        assert all(value.isfinite().all() for value in last["state_dict"].values())
        moments = [value for state in last["optimizer_states"][0]["state"].values() for value in state.values()]
        assert any(value.any() for value in moments)


@pytest.mark.slow
def test_in_float32_the_metrics_are_the_cpu_s(
    finished: Callable[[str], Path], configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    there = read_metrics(finished("32-true"))
    here = run(configure("cpu", "32-true"), tmp_path / "run")
    assert lasting(there) == close(lasting(here), 1e-5)
    tables = [pd.read_csv(run_dir / "predictions.csv") for run_dir in (finished("32-true"), tmp_path / "run")]
    pd.testing.assert_frame_equal(tables[0], tables[1], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["true", "false"])
def test_a_run_goes_back_to_an_earlier_stage_there(
    store: str,
    device: torch.device,
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(experiment, "choose_stage", lambda stages, scores, counts: stages[0])
    words = [*SHORT, "stage.finetune.keep=better", f"encode.store={store}"]
    there, here = (run(configure(kind, "32-true", *words), tmp_path / kind) for kind in ("gpu", "cpu"))
    assert there["chosen_stage"] == "transfer"
    assert lasting(there) == close(lasting(here), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_without_a_store_frozen_stems_run_there_in_their_own_precision(
    precision: str, finished: Callable[[str], Path], configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    metrics = run(configure("gpu", precision, *SHORT, "encode.store=false", folder="none"), tmp_path / "run")
    assert metrics["encoded/text"] == metrics["encoded/audio"] == 0
    expected = lasting(read_metrics(finished(precision)))
    if precision == "32-true":
        assert lasting(metrics) == close(expected, 1e-5)
    assert metrics.keys() == read_metrics(finished(precision)).keys()


class Killed(BaseException):
    """What ends a run at once."""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_run_killed_in_each_stage_ends_as_if_undisturbed(
    precision: str,
    finished: Callable[[str], Path],
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed = lasting(read_metrics(finished(precision)))
    begin, still_to_be_killed = EmotionModule.on_train_epoch_start, [0, 1]

    def on_train_epoch_start(self: EmotionModule) -> None:
        if self.current_epoch == 1 and self.stage.number in still_to_be_killed:
            still_to_be_killed.remove(self.stage.number)
            raise Killed
        begin(self)

    monkeypatch.setattr(EmotionModule, "on_train_epoch_start", on_train_epoch_start)
    with pytest.raises(Killed):
        run(configure("gpu", precision), tmp_path)
    with pytest.raises(Killed):
        resume(tmp_path)
    assert lasting(resume(tmp_path)) == undisturbed
    assert not still_to_be_killed


@pytest.mark.slow
def test_it_is_found_by_itself_and_workers_read_ahead_of_it(
    device: torch.device, configure: Callable[..., DictConfig], pretend: Pretend, tmp_path: Path
) -> None:
    words = [
        "trainer.accelerator=auto",
        "data.workers=1",
        "fusion=audio_attention",
        "stage=finetune",
        SHORT[2],
        SHORT[3],
    ]
    config = configure("gpu", "32-true", *words)
    for key in ("trainer.precision", "encode.precision"):
        OmegaConf.update(config, key, "auto")
    with pretend.watched() as seen:
        run(config, tmp_path)
    assert sum(seen.runs.values()) > 1000
    record = OmegaConf.load(tmp_path / "config.yaml")
    assert (record.trainer.accelerator, record.trainer.precision) == ("gpu", "bf16-mixed")
    assert record.encode.precision == "bf16"
    assert record.encode.max_seconds == 240.0


@pytest.mark.slow
def test_a_weighted_layer_trains_the_same_from_an_empty_store_and_a_full_one(
    device: torch.device, configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    words = ["encoder.text.layer=weighted", "fusion=text_attention", "stage=transfer", *SHORT[:2]]
    config = configure("gpu", "32-true", *words, folder="weighted")
    first, second = (run(config, tmp_path / name) for name in ("first", "second"))
    assert (first["encoded/text"], second["encoded/text"]) == (60, 0)
    assert lasting(first) == lasting(second)


def described(name: str, *words: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(words))


@pytest.mark.slow(but=["bf16-mixed"])
@PRECISIONS
def test_an_evaluation_repeats_the_run_s_metrics(
    precision: str, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    recorded = read_metrics(finished(precision))
    own = {name: value for name, value in recorded.items() if name.startswith("test/")}
    for kind, tolerance in (("gpu", 1e-6), ("cpu", 1e-5)):
        if kind == "gpu" or precision == "32-true":
            words = [f"run={finished(precision)}", f"output={tmp_path / kind}", f"device={kind}", "resamples=100"]
            found = evaluation.evaluate(described("evaluate", *words), {})
            assert {name: found[name] for name in own} == close(own, tolerance)


@pytest.mark.slow
def test_what_parts_do_is_what_they_do_on_the_cpu(finished: Callable[[str], Path]) -> None:
    item = Item(noise(2.1, 1), "every green ball")
    found = []
    for kind in (NAME, "cpu"):
        predictor = Predictor.load(finished("32-true"), device=kind)
        said = predictor(item.audio, item.text)
        assert isinstance(said, Prediction)
        parts = effects_of(predictor, item, said)
        found.append([part.effect for part in (*parts.words, *parts.moments)])
    assert len(found[0]) > 5
    assert found[0] == pytest.approx(found[1], abs=1e-5)


RECORDINGS = [noise(seconds, seed) for seed, seconds in enumerate((0.3, 2.1, 0.9, 1.4))]
SAID = ["", "every green ball", "calm", "I can't, no"]


def predicted(run_dir: Path, kind: str) -> list[Prediction]:
    found = Predictor.load(run_dir, device=kind)(RECORDINGS, SAID)
    assert isinstance(found, list)
    return found


@pytest.mark.slow(but=["bf16-mixed"])
@PRECISIONS
def test_predictions_are_the_cpu_s(precision: str, finished: Callable[[str], Path], pretend: Pretend) -> None:
    with pretend.watched() as seen:
        there = predicted(finished(precision), NAME)
    assert seen.runs
    here = predicted(finished(precision), "cpu")
    for mine, its in zip(there, here, strict=True):
        tolerance = 1e-5 if precision == "32-true" else 0.05
        assert mine.probabilities == pytest.approx(its.probabilities, abs=tolerance)
        assert sum(mine.probabilities.values()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow(but=["ctc"])
@pytest.mark.parametrize("recogniser", [ctc, whisper])
def test_recordings_are_transcribed_there(
    recogniser: Callable[[Path], Path], device: torch.device, tmp_path: Path
) -> None:
    checkpoint = str(recogniser(tmp_path / "asr"))
    there, here = (Transcriber(checkpoint, where) for where in (device, torch.device("cpu")))
    heard = there(RECORDINGS[1:3])
    assert heard == here(RECORDINGS[1:3])
    assert all(isinstance(text, str) and text for text in heard)


def analysed(run_dir: Path, kind: str, parts: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The tables of analyses of a run."""
    ids = pd.read_csv(run_dir / "predictions.csv")["id"]
    quick = ["correlation.draws=100", "contribution.shuffles=2", "attribution.steps=8", "attribution.tolerance=1.0"]
    words = [f"run={run_dir}", f"device={kind}", "side=all", f"examples.ids=[{ids[0]}]", f"parts=[{','.join(parts)}]"]
    config = OmegaConf.to_container(described("analyze", *words, *quick), resolve=True)
    done = analyses.analyze(config)  # type: ignore[arg-type]
    assert not [part.left_out for part in done if part.left_out]
    tables = {(part.name, finding.name): finding.table for part in done for finding in part.findings}
    return {" ".join(name): table for name, table in tables.items()}


@pytest.mark.slow(but=["bf16-mixed"])
@PRECISIONS
def test_analyses_are_the_cpu_s(precision: str, finished: Callable[[str], Path]) -> None:
    if precision == "32-true":
        there = analysed(finished(precision), "gpu", QUESTIONS)
        of_the_network = ("alignment", "contribution", "attention", "attribution", "gradcam")
        here = analysed(finished(precision), "cpu", of_the_network)
        for name, table in here.items():
            pd.testing.assert_frame_equal(there[name], table, atol=1e-4, rtol=1e-4, obj=name)
    else:
        there = analysed(finished(precision), "gpu", ["alignment", "attribution"])
    for name, table in there.items():
        assert len(table) > 0, name
        assert not np.isinf(table.select_dtypes("number").to_numpy()).any(), name
