"""A run that is stopped from outside: the step in hand is finished, its state is written, and the way on is said."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer

from fourm_ser.distributed import rank
from fourm_ser.terminal import command_line, near
from fourm_ser.training.module import EmotionModule
from fourm_ser.trust import named_packages

log = logging.getLogger(__name__)

PATIENCE = 3.0  # seconds that a validation may go on for behind a signal: then its epoch is done again
REQUEUE: signal.Signals | None = getattr(signal, "SIGUSR1", None)  # Windows has none
USUAL = (signal.SIG_DFL, signal.default_int_handler)  # of a signal that nobody listens to


class StoppedError(SystemExit):
    """A signal ended the run. The exit code is 128 and the signal's number, as shells have it."""


class Signals:
    """What this process was told: SIGTERM and SIGINT end it, SIGUSR1 of a job under Slurm queues the job again, too.

    While a stage trains they wait for the end of the step; a second one does not wait.

    Attributes:
        asked: the signal that waits; None for none.
        since: when it came, in seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.since = 0.0
        self._waits = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._waits or self.asked is not None:
            raise StoppedError(128 + number)
        self.asked, self.since = number, time.monotonic()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen meanwhile, to those that nobody else listens to."""
        wanted = [signal.SIGTERM, signal.SIGINT]
        if REQUEUE is not None and "SLURM_JOB_ID" in os.environ:
            wanted.append(REQUEUE)
        if threading.current_thread() is threading.main_thread():
            self._before = {name: signal.getsignal(name) for name in wanted if signal.getsignal(name) in USUAL}
        try:
            self.listen()
            yield
        finally:
            for name, handler in self._before.items():
                signal.signal(name, handler)
            self._before, self.asked = {}, None

    def listen(self) -> None:
        """Take the signals back, from Lightning, which has a Trainer listen to them."""
        for name in self._before:
            signal.signal(name, self)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let signals wait meanwhile, for `stop` to be called between steps, or for the end."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self.stop()

    def stop(self) -> None:
        """End the run here if a signal waits."""
        if self.asked is not None:
            raise StoppedError(128 + self.asked)


SIGNALS = Signals()


class StopBetweenSteps(Callback):
    """Ends a stage between two steps where a signal waits, once last.ckpt holds all that the rest of the epoch needs.

    In a validation, which cannot be gone on with, the epoch is finished where that takes no more than `PATIENCE`; else
    last.ckpt stays that of the epoch before. So it does where several processes train, which would have to agree.

    Args:
        last: the checkpoint that the stage is gone on with from.
    """

    def __init__(self, last: Path) -> None:
        self.last = last
        self.kept: dict[str, Any] = {}  # what a checkpoint within an epoch holds of it, or held

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        SIGNALS.listen()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        SIGNALS.stop()  # last.ckpt is of the epoch that has just ended

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.kept:
            _restore(self.kept, pl_module)
            self.kept = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if SIGNALS.asked is None or not steps or trainer.is_last_batch or trainer.world_size > 1:
            return
        pl_module.refuse_infinite()
        self.kept = _state(pl_module)
        trainer.save_checkpoint(self.last)
        SIGNALS.stop()

    def on_validation_batch_end(self, trainer: Trainer, *others: Any) -> None:
        if SIGNALS.asked is not None and time.monotonic() - SIGNALS.since > PATIENCE:
            SIGNALS.stop()

    def state_dict(self) -> dict[str, Any]:
        return self.kept

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = state_dict


def _state(module: EmotionModule) -> dict[str, Any]:
    """What the rest of an epoch hangs on beside weights, optimizer and progress, in tensors and plain values."""
    name, words, *place = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(words).astype(np.int64)), *place],
        "python": random.getstate(),
        "losses": dict(module.train_losses),
        "count": module.train_count,
        "norms": list(module.norms),
    }
    if module.device.type != "cpu":
        state["device"] = torch.get_device_module(module.device).get_rng_state().cpu()
    return state


def _restore(state: Mapping[str, Any], module: EmotionModule) -> None:
    name, words, *place = state["numpy"]
    torch.set_rng_state(state["torch"].cpu())
    np.random.set_state((name, words.cpu().numpy().astype(np.uint32), *place))
    random.setstate(state["python"])
    module.train_losses = {name: value.to(module.device) for name, value in state["losses"].items()}
    module.train_count = state["count"]
    module.norms = [torch.as_tensor(number).to(module.device) for number in state.get("norms", (0.0, 0.0))]
    if "device" in state and module.device.type != "cpu":
        torch.get_device_module(module.device).set_rng_state(state["device"].cpu())


@contextmanager
def way_on_told(config: DictConfig, folder: Path) -> Iterator[None]:
    """Say how to go on with a run that is stopped meanwhile, in a line for a shell; SIGUSR1 requeues it in Slurm."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        if rank() == 0:
            log.warning("stopped: the line below goes on with the run")
            print(way_on(config, folder), file=sys.stderr, flush=True)  # the log would wrap it
            if isinstance(stopped, StoppedError) and REQUEUE is not None and stopped.code == 128 + REQUEUE:
                log.warning(_requeue())
        raise


def way_on(config: DictConfig, folder: Path) -> str:
    """The command line that goes on with a run, to be pasted into a shell."""
    packages = named_packages(config)
    trust = [f"trust={','.join(packages)}"] if packages else []
    return command_line("train", f"resume={near(folder)}", *trust)


def _requeue() -> str:
    """Have Slurm queue this job again, whose command line then goes on with its run; what came of it, in a line."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    job = job if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"Slurm cannot queue job {job} again: {error}"
    said = " ".join(done.stderr.split())
    return f"Slurm cannot queue job {job} again: {said}" if done.returncode else f"Slurm queues job {job} again"
