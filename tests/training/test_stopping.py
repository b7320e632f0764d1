"""Runs that are told to stop: they end between two steps, say how to go on, and end as if undisturbed."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from fourm_ser.data.buckets import BucketBatchSampler, VersionSampler
from fourm_ser.training import sweeps
from fourm_ser.training.experiment import resume, run
from fourm_ser.training.module import EmotionModule
from fourm_ser.training.stopping import SIGNALS, StoppedError, way_on, way_on_told
from tests.conftest import Compose
from tests.training.runs import lasting


@pytest.fixture(autouse=True)
def _nobody_listens() -> Iterator[None]:
    """As in a process of its own: one that tests are spread over may have Ctrl-C ignored."""
    usual: dict[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {name: signal.signal(name, handler) for name, handler in usual.items()}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, signal.Signals]]]:
    """Signals that this process sends itself, each after a step of a stage, once."""
    due: list[tuple[str, int, signal.Signals]] = []
    own = EmotionModule.training_step

    def step(self: EmotionModule, batch: Any, batch_idx: int) -> Any:
        if due and due[0][0] == self.stage.name and self.global_step >= due[0][1]:
            os.kill(os.getpid(), due.pop(0)[2])
        return own(self, batch, batch_idx)

    monkeypatch.setattr(EmotionModule, "training_step", step)
    yield due
    assert not due


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")
def test_a_run_stopped_within_epochs_ends_as_if_undisturbed(
    tmp_path: Path,
    composed: Compose,
    slice_of_demo: list[str],
    stopping: list[tuple[str, int, signal.Signals]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = composed(
        *slice_of_demo,
        "trainer.keep_freed_memory=false",
        "loss=ce_center",
        "scheduler@stage.finetune.scheduler=plateau",
        *(f"stage.{name}.{key}" for name in ("transfer", "finetune") for key in ("batch_size=16", "epochs=2")),
        "stage.finetune.accumulate=2",
        "stage.transfer.ema=0.9",
        "stage.finetune.keep=always",
        "augment=waveform",
        "augment.copies=1",
        "augment.mixup=0.2",
        "augment.spec={time: 0.1, feature: 0.1}",
    )
    undisturbed = run(config, tmp_path / "undisturbed")
    stopped = tmp_path / "a run's own; folder"
    stopping += [
        ("transfer", 1, signal.SIGTERM),
        ("transfer", 9, signal.SIGINT),
        ("finetune", 1, signal.SIGTERM),
    ]
    places = []
    for number, (name, least, sent) in enumerate(list(stopping)):
        with pytest.raises(StoppedError) as raised:  # noqa: PT012
            if number == 0:
                run(config, stopped, own_process=True)
            else:
                resume(stopped, own_process=True)
        assert raised.value.code == 128 + sent
        last = next(stopped.glob(f"stages/*-{name}/checkpoints/last.ckpt"))
        kept = {"last.ckpt", "best.ckpt", ".last.ckpt.xxh", ".best.ckpt.xxh"}
        assert {path.name for path in last.parent.iterdir()} <= kept
        places.append(torch.load(last, weights_only=True)["global_step"])
        assert least < places[-1] <= least + 2
        line = capfd.readouterr().err.strip().splitlines()[-1]
        assert shlex.split(line)[-2:] == ["train", f"resume={stopped}"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert lasting(resume(stopped)) == lasting(undisturbed)
    for stage in ("0-transfer", "1-finetune"):
        table = Path("stages") / stage / "metrics.csv"
        pd.testing.assert_frame_equal(pd.read_csv(stopped / table), pd.read_csv(tmp_path / "undisturbed" / table))


def test_a_sampler_goes_on_behind_the_batches_that_were_taken() -> None:
    lengths = np.random.default_rng(0).uniform(1, 9, 50)
    for kind in (BucketBatchSampler, VersionSampler):
        sampler = kind(np.arange(50), lengths, 8, shuffle=True, seed=3)
        sampler.set_epoch(2)
        whole = list(sampler)
        sampler.taken = 4
        assert len(sampler) == len(whole)
        assert list(sampler) == whole[4:]
        assert list(sampler) == whole  # of the next epoch nothing was taken


def test_signals_wait_while_a_stage_trains_and_the_second_does_not() -> None:
    with SIGNALS.heard():
        with pytest.raises(StoppedError) as at_once:  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.0)
        assert at_once.value.code == 143
        with pytest.raises(StoppedError) as at_the_end, SIGNALS.waiting():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        assert at_the_end.value.code == 130
    with pytest.raises(StoppedError), SIGNALS.heard(), SIGNALS.waiting():  # noqa: PT012
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        raise AssertionError
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert SIGNALS.asked is None


def test_whoever_listens_already_keeps_the_signal() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *words: heard.append(words))
    try:
        with SIGNALS.heard():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard


@pytest.mark.parametrize("array", [False, True])
def test_slurm_is_asked_to_queue_the_job_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    config = OmegaConf.create({"fusion": {"_target_": "my_lab.fusions.MaxFusion"}})
    with pytest.raises(StoppedError), SIGNALS.heard(), way_on_told(config, tmp_path / "run"):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1.0)
    assert (tmp_path / "asked").read_text() == f"requeue {'16_3' if array else '17'}\n"
    assert capsys.readouterr().err.splitlines()[-1].endswith("trust=my_lab")


CHILD = """
import sys, time
from fourm_ser.training.parent import end_with_parent
assert "torch" not in sys.modules
end_with_parent(0.05)
end_with_parent(0.05)
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time

pytestmark = pytest.mark.usefixtures("no_figures")
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_a_worker_ends_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        assert child.is_dir()
        parent.kill()
    until = time.monotonic() + 30
    while (child / "exe").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not (child / "exe").exists()


class TestSweep:
    @pytest.mark.parametrize(("raised", "code"), [(StoppedError(143), 143), (None, 1), (SystemExit(0), 1)])
    def test_a_sweep_that_a_signal_ended_keeps_its_exit_code(
        self, monkeypatch: pytest.MonkeyPatch, raised: SystemExit | None, code: int
    ) -> None:
        class Unfinished:
            def close(self) -> int:
                return 1

        monkeypatch.setattr(sweeps.Sweep, "current", Unfinished())
        with pytest.raises(SystemExit) as ended:  # noqa: PT012
            try:
                if raised is not None:
                    raise raised
            finally:
                sweeps.close()
        assert ended.value.code == code


def test_the_way_on_can_be_pasted(tmp_path: Path) -> None:
    line = way_on(OmegaConf.create({}), tmp_path / 'it\'s $(here); "now"')
    assert shlex.split(line)[-1] == f'resume={tmp_path}/it\'s $(here); "now"'
    assert len(line.splitlines()) == 1
