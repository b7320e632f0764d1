"""Whole runs on a slice of the demo corpus."""

import itertools
import math
import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from filelock import FileLock
from omegaconf import OmegaConf
from sklearn.metrics import accuracy_score, f1_score, recall_score
from torch import Tensor

from fourm_ser.config import build, take_hashes
from fourm_ser.data.batch import Batch, Raw
from fourm_ser.data.content import digest_of
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.data.splits import write_split
from fourm_ser.encoders import checkpoints
from fourm_ser.encoders.text import TextStem
from fourm_ser.errors import InputError
from fourm_ser.files import write_text
from fourm_ser.losses.center import CenterLoss
from fourm_ser.models.directory import load_model
from fourm_ser.runs import results
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.training import experiment
from fourm_ser.training.experiment import Experiment, resume, run
from fourm_ser.training.loggers import EpochTable
from fourm_ser.training.module import EmotionModule
from tests.conftest import Compose, draw_again
from tests.processes import ended, started
from tests.training.runs import lasting, read_metrics

pytestmark = pytest.mark.usefixtures("no_figures")

SHORT = ["stage.transfer.epochs=2", "stage.finetune.epochs=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, composed: Compose, slice_of_demo: list[str]) -> Path:
    """A run of both stages, with its figures."""
    run_dir = tmp_path_factory.mktemp("run") / "first"
    with pytest.MonkeyPatch.context() as patched:
        draw_again(patched, results)
        run(composed(*slice_of_demo, *SHORT), run_dir)
    return run_dir


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    for name in ("config.yaml", "train.log", "metrics.json", "predictions.csv", "confusion_matrix.png"):
        assert (finished / name).stat().st_size > 0
    for stage in ("0-transfer", "1-finetune"):
        assert (finished / "stages" / stage / "checkpoints" / "best.ckpt").is_file()
        assert (finished / "stages" / stage / "checkpoints" / "last.ckpt").is_file()
        table = pd.read_csv(finished / "stages" / stage / "metrics.csv")
        assert table["epoch"].tolist() == [1, 2]
        assert table[["train/loss", "val/loss", "val/ua"]].notna().all(axis=None)
    assert "${" not in (finished / "config.yaml").read_text()
    metrics = read_metrics(finished)
    assert metrics["finished"] is True
    assert metrics["speaker_independent"] is True
    assert metrics["weights"] == "random"
    assert {"seconds/transfer", "seconds/finetune", "encoded/text", "encoded/audio", "test/ece"} <= set(metrics)


def test_the_metrics_are_those_of_the_predictions(finished: Path) -> None:
    metrics, table = read_metrics(finished), pd.read_csv(finished / "predictions.csv")
    emotions = ["anger", "happiness", "sadness", "neutral"]
    assert table[emotions].sum(axis=1).to_numpy() == pytest.approx(1.0, abs=1e-5)
    assert (table[emotions].idxmax(axis=1) == table["predicted"]).all()
    labels, predicted = table["emotion"], table["predicted"]
    recalls = recall_score(labels, predicted, average=None, labels=emotions)
    assert metrics["test/ua"] == pytest.approx(recalls.mean())
    assert metrics["test/wa"] == pytest.approx(accuracy_score(labels, predicted))
    assert metrics["test/f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert [metrics[f"test/recall/{emotion}"] for emotion in emotions] == pytest.approx(recalls.tolist())
    assert set(table["speaker"]) == {"Ses01F", "Ses01M"}


@pytest.mark.parametrize("loss", ["ce", "arcface"])
def test_the_model_directory_predicts_what_the_run_predicted(
    loss: str, finished: Path, tmp_path: Path, cache: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    if loss != "ce":  # it brings a classifier of its own
        finished = tmp_path / "run"
        run(composed(*slice_of_demo, "stage=transfer", "stage.transfer.epochs=1", f"loss={loss}"), finished)
    moved = tmp_path / "elsewhere"
    shutil.copytree(finished / "model", moved)
    assert not [path for path in moved.rglob("*") if path.suffix in (".pt", ".ckpt", ".bin", ".pkl")]
    network, emotions, _ = load_model(moved, tmp_path / "empty cache")
    data = EmotionDataModule(build(composed(*slice_of_demo).data, cache=cache), pin_memory=False, seed=0)
    data.setup()
    readers = data.readers()
    data.serve({name: Raw(readers[name], encoder.frontend) for name, encoder in network.by_modality.items()}, 7)
    table = pd.read_csv(finished / "predictions.csv").set_index("id")
    with torch.inference_mode():
        for batch in data.test_dataloader():
            probabilities = network(batch.text, batch.audio).logits.softmax(1)
            expected = table.loc[data.corpus.frame["id"].iloc[batch.rows.tolist()], emotions].to_numpy()
            assert probabilities.numpy() == pytest.approx(expected, abs=1e-5)


def test_the_same_seed_gives_the_same_metrics_and_encodes_nothing_again(
    finished: Path, tmp_path: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    again = run(composed(*slice_of_demo, *SHORT), tmp_path / "again")
    assert lasting(again) == lasting(read_metrics(finished))
    assert again["encoded/text"] == again["encoded/audio"] == 0


@pytest.mark.slow
def test_seeds_losses_and_fusions_share_the_store(
    finished: Path, tmp_path: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    one_epoch = [*slice_of_demo, "stage=transfer", "stage.transfer.epochs=1"]
    seeded = run(composed(*one_epoch, "seed=1"), tmp_path / "seed")
    centered = run(composed(*one_epoch, "loss=ce_center"), tmp_path / "loss")
    audio = run(composed(*one_epoch, "fusion=audio_attention"), tmp_path / "fusion")
    assert seeded["encoded/text"] == seeded["encoded/audio"] == 0
    assert centered["encoded/text"] == centered["encoded/audio"] == 0
    assert audio["encoded/audio"] == 0
    assert "encoded/text" not in audio
    assert {"test/loss/ce", "test/loss/center"} <= set(centered)
    assert seeded["test/loss"] != read_metrics(finished)["test/loss"]


@pytest.mark.slow
def test_center_losses_draw_classes_together(tmp_path: Path, composed: Compose, slice_of_demo: list[str]) -> None:
    voices = ["data.emotions=[anger,sadness]", "data.drop_other=true"]  # which the voice alone tells apart
    voices = [*voices, "augment=none", "optimizer.lr=2e-3", "optimizer.weight_decay=0.1"]
    stage = ["stage=transfer", *(f"stage.transfer.{word}" for word in ("epochs=12", "patience=null", "batch_size=12"))]
    ratio = {}
    for loss in ("ce", "ce_center", "ce_contrastive_center"):
        run(composed(*slice_of_demo, *voices, *stage, f"loss={loss}"), tmp_path / loss)
        table = pd.read_csv(tmp_path / loss / "stages" / "0-transfer" / "metrics.csv")
        ratio[loss] = table["val/intra_inter"].iloc[-1]
    assert 0 < ratio["ce_center"] < 0.95 * ratio["ce"]
    assert 0 < ratio["ce_contrastive_center"] < 0.95 * ratio["ce"]


def test_batches_accumulate_into_optimizer_steps(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[float]] = []
    take = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: Any, **others: Any) -> Any:
        steps.append([group["lr"] for group in self.param_groups])
        return take(self, *arguments, **others)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    stage = [f"stage.transfer.{words}" for words in ("epochs=2", "batch_size=20", "accumulate=3")]
    run(composed(*slice_of_demo, "stage=transfer", *stage), tmp_path)
    batches = int(re.findall(r"batches: (\d+) of", (tmp_path / "train.log").read_text())[0])
    assert batches > 3
    _, *taken = steps  # the first is the rehearsal's
    assert len(taken) == 2 * math.ceil(batches / 3)
    assert len({rate for (rate, *_) in taken}) == len(taken)  # the schedule goes on with every step of the optimizer


def test_a_loss_that_is_not_finite_ends_the_run_with_what_there_is_to_know(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    take = CenterLoss.forward

    def forward(self: CenterLoss, logits: Tensor, features: Any, labels: Tensor) -> dict[str, Tensor]:
        terms = take(self, logits, features, labels)
        seen.append(self.training)
        return {name: value * math.nan for name, value in terms.items()} if len(seen) > 30 else terms

    seen: list[bool] = []
    monkeypatch.setattr(CenterLoss, "forward", forward)
    stage = ["stage=transfer", "stage.transfer.epochs=90", "stage.transfer.batch_size=32"]
    config = composed(*slice_of_demo, *stage, "loss=ce_center")
    with pytest.raises(
        InputError, match=r"total, center became NaN .* stage transfer \((train|validation), epoch"
    ) as caught:
        run(config, tmp_path)
    said = str(caught.value)
    checkpoint = Path(re.findall(r"last good checkpoint: (\S+ckpt)\.", said)[0])
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())
    ids = re.findall(r"The batch: (.+?)\. ", said)[0].split(", ")
    assert 1 <= len(ids) <= 32
    data = build(config.data, cache=Path(config.cache))
    data.load()
    assert set(ids) <= set(data.frame["id"])
    assert not (tmp_path / "metrics.json").exists()


def test_a_frozen_half_is_read_from_the_store_while_the_other_half_trains(
    finished: Path, tmp_path: Path, composed: Compose, slice_of_demo: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: TextStem, inputs: Any) -> None:
        raise AssertionError("a stored encoder was run")

    monkeypatch.setattr(TextStem, "forward", never)
    config = composed(*slice_of_demo, *SHORT, "stage.finetune.unfreeze.text=none")
    metrics = run(config, tmp_path / "run")
    assert metrics["encoded/text"] == 0
    before = torch.load(tmp_path / "run/stages/0-transfer/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "run/stages/1-finetune/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    trained = [name for name in after if name.startswith("network.encoders.audio.stem.")]
    assert trained
    assert not set(trained) & set(before)  # what never trained is not in a checkpoint
    assert not [name for name in after if name.startswith("network.encoders.text")]


def test_two_stage_goes_on_from_the_best_of_transfer(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    still = ["stage.finetune.unfreeze={text: none, audio: none}", "optimizer@stage.finetune.optimizer=sgd"]
    config = composed(*slice_of_demo, *SHORT, *still, "stage.finetune.optimizer.lr=0.0", "stage.finetune.epochs=1")
    run(config, tmp_path)
    best = torch.load(tmp_path / "stages/0-transfer/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    last = torch.load(tmp_path / "stages/1-finetune/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    parameters = [name for name in best if name.startswith("network.")]
    assert parameters
    assert all(torch.equal(best[name], last[name]) for name in parameters)


def test_a_run_leaves_a_split_that_another_run_repeats_with_balanced_classes(
    finished: Path, tmp_path: Path, composed: Compose, slice_of_demo: list[str], cache: Path
) -> None:
    corpus = build(composed(*slice_of_demo).data, cache=cache)
    corpus.setup()
    write_split(corpus.frame, corpus.split, tmp_path / "split.csv")
    short = ["stage=transfer", "stage.transfer.epochs=1", "data.sampler=balanced", "data.split=random"]
    metrics = run(composed(*slice_of_demo, *short, f"data.split_file={tmp_path / 'split.csv'}"), tmp_path / "run")
    assert (metrics["split"], metrics["validation"], metrics["corpus"]) == ("file", "file", "demo")
    assert metrics["speaker_independent"] is True
    tested = pd.read_csv(tmp_path / "run" / "predictions.csv")["id"]
    assert set(tested) == set(pd.read_csv(finished / "predictions.csv")["id"])
    assert metrics["encoded/text"] == metrics["encoded/audio"] == 0


@pytest.mark.slow
def test_a_text_encoder_of_another_language_is_warned_of(
    finished: Path, tmp_path: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    assert "the corpus speaks" not in (finished / "train.log").read_text()
    short = [*slice_of_demo, "stage=transfer", "stage.transfer.epochs=1", "fusion=text_attention"]
    for languages, warned in (("[en,zh]", False), ("[zh]", True)):
        metrics = run(composed(*short, f"+encoder.text.languages={languages}"), tmp_path / languages)
        warning = f"encoder.text.languages={languages}: the corpus speaks en. Is encoder.text.checkpoint the right one?"
        # The log is wrapped to its width.
        assert (warning in " ".join((tmp_path / languages / "train.log").read_text().split())) is warned
        assert metrics["encoded/text"] == 0


def resume_and_die(run_dir: Path, stage: str) -> None:
    """A process whose run dies in a stage as soon as the stage's table has three epochs."""

    def write(self: EpochTable, metrics: Any, step: int | None = None, own: Any = EpochTable.log_metrics) -> None:
        own(self, metrics, step)
        if self.path.parent.name == stage and len(self.rows) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    EpochTable.log_metrics = write  # type: ignore[method-assign]
    resume(run_dir)


@pytest.mark.slow(but=["alone"])
@pytest.mark.parametrize("workers", [0, 1], ids=["alone", "with a worker"])
def test_a_run_killed_in_each_stage_ends_as_if_undisturbed(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str], workers: int
) -> None:
    config = composed(
        *slice_of_demo,
        "loss=ce_center",
        "scheduler=step",
        "scheduler.epochs=2",
        "scheduler@stage.finetune.scheduler=plateau",
        "stage.finetune.scheduler.patience=1",
        "stage.finetune.accumulate=2",
        "stage.transfer.epochs=5",
        "stage.finetune.epochs=5",
        "data.utterances=60",
        f"data.workers={workers}",
        "augment=waveform",
        "augment.copies=1",
        "augment.mixup=0.2",
        "augment.spec={time: 0.1, feature: 0.1}",
    )
    undisturbed = run(config, tmp_path / "undisturbed")
    killed = tmp_path / "killed"
    write_text(killed / "config.yaml", OmegaConf.to_yaml(OmegaConf.load(tmp_path / "undisturbed" / "config.yaml")))
    for stage in ("0-transfer", "1-finetune"):
        assert ended(started(resume_and_die, killed, stage)) == -signal.SIGKILL
        assert len(pd.read_csv(killed / "stages" / stage / "metrics.csv")) == 3
        assert not (killed / "stages" / stage / "finished.json").is_file()
    assert not (killed / "metrics.json").is_file()
    assert lasting(resume(killed)) == lasting(undisturbed)
    last = torch.load(killed / "stages" / "1-finetune" / "checkpoints" / "last.ckpt", weights_only=True)
    epochs = pd.read_csv(killed / "stages" / "1-finetune" / "metrics.csv")
    assert last["lr_schedulers"][0]["best"] == pytest.approx(epochs["val/ua"].max(), abs=1e-6)  # told of every epoch
    for stage in ("0-transfer", "1-finetune"):
        table = Path("stages") / stage / "metrics.csv"
        pd.testing.assert_frame_equal(pd.read_csv(killed / table), pd.read_csv(tmp_path / "undisturbed" / table))


def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    before = (finished / "metrics.json").stat().st_mtime_ns
    assert resume(finished) == read_metrics(finished)
    assert (finished / "metrics.json").stat().st_mtime_ns == before


def test_a_directory_with_a_run_of_another_config_is_refused(
    finished: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    with pytest.raises(InputError, match="another config"):
        run(composed(*slice_of_demo, *SHORT, "seed=5"), finished)


def test_a_run_that_ended_before_it_began_leaves_its_directory_to_another(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(experiment: Experiment) -> None:
        raise InputError("no disk")

    with monkeypatch.context() as patched:
        patched.setattr(Experiment, "_build", refuse)
        with pytest.raises(InputError, match="no disk"):
            run(composed(*slice_of_demo, *SHORT, "data.utterances=40"), tmp_path)
    assert (tmp_path / "corpus.csv").is_file()
    for words in (["stage.transfer.learning_rate=-1"], ["fusion.heads=5"]):  # each is told of its own
        with pytest.raises(InputError, match=words[0].replace(".", r"\.")) as told:
            run(composed(*slice_of_demo, *SHORT, *words), tmp_path)
        assert str(tmp_path) not in str(told.value)
        assert (tmp_path / "config.yaml").is_file()
    metrics = run(composed(*slice_of_demo, *SHORT, "seed=5"), tmp_path)
    assert metrics["finished"] is True
    assert RunDirectory(tmp_path).read_record().seed == 5
    assert not (tmp_path / "failure.json").is_file()
    (tmp_path / "metrics.json").unlink()  # as if it had not ended
    with pytest.raises(InputError, match="another config"):
        run(composed(*slice_of_demo, *SHORT, "seed=6"), tmp_path)


def test_damaged_results_of_a_finished_run_are_named(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    for damaged in ((finished / "metrics.json").read_text()[:100], "{}"):
        write_text(tmp_path / "copy" / "metrics.json", damaged)
        with pytest.raises(InputError, match=r"metrics\.json: is damaged \(.*Delete it and start the run again"):
            resume(tmp_path / "copy")


def test_a_record_without_a_hash_of_its_weights_is_of_the_same_run(finished: Path, composed: Compose) -> None:
    asked, recorded = (composed("encoder=bert_panns", "encoder.weights=random") for _ in range(2))
    recorded.encoder.audio.digest = None
    take_hashes(recorded, asked)
    assert recorded == asked
    recorded.encoder.audio.digest = "0123"
    take_hashes(recorded, asked)
    assert recorded != asked


@pytest.mark.parametrize(("own_process", "key"), [(True, True), (True, False), (False, True)])
def test_freed_memory_is_kept_by_a_process_of_its_own_that_may(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, composed: Compose, own_process: bool, key: bool
) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(experiment, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(experiment.Experiment, "run", lambda self: {"speaker_independent": True})
    config = composed("trainer.accelerator=cpu", f"trainer.keep_freed_memory={key}")
    run(config, tmp_path, own_process=own_process)
    assert kept == [True] * (own_process and key)


def test_limits_of_batches_hold_in_the_test(tmp_path: Path, composed: Compose, slice_of_demo: list[str]) -> None:
    words = ["+trainer.limit_test_batches=1", "+trainer.limit_val_batches=0.5"]
    run(
        composed(*slice_of_demo, "stage=transfer", "stage.transfer.epochs=1", "stage.transfer.batch_size=4", *words),
        tmp_path,
    )
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 4


def test_a_second_process_is_kept_out_of_a_run(finished: Path) -> None:
    with FileLock(finished / ".lock"), pytest.raises(InputError, match="another process"):
        resume(finished)


def test_a_moved_unfinished_run_is_refused(finished: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    (moved / "metrics.json").unlink()
    (moved / "stages/1-finetune/finished.json").unlink()
    with pytest.raises(InputError, match="moved"):
        resume(moved)


@pytest.mark.parametrize("over", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize(("column", "told"), [("speaker", "1 speaker changed"), ("side", "1 side changed")])
def test_a_run_does_not_go_on_with_another_corpus(
    finished: Path, tmp_path: Path, over: bool, column: str, told: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    table = pd.read_csv(copy / "corpus.csv", dtype=str, keep_default_na=False)
    table.loc[3, column] = "another"
    table.to_csv(copy / "corpus.csv", index=False)
    (copy / ".corpus.csv.xxh").unlink()
    if not over:
        (copy / "metrics.json").unlink()
    with pytest.raises(InputError, match=rf"corpus .*has changed since.*: {told} \({table['id'][3]}: another, now"):
        resume(copy)


def test_a_run_is_known_by_its_corpus_and_records_where_that_is(finished: Path) -> None:
    metrics, table = read_metrics(finished), RunDirectory(finished).read_corpus()
    assert table is not None
    assert metrics["corpus_hash"] == digest_of(table)
    assert table["side"].value_counts()["test"] == len(pd.read_csv(finished / "predictions.csv"))
    assert Path(str(OmegaConf.load(finished / "config.yaml").cache)).is_absolute()


def test_resuming_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.yaml"):
        resume(tmp_path)


@pytest.mark.slow(but=["folds", "heads", "m2=-1", "patience=0", "many", "2.5", "unfreeze", "last blocks", "split_file"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.fold=9"], "folds 0 to 4"),
        (["data.emotions=[anger,fear]", "data.drop_other=true"], "no utterance of fear"),
        (["data.emotions=[anger,sadness]"], r"100 of 200 .* 50 happiness, 50 neutral"),
        (["encoder.weights=pretrained"], "tiny_lstm has random weights only"),
        (["encoder=bert_wav2vec"], r"bert-base-uncased.*PATH.*encoder\.weights=random"),
        (["encoder.text.layer=5"], r"encoder\.text\.layer=5: expected last, weighted or a layer from 0 to 2"),
        (["encode.precision=8"], r"encode\.precision=8: expected auto, 32, bf16 or 16"),
        (["fusion=self_attention", "fusion.heads=5"], r"fusion\.heads=5"),
        (
            ["fusion=text_attention", "loss=ce_center", "loss.terms.center.on=[audio]"],
            r"center\.on=\[audio\]: the fusion gives",
        ),
        (["loss=ce", "loss.class_weights=[1,2]"], r"loss\.class_weights=\[1, 2\].*4"),
        (["loss=ce_center", "loss.alpha=1.5"], r"loss\.alpha=1\.5: expected a number from 0 to 1"),
        (["loss=arcface", "loss.m2=-1"], r"loss\.m2=-1"),
        (["loss=center"], "trains no classifier"),
        (["stage.transfer.patience=0"], r"patience=0: expected more than 0, or null"),
        (["stage.transfer.patience=soon"], r"patience=soon: expected more than 0, or null"),
        (["stage.transfer.batch_size=many"], r"stage.transfer.batch_size=many: expected a whole number, 1 or more"),
        (["stage.transfer.epochs=2.5"], r"epochs=2.5: expected a whole number, 1 or more"),
        (["stage.transfer.unfreeze=all"], r"stage.transfer.unfreeze: expected the keys text and audio, found all"),
        (["scheduler=plateau", "scheduler.gamma=2"], r"scheduler\.gamma=2"),
        (["+data.colour=red"], "colour"),
        (["+stage.transfer.colour=red"], "unknown key colour"),
        (["stage.transfer.epochs=0"], "epochs=0"),
        (["stage.transfer.unfreeze.text=9"], "last blocks"),
        (["data.split=sentence"], "random, speaker, session, official"),
        (["data.label_map={angry: anger}"], "no emotion angry"),
        (["data.sampler=weighted"], "shuffle or balanced"),
        (["data.emotions=anger"], r"data\.emotions=anger: expected a list"),
        (["data.max_seconds=-1"], r"data\.max_seconds=-1: expected"),
        (["data.split_file=nowhere.csv"], r"data\.split_file=/.*nowhere\.csv: no such file"),
        (["data.language=de"], "no utterance of anger"),
    ],
)
def test_bad_choices_are_named_before_training(
    overrides: list[str], message: str, tmp_path: Path, composed: Compose, slice_of_demo: list[str]
) -> None:
    pair = overrides == ["encoder=bert_wav2vec"]
    chosen = [choice for choice in slice_of_demo if not (pair and choice.startswith("encoder."))]
    with pytest.raises(InputError, match=message):
        run(composed(*chosen, *SHORT, *overrides), tmp_path)
    assert not (tmp_path / "stages").exists()
    assert "ERROR" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize(
    ("pair", "words", "message"),
    [
        ("bert_whisper_base", ["context=whole"], r"\.context=whole: expected full or own"),
        ("bert_whisper_base", ["layer=middle"], r"\.layer=middle: expected last, weighted, a layer"),
        ("bert_wav2vec", ["layer=-1"], r"\.layer=-1: expected last, weighted, a layer"),
        (
            "bert_wav2vec",
            ["weights=random", "architecture.model_type=sew-d"],
            r"\.layerdrop=0\.1: .* can skip no layers",
        ),
        ("bert_mel_cnn", ["weights=pretrained"], r"\.weights=pretrained: mel_cnn has random weights only"),
        ("bert_mel_cnn", ["strides=[[2, 2]]"], r": 4 channels and 1 strides"),
        ("bert_mel_cnn", ["frontend.level=loud"], r"\.frontend\.level=loud: expected"),
        ("bert_lstm_mel", ["weights=elsewhere"], r"\.weights=elsewhere: lstm_mel has random weights only"),
        ("prosody_cnn", ["kernel=4"], r"\.kernel=4: expected an odd number"),
    ],
)
def test_a_wrong_key_of_one_encoder_is_named_before_anything_is_fetched_for_the_other(
    pair: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    composed: Compose,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*arguments: Any, **others: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(checkpoints, "_look_up", never)
    chosen = [f"encoder={pair}", "encoder/text=bert", "encoder.text.weights=pretrained", "fusion=self_attention"]
    config = composed(f"cache={cache}", "trainer=cpu", *chosen, *(f"encoder.audio.{word}" for word in words))
    with pytest.raises(InputError, match=rf"^encoder\.audio{message}"):
        run(config, tmp_path)
    assert not (tmp_path / "config.yaml").exists()


def test_a_key_without_a_value_is_named(tmp_path: Path, composed: Compose) -> None:
    with pytest.raises(InputError, match=r"Add data\.manifest="):
        run(composed("data=manifest"), tmp_path)


@pytest.mark.slow
def test_a_pair_with_random_weights_needs_no_hub(tmp_path: Path, composed: Compose, cache: Path) -> None:
    small = ["hidden_size=32", "num_hidden_layers=2", "num_attention_heads=2", "intermediate_size=32"]
    config = composed(
        f"cache={cache}",
        "data.utterances=40",
        "data.workers=0",
        "trainer=cpu",
        "trainer.precision=32-true",
        "encoder=bert_wav2vec",
        "encoder.weights=random",
        "loss=ce_center",
        *[f"encoder.{modality}.architecture.{field}" for modality in ("text", "audio") for field in small],
        "+encoder.audio.architecture.conv_dim=[16,16,16,16,16,16,16]",
        *SHORT,
    )
    metrics = run(config, tmp_path)
    assert metrics["finished"] is True
    assert "serves instead" in (tmp_path / "train.log").read_text()


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.slow
def test_the_pairs_of_a_study_encode_with_each_encoder_once(tmp_path: Path, composed: Compose, cache: Path) -> None:
    texts, audios = ("bert", "roberta"), ("vggish", "hubert", "wav2vec", "wavlm")
    encoded: Counter[str] = Counter()
    first = {"text": set[str](), "audio": set[str]()}
    for text, audio in itertools.product(texts, audios):
        halves = ["text"] if audio == "vggish" else ["text", "audio"]
        config = composed(
            f"cache={cache}",
            "data.utterances=40",
            "data.workers=0",
            "trainer=cpu",
            "trainer.precision=32-true",
            "encode.precision=32",
            f"encoder={text}_{audio}",
            "encoder.weights=random",
            "encoder.init_seed=7",  # of no other test's encoders
            *[f"encoder.{half}.architecture.{field}={value}" for half in halves for field, value in SMALL.items()],
            *(["+encoder.audio.architecture.conv_dim=[16,16,16,16,16,16,16]"] if "audio" in halves else []),
            "stage=transfer",
            "stage.transfer.epochs=1",
        )
        metrics = run(config, tmp_path / f"{text}_{audio}")
        assert metrics["finished"] is True
        for half, name in (("text", text), ("audio", audio)):
            encoded[half] += metrics[f"encoded/{half}"]
            assert (metrics[f"encoded/{half}"] > 0) == (name not in first[half])
            first[half].add(name)
    corpus = build(config.data, cache=cache)
    corpus.setup()
    keys = EmotionDataModule(corpus, pin_memory=False, seed=0).keys()
    assert encoded == {"text": 2 * len(set(keys["text"])), "audio": 4 * len(set(keys["audio"]))}
    assert len(set(keys["audio"])) == 40


@pytest.mark.slow
def test_features_in_bf16_have_a_store_of_their_own(
    kernels: str, tmp_path: Path, composed: Compose, slice_of_demo: list[str], cache: Path
) -> None:
    def folders() -> set[str]:
        return {path.name for path in (cache / "embeddings").glob("tiny_*") if list(path.glob("shard-*"))}

    own = f"encoder.init_seed={12 if kernels == 'refused kernels' else 11}"  # encoders of no other test
    short = [*slice_of_demo, "data.utterances=40", "stage=transfer", "stage.transfer.epochs=1", own]
    exact = run(composed(*short, "encode.precision=32"), tmp_path / "exact")
    before = folders()
    rough = run(composed(*short, "encode.precision=bf16"), tmp_path / "rough")
    assert exact["finished"] is rough["finished"] is True
    assert min(rough["encoded/text"], rough["encoded/audio"]) > 0
    assert rough["test/loss"] == pytest.approx(exact["test/loss"], rel=0.05)
    new = folders() - before
    assert {name.removesuffix("-bf16") for name in new} <= before
    assert len(new) == 2
    assert all(name.endswith("-bf16") for name in new)
    for run_dir, precision in (("exact", "32"), ("rough", "bf16")):
        assert OmegaConf.load(tmp_path / run_dir / "config.yaml").encode.precision == precision
        assert f"frozen encoders: {precision}" in (tmp_path / run_dir / "train.log").read_text()
    again = run(composed(*short, "encode.precision=bf16", "seed=1"), tmp_path / "again")
    assert again["encoded/text"] == again["encoded/audio"] == 0


def test_a_stage_that_runs_out_of_memory_names_the_batch_and_the_keys_to_lower(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: EmotionModule, batch: Batch) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(EmotionModule, "encode", encode)
    short = [*slice_of_demo, "data.utterances=40", "stage=transfer", "stage.transfer.batch_size=8"]
    message = r"stage transfer: cpu ran out of memory over a batch of 8 utterances \([\d.]+ s .*transfer\.batch_size"
    with pytest.raises(InputError, match=message):
        run(composed(*short), tmp_path / "run")
    assert "ran out of memory" in (tmp_path / "run" / "failure.json").read_text()


@pytest.mark.parametrize("key", ["trainer.tf32", "trainer.compile", "encode.tf32"])
def test_a_switch_that_is_none_is_refused(tmp_path: Path, composed: Compose, key: str) -> None:
    with pytest.raises(InputError, match=rf"{key}=maybe: expected true or false"):
        run(composed("trainer=cpu", f"{key}=maybe"), tmp_path / "run")


def test_a_layer_is_chosen_on_the_command_line(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str], cache: Path
) -> None:
    short = [*slice_of_demo, "data.utterances=40", "fusion=text_attention", "stage=transfer", "stage.transfer.epochs=1"]
    run(composed(*short, "encoder.text.layer=weighted"), tmp_path / "run")
    best = torch.load(tmp_path / "run/stages/0-transfer/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    weights = best["network.encoders.text.top.weights"]
    assert weights.shape == (3,)
    assert weights.abs().min() > 0  # they were zero, and trained while the stem was frozen
    network = load_model(tmp_path / "run" / "model", cache).network
    (loaded,) = network.by_modality["text"].top.parameters()
    assert torch.equal(loaded, weights)


def test_mixed_precision_trains_on_a_cpu(tmp_path: Path, composed: Compose, slice_of_demo: list[str]) -> None:
    chosen = [choice for choice in slice_of_demo if not choice.startswith(("trainer.precision", "data.utterances"))]
    config = composed(*chosen, "data.utterances=40", "trainer.precision=bf16-mixed", "stage=finetune", *SHORT[1:])
    metrics = run(config, tmp_path)
    assert metrics["finished"] is True
    assert 0 < metrics["test/loss"] < 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fusion=self_attention", "fusion.heads=7"], r"fusion\.heads=7: does not divide .*Expected one of 1, 2, 4"),
        (
            ["encoder=bert_vggish", "encoder.weights=random", "fusion=self_attention", "fusion.heads=5"],
            r"fusion\.heads=5: does not divide",
        ),
        (
            ["loss=ce_center", "loss.terms.center.on=[audio]", "fusion=text_attention"],
            r"loss\.terms\.center\.on=\[audio\]",
        ),
        (["loss.class_weights=[1,2,3]"], r"loss\.class_weights=\[1, 2, 3\]: expected 4 numbers"),
        (["loss=center"], "trains no classifier"),
        (["head.layers=[0]"], r"head\.layers\[0\]=0: expected a whole number from 1"),
        (["loss=ce_center", "loss.weighting=convex", "loss.alpha=1.5"], r"loss\.alpha=1\.5"),
        (["loss=arcface", "loss.scale=-1"], r"loss\.scale=-1"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    tmp_path: Path, composed: Compose, words: list[str], message: str
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match=message):
        run(composed(f"cache={cache}", "trainer=cpu", *words), tmp_path / "run")
    assert not cache.exists()
