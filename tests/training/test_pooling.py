"""Runs whose features are pooled over time, and runs without a store."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fourm_ser.analysis.analyses import analyze
from fourm_ser.encoders.text import TextStem
from fourm_ser.errors import InputError
from fourm_ser.models.directory import load_model
from fourm_ser.prediction.predictor import Predictor
from fourm_ser.runs.evaluation import evaluate
from fourm_ser.runs.finished import OpenRun
from fourm_ser.training.experiment import run
from tests.conftest import CONF, Compose

pytestmark = pytest.mark.usefixtures("no_figures")

# The text stays frozen throughout, the audio trains in the second stage.
STAGES = ["stage.transfer.epochs=1", "stage.finetune.epochs=1", "stage.finetune.unfreeze={text: none, audio: all}"]
FEW = ["data.utterances=80", "encode.pool={text: mean, audio: mean_std}", "fusion=attentive_statistics"]
VARIANTS = {"stored": [], "computed": ["encode.store=false"]}


@pytest.fixture(scope="module")
def short(slice_of_demo: list[str]) -> list[str]:
    words = [word for word in slice_of_demo if not word.startswith(("fusion.", "data.utterances", "cache="))]
    return [*words, *FEW, *STAGES]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, composed: Compose, short: list[str]) -> dict[str, Path]:
    """The same run with a store and without, each with a cache of its own."""
    folder = tmp_path_factory.mktemp("pooled")
    for name, words in VARIANTS.items():
        run(composed(*short, *words, f"cache={folder / name}-cache"), folder / name)
    return {name: folder / name for name in VARIANTS}


def embeddings(run_dir: Path) -> list[Path]:
    return sorted((run_dir.parent / f"{run_dir.name}-cache" / "embeddings").glob("*"))


def metrics_of(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    return {name: value for name, value in found.items() if not name.startswith("seconds/")}


@pytest.mark.slow
def test_a_run_without_a_store_gives_the_same_metrics_and_writes_no_features(runs: dict[str, Path]) -> None:
    stored, computed = (metrics_of(runs[name]) for name in VARIANTS)
    halves = ("encoded/text", "encoded/audio")
    assert min(stored.pop(half) for half in halves) > 0
    assert [computed.pop(half) for half in halves] == [0, 0]
    assert computed == pytest.approx(stored, abs=1e-5, nan_ok=True)
    assert len(embeddings(runs["stored"])) == 2
    assert not embeddings(runs["computed"])
    first, second = (pd.read_csv(runs[name] / "predictions.csv").select_dtypes(float) for name in VARIANTS)
    assert first.shape[1] == 4
    pd.testing.assert_frame_equal(first, second, atol=1e-4)


@pytest.mark.slow
def test_features_are_stored_pooled_and_a_later_run_encodes_nothing(
    runs: dict[str, Path], tmp_path: Path, composed: Compose, short: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = OpenRun(runs["stored"])
    widths = {modality: encoder.dim for modality, encoder in opened.network.by_modality.items()}
    assert widths == {"text": 32, "audio": 2 * 2 * 16}
    for batch in opened.batches(opened.network, opened.corpus.rows("test")):
        assert batch.text is not None
        assert batch.text.features.shape == (len(batch.rows), 1, 32)  # type: ignore[union-attr]

    def never(self: TextStem, inputs: Any) -> None:
        raise AssertionError("a stored encoder was run")

    monkeypatch.setattr(TextStem, "forward", never)
    cache = runs["stored"].parent / "stored-cache"
    again = run(composed(*short, f"cache={cache}", "seed=1"), tmp_path)
    assert again["encoded/text"] == again["encoded/audio"] == 0
    log = " ".join((runs["stored"] / "train.log").read_text().split())
    assert "utterances to encode with" in log
    assert "of disk (" in log


@pytest.mark.slow(but=["computed"])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_comes_after_training_pools_alike_and_keeps_a_store_or_none(
    name: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    before = [path.name for path in embeddings(runs[name])]
    conditions = load_model(runs[name] / "model", tmp_path / "other").conditions
    assert conditions.store is (name == "stored")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", [f"run={runs[name]}", f"output={tmp_path / 'evaluation'}", "resamples=10"])
    found, own = evaluate(config, {}), metrics_of(runs[name])
    for metric in ("test/ua", "test/loss", "test/ece"):
        assert found[metric] == pytest.approx(own[metric], abs=1e-5)
    predictor = Predictor.load(runs[name], device="cpu", cache=tmp_path / "other")
    predicted = predictor(text=["calm", "every happy door"], audio=[np.full(16_000, 0.1), np.full(9_000, 0.1)])
    assert len(predicted) == 2
    assert [path.name for path in embeddings(runs[name])] == before


@pytest.mark.slow
def test_analyses_of_moments_and_words_show_the_whole_utterance(runs: dict[str, Path], tmp_path: Path) -> None:
    tested = str(pd.read_csv(runs["computed"] / "predictions.csv")["id"].iloc[0])
    words = [f"run={runs['computed']}", f"output={tmp_path}", "parts=[attention,attribution,gradcam]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "analyze", [*words, f"examples.ids=[{tested}]", "attribution.steps=8", "attribution.most_steps=8"]
        )
    given: Any = OmegaConf.to_container(config)
    parts = {part.name: part for part in analyze(given)}
    assert [part.left_out for part in parts.values()] == [""] * 3
    for name in ("attention", "attribution"):
        assert "pooled over time" in parts[name].findings[0].caption
    table = parts["attribution"].findings[0].table
    assert table["word"].dropna().tolist() == ["(the whole text)"]
    assert len(table) == 2
    assert table["start"].iloc[1] == pytest.approx(0, abs=0.01)
    assert not embeddings(runs["computed"])


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_precision_that_changes_what_encoders_read_needs_a_store(
    precision: str, tmp_path: Path, composed: Compose, short: list[str]
) -> None:
    config = composed(*short, "encode.store=false", f"trainer.precision={precision}", f"cache={tmp_path}")
    with pytest.raises(InputError, match=rf"trainer\.precision={precision}: .*encode\.store=false"):
        run(config, tmp_path / "run")
