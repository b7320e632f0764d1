"""Sweeps as a user starts them: many jobs of one command, and one run of several processes."""

import csv
import json
import math
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fourm_ser import train
from fourm_ser.config import build
from fourm_ser.data.corpora.demo import synthesise
from fourm_ser.data.manifest import write_manifest
from fourm_ser.devices import resolve_devices
from fourm_ser.errors import InputError
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.training import sweep_jobs, sweeps
from fourm_ser.training.experiment import run
from tests.conftest import CONF, Compose
from tests.processes import PATIENCE, act, command, ended, started

pytestmark = pytest.mark.usefixtures("no_figures")

CPU = torch.device("cpu")
REPOSITORY = CONF.parent


@pytest.fixture
def small(slice_of_demo: list[str]) -> list[str]:
    """Overrides for jobs of a second."""
    return [*slice_of_demo, "data.utterances=40", "stage=transfer", "stage.transfer.epochs=1"]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()
    sweeps.Sweep.current = None


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["fourm_ser.train", *words])
    monkeypatch.setenv("COLUMNS", "200")
    try:
        train.main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    return 0


def test_a_job_is_called_by_what_varies_and_found_by_its_hash(tmp_path: Path) -> None:
    words = "+x=1,cache=/a b,data.emotions=[anger,sadness],encoder=bert_vggish,seed=0"
    mark = sweep_jobs._cell(words)
    assert len(mark) == 12
    assert sweep_jobs._cell(words, str(tmp_path), "encoder seed") == f"encoder=bert_vggish,seed=0-{mark}"
    assert sweep_jobs._cell(words, str(tmp_path), "data.emotions x") == f"data.emotions=_anger,sadness_,x=1-{mark}"
    assert sweep_jobs._cell(words, str(tmp_path), "cache") == f"cache=_a_b-{mark}"
    long = sweep_jobs._cell("data.manifest=" + "ü/" * 200, str(tmp_path), "data.manifest")
    assert len(long.encode()) <= 140
    (tmp_path / long).mkdir()
    for there in (mark, f"seed=0-{mark}"):  # as earlier versions called it, and where less varied
        (tmp_path / there).mkdir()
        assert sweep_jobs._cell(words, str(tmp_path), "encoder seed") == there
        (tmp_path / there).rmdir()
    assert sweep_jobs._cell(words.replace("seed=0", "seed=1"), str(tmp_path), "seed") != f"seed=0-{mark}"


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "jobs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def times(folder: Path) -> dict[str, int]:
    """When each job's results were written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}


def test_a_failed_job_is_told_and_ends_no_other(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *small, "loss=ce,ce_center", "optimizer.lr=1e30,0.001", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert call(monkeypatch, *words) == 1
    rows = table(tmp_path / "sweep")
    assert [(row["loss"], row["optimizer.lr"], row["state"]) for row in rows] == [
        ("ce", "1e+30", "failed"),
        ("ce", "0.001", "finished"),
        ("ce_center", "1e+30", "failed"),
        ("ce_center", "0.001", "finished"),
    ]
    said = capsys.readouterr().out
    for row in rows:
        folder = tmp_path / "sweep" / row["cell"]
        if row["state"] == "finished":
            metrics = json.loads((folder / "metrics.json").read_text())
            assert float(row["test/ua"]) == metrics["test/ua"]
            continue
        failure = json.loads((folder / "failure.json").read_text())
        assert "NaN" in failure["error"]
        assert f"optimizer.lr={row['optimizer.lr']}" in failure["overrides"]
        mark = row["cell"].rpartition("-")[2]
        assert f"failed: {mark} loss={row['loss']} optimizer.lr=1e+30: {failure['error']}" in said
    assert "2 failed, 2 finished" in said

    before = times(tmp_path / "sweep")
    order = ["-m", "optimizer.lr=0.001", "loss=ce_center,ce", *small, f"hydra.sweep.dir={tmp_path}/sweep"]
    assert call(monkeypatch, *order) == 0
    assert times(tmp_path / "sweep") == before
    assert {row["state"] for row in table(tmp_path / "sweep")} == {"finished"}
    assert "2 jobs, 2 finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_job_is_done_again_and_finished_ones_where_they_are_not_skipped(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order = ["-m", "loss=ce_center,ce", *small, f"hydra.sweep.dir={tmp_path}/sweep"]
    assert call(monkeypatch, *order) == 0
    damaged = next(path for path in (tmp_path / "sweep").glob("*/metrics.json"))
    whole = damaged.read_text()
    damaged.write_text(whole[:100])
    assert call(monkeypatch, *order) == 0
    assert f"{damaged}: is damaged, and written again." in capsys.readouterr().out
    written = json.loads(damaged.read_text())
    tests = {name: value for name, value in json.loads(whole).items() if name.startswith("test/")}
    assert {name: written[name] for name in tests} == tests
    before = times(tmp_path / "sweep")
    assert call(monkeypatch, *order, "loss=ce", "sweep.skip_finished=false") == 0
    (cell,) = (row["cell"] for row in table(tmp_path / "sweep"))
    assert [name for name, at in times(tmp_path / "sweep").items() if at != before[name]] == [cell]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["+lose=ce"], "lose: no such key. Did you mean loss?"),
        (["seed=0,abc"], "seed=abc: expected a whole number"),
        (["encoder.text.checkpoint=X"], "encoder.text.checkpoint=X: is not read"),
    ],
)
def test_what_no_job_can_be_done_with_is_said_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    given = ["-m", "data.fold=0,1", "encoder/text=bert", *words, f"hydra.sweep.dir={tmp_path}/sweep"]
    assert call(monkeypatch, *given) == 1
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not list(tmp_path.glob("sweep/*"))


def test_a_key_that_a_job_s_classes_do_not_read_fails_the_job(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *small, "+loss.alhpa=0.1", "seed=0", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert call(monkeypatch, *words) == 1
    (row,) = table(tmp_path / "sweep")
    assert (row["state"], row["why"].partition(".")[0]) == ("failed", "loss")
    assert "loss.alhpa: no such key" in row["why"]


@pytest.mark.slow
def test_a_job_with_a_missing_recording_says_which(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "corpus" / "manifest.csv", tmp_path / "corpus" / "bad.csv"
    synthesise(good.parent, utterances=40)
    bad.write_text(good.read_text().replace("wav/Ses01F_0001.wav", "wav/nowhere.wav"))
    words = ["-m", "data=manifest", f"data.manifest={bad},{good}", "data.split=session"]
    words += [word for word in small if not word.startswith("data.utterances")]
    assert call(monkeypatch, *words, f"hydra.sweep.dir={tmp_path}/sweep") == 1
    failed, finished = table(tmp_path / "sweep")
    assert (failed["data.manifest"], failed["state"]) == (str(bad), "failed")
    assert "nowhere.wav" in failed["why"]
    assert (finished["data.manifest"], finished["state"]) == (str(good), "finished")


@pytest.mark.parametrize("batches", [[], ["hydra.sweeper.max_batch_size=1"]])
def test_an_option_that_does_not_exist_ends_a_sweep_before_its_first_job(
    batches: list[str],
    tmp_path: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["-m", *small, "loss=ce,centre", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert call(monkeypatch, *words, *batches) == 1
    said = capsys.readouterr().err
    assert "loss=centre" in said
    assert "ce_contrastive_center" in said
    assert not (tmp_path / "sweep").exists()


def test_a_cell_of_another_config_is_not_reused(tmp_path: Path, small: list[str], monkeypatch: Any) -> None:
    words = ["-m", "seed=3", *small, f"hydra.sweep.dir={tmp_path}/sweep"]
    assert call(monkeypatch, *words) == 0
    (record,) = (tmp_path / "sweep").glob("*/config.yaml")
    changed = OmegaConf.load(record)
    changed.optimizer.weight_decay = 0.5
    record.write_text(OmegaConf.to_yaml(changed))
    (record.parent / ".config.yaml.xxh").unlink()
    before = times(tmp_path / "sweep")
    assert call(monkeypatch, *words) == 1
    (row,) = table(tmp_path / "sweep")
    assert row["state"] == "failed"
    assert "another config" in row["why"]
    assert times(tmp_path / "sweep") == before


@pytest.mark.slow
def test_a_finished_job_is_not_skipped_once_its_corpus_changed(
    tmp_path: Path, small: list[str], composed: Compose, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = build(composed(*small).data, cache=cache)
    corpus.load()
    path = tmp_path / "corpus.csv"
    write_manifest(corpus.frame, path)
    own = [word for word in small if not word.startswith("data")]
    words = ["-m", "data=manifest", "data.manifest=corpus.csv", "data.split=session", "data.workers=0", "seed=0", *own]
    words = [*words, f"hydra.sweep.dir={tmp_path}/sweep"]
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *words) == 0
    before = times(tmp_path / "sweep")
    assert call(monkeypatch, *words) == 0
    original = path.read_bytes()
    first, was = corpus.frame["id"].iloc[0], corpus.frame["emotion"].iloc[0]
    now = "anger" if was != "anger" else "sadness"
    write_manifest(corpus.frame.assign(emotion=[now, *corpus.frame["emotion"][1:]]), path)
    assert call(monkeypatch, *words) == 1
    (row,) = table(tmp_path / "sweep")
    assert f"its corpus has changed since: 1 label changed ({first}: {was}, now {now})" in row["why"]
    assert times(tmp_path / "sweep") == before
    changed = path.read_bytes()
    path.write_bytes(original)
    assert call(monkeypatch, *words) == 0  # undone: it is finished again,
    assert times(tmp_path / "sweep") == before
    path.write_bytes(changed)
    assert call(monkeypatch, *words, "sweep.skip_finished=false") == 0  # or it is trained anew
    assert times(tmp_path / "sweep") != before


def test_a_dry_run_shows_jobs_and_the_batch_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    cluster = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=30"]
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "sweep=grid", "sweep.dry_run=true", "seed=0", *cluster) == 0
    said = capsys.readouterr().out
    assert said.count("not begun: encoder=") == 48
    for line in ("#SBATCH --array=0-47%16", "#SBATCH --partition=gpu", "#SBATCH --time=30", "#SBATCH --mem=32GB"):
        assert line in said.splitlines()
    assert f"{tmp_path}/multirun/grid/.submitit" in said
    assert not list((tmp_path / "multirun").rglob("metrics.json"))


@pytest.mark.slow
def test_a_search_of_the_same_seed_finds_its_finished_trials(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["sweep=optuna", "hydra.sweeper.n_trials=2", *small, f"hydra.sweep.dir={tmp_path}/sweep"]
    assert call(monkeypatch, *words) == 0
    rows = table(tmp_path / "sweep")
    assert len(rows) == 2
    assert {row["state"] for row in rows} == {"finished"}
    for row in rows:
        config = OmegaConf.load(tmp_path / "sweep" / row["cell"] / "config.yaml")
        assert config.loss.weighting == "convex"
        assert math.isclose(config.loss.alpha, float(row["loss.alpha"]))
        assert 0.1 <= config.loss.alpha <= 0.9
        assert 1e-4 <= config.optimizer.lr <= 1e-2
    best = max(float(row["val/ua"]) for row in rows)
    assert f"best validation UA {best:.4f}: loss=ce_center " in capsys.readouterr().out
    before = times(tmp_path / "sweep")
    assert call(monkeypatch, *words) == 0
    assert times(tmp_path / "sweep") == before
    assert table(tmp_path / "sweep") == rows


@pytest.mark.slow
def test_a_sweep_that_was_killed_finishes_what_is_missing(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", "loss=ce,focal", "seed=0,1", *small]
    assert call(monkeypatch, *words, f"hydra.sweep.dir={tmp_path}/undisturbed") == 0
    # Nothing is stored yet: the jobs have to encode, by loader workers of their own, and once for all of them.
    words += [f"cache={tmp_path}/cache", "data.workers=1"]
    killed = tmp_path / "killed"
    there, output = f"hydra.sweep.dir={killed}", (tmp_path / "out", tmp_path / "err")
    process = started(act, "train", (*words, there, "hydra/launcher=joblib"), tmp_path, dict(os.environ), *output)
    deadline = time.monotonic() + PATIENCE
    while not times(killed):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    for folder in killed.glob("*/"):  # until the last of them is gone
        with RunDirectory(folder).locked(wait=True):
            pass
    before = times(killed)
    assert 1 <= len(before) < 4
    again = command("train", *words, there, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{len(before)} finished" in again.stdout.splitlines()[0]
    assert {cell: at for cell, at in times(killed).items() if cell in before} == before
    assert again.stdout.count(": begins") == 4 - len(before)
    rows = [table(folder) for folder in (killed, tmp_path / "undisturbed")]
    assert [{**row, "cell": ""} for row in rows[0]] == [{**row, "cell": ""} for row in rows[1]]
    metrics = [json.loads(path.read_text()) for path in killed.glob("*/metrics.json")]
    for modality in ("text", "audio"):  # those of the job that was killed were written down nowhere
        assert sum(found[f"encoded/{modality}"] for found in metrics) in (0, 40)
    assert not [line for line in output[0].read_text().splitlines() if "Epoch" in line]


@pytest.mark.slow
def test_a_sweep_of_runs_of_two_processes_equals_runs_of_one(
    tmp_path: Path, composed: Compose, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [*small, "data.utterances=100", "loss=ce_center", "head.dropout=0", "fusion.dropout=0"]
    words = ["-m", "trainer=ddp_cpu", "trainer.precision=32-true", "optimizer.lr=1e30,0.001"]
    words += [word for word in small if not word.startswith("trainer")]
    assert call(monkeypatch, *words, f"hydra.sweep.dir={tmp_path}/sweep") == 1
    failed, finished = table(tmp_path / "sweep")
    assert "became NaN or infinite in stage transfer" in failed["why"]
    assert finished["state"] == "finished"
    folder = tmp_path / "sweep" / finished["cell"]
    alone = run(composed(*small, "optimizer.lr=0.001"), tmp_path / "alone")
    together = json.loads((folder / "metrics.json").read_text())
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        if name.startswith(("test/", "val/")):
            assert together[name] == pytest.approx(value, abs=1e-3), name
    ids = [pd.read_csv(path / "predictions.csv")["id"].tolist() for path in (folder, tmp_path / "alone")]
    assert len(set(ids[0])) == len(ids[0])
    assert ids[0] == ids[1]
    assert "starting 2 processes" in (folder / "train.log").read_text()


def test_a_run_on_several_machines_is_recorded_and_says_how_to_start_it(
    tmp_path: Path, composed: Compose, small: list[str]
) -> None:
    config = composed(*small, "trainer=ddp_cpu", "trainer.num_nodes=3")
    with pytest.raises(
        InputError, match=r"torchrun --nnodes=3 --nproc-per-node=2 .* -m fourm_ser\.training\.experiment"
    ) as said:
        run(config, tmp_path)
    assert str(said.value).endswith(str(tmp_path))
    assert OmegaConf.load(tmp_path / "config.yaml").trainer.num_nodes == 3


def test_a_launcher_that_is_not_installed_says_what_to_install(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep_jobs, "find_spec", lambda name: None)
    words = ["-m", "seed=0,1", *small, f"hydra.sweep.dir={tmp_path}/sweep", "hydra/launcher=joblib"]
    assert call(monkeypatch, *words) == 1
    assert 'pip install "fourm_ser[joblib]"' in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_every_sweep_can_be_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = (REPOSITORY / "conf" / "sweep").glob("*.yaml")
    params = {path.stem: OmegaConf.load(path).hydra.sweeper.params for path in files}
    parts = {**params.pop("encoders"), **params.pop("losses"), "seed": "0,1,2"}
    assert parts == params.pop("grid")  # whose options compose as the test of the batch script finds
    params.pop("paper_4m_ser")  # composed grid by grid by the tests of unions
    counts = {"cross_validation": 5, "alpha": 9, "seeds": 5, "optuna": 30, "paper_memocmt": 8}
    assert counts.keys() == params.keys()
    for name, count in counts.items():
        of_a_release = ["data.root=x"] if name.startswith("paper") else []
        assert call(monkeypatch, f"sweep={name}", "sweep.dry_run=true", *of_a_release) == 0
        assert f"sweep in multirun/{name}: {count} jobs\n" in capsys.readouterr().out


@pytest.mark.parametrize("devices", [0, -1, "two", [0, 1], True])
def test_devices_are_a_number(devices: Any) -> None:
    with pytest.raises(InputError, match=r"trainer\.devices="):
        resolve_devices(devices, CPU)
    assert resolve_devices("auto", CPU) == 1
    assert resolve_devices(3, CPU) == 3


def test_a_sweep_is_one_group_and_a_run_none(tmp_path: Path) -> None:
    group = "${sweep_group:%s,%s}"
    for mode, folder, name in (
        ("RunMode.MULTIRUN", "multirun/grid", "grid"),
        ("MULTIRUN", "multirun/2026-01-02/03-04-05", "2026-01-02/03-04-05"),
        ("RunMode.RUN", "multirun/grid", None),
    ):
        assert OmegaConf.create({"group": group % (mode, folder)}).group == name


def test_a_run_is_followed_in_tensorboard(tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call(monkeypatch, *small, "logger=tensorboard", f"hydra.run.dir={tmp_path}/run") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    events = {}
    for name in ("transfer", "results"):
        events[name] = EventAccumulator(str(tmp_path / "run" / "tensorboard" / name)).Reload()
    assert "val/ua" in events["transfer"].Tags()["scalars"]
    (found,) = events["results"].Scalars("test/ua")
    assert found.value == pytest.approx(metrics["test/ua"])


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: W&B's messages, in the format of LevelDB's log.

    W&B has no reader of its own for Python any more. A record is cut into chunks, none of which goes beyond a block.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<4xHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last chunk of one
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_each_job_is_an_offline_run_of_its_own_in_wandb(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *small, "logger=wandb", "optimizer.lr=1e30,0.001", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert call(monkeypatch, *words) == 1
    assert f"wandb sync {tmp_path}/sweep/*/wandb/offline-run-*" in capsys.readouterr().out
    for row in table(tmp_path / "sweep"):
        folder = tmp_path / "sweep" / row["cell"]
        (path,) = folder.glob("wandb/offline-run-*/*.wandb")
        found = list(records(path))
        (run,) = (record.run for record in found if record.WhichOneof("record_type") == "run")
        assert (run.run_group, run.job_type) == (f"{tmp_path.name}/sweep", "transfer")
        assert list(run.tags) == ["tiny", "self_attention", "ce_balanced"]
        config = {update.key: json.loads(update.value_json) for update in run.config.update}
        assert config["optimizer"]["lr"] == float(row["optimizer.lr"])
        assert config["data"]["utterances"] == 40
        updates = [update for record in found for update in record.summary.update]
        summary = {"/".join(update.nested_key) or update.key: json.loads(update.value_json) for update in updates}
        if row["state"] == "finished":
            metrics = json.loads((folder / "metrics.json").read_text())
            assert {name: summary[name] for name in metrics} == metrics
        else:
            assert not [name for name in summary if name.startswith("test/")]
            assert [record.exit.exit_code for record in found if record.HasField("exit")] == [1]
