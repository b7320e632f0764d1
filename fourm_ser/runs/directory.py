"""A run directory: the names and formats of all that lies in it. What is heavy is imported where it is needed."""

import math
import shutil
import statistics
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from fourm_ser.config import upgrade
from fourm_ser.errors import BusyError, InputError, brief, listed
from fourm_ser.files import is_spoilt, refuse_spoilt, regular, remove, whole, write_json
from fourm_ser.plain import as_mapping, read_config, read_json
from fourm_ser.terminal import command_line
from fourm_ser.trust import refuse_strangers

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

PREDICTED = ["id", "speaker", "emotion", "predicted"]  # columns of predictions.csv before the probabilities
MARKS = ("config.yaml", "metrics.json", "finished.json")  # where one lies, a run, model, stage or evaluation does
REFIT = "refit"  # the folder of the stages that train on the validation side, too
SWEEP = "multirun.yaml"  # Hydra's record of a sweep, in the folder above its runs


def confusion_counts(predictions: "pd.DataFrame", classes: Sequence[str]) -> "np.ndarray":
    """How often each class was taken for each, (classes, classes) by label and prediction."""
    import pandas as pd

    counts = pd.crosstab(predictions["emotion"], predictions["predicted"])
    return counts.reindex(index=list(classes), columns=list(classes), fill_value=0).to_numpy()


class StageDirectory:
    """What a stage of a run leaves, in `stages/<number>-<name>` of the run directory, or of a refit in `refit/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name.partition("-")[2]  # as its numbers are called beside other stages' in a logger
        if path.parent.name == REFIT:
            self.name = f"{REFIT}/{self.name}"
        self.best = path / "checkpoints" / "best.ckpt"  # of the epoch that the stage selected, which goes on from it
        self.last = path / "checkpoints" / "last.ckpt"  # what an interrupted stage goes on from
        self.epochs = path / "metrics.csv"  # a row an epoch
        self.finished = path / "finished.json"  # how long it took: without it the stage has not finished

    def read_best(self) -> dict[str, Any]:
        """The best checkpoint: `epoch` and `state_dict`, names under `network.` or `loss.`; InputError without one."""
        if not self.best.is_file():
            raise InputError(f"{self.best}: no such file. What a stage learned is read from its best checkpoint.")
        return _read_checkpoint(self.best)

    def read_score(self) -> float:
        """The score of the selected epoch: the mean of what the last epochs up to it were judged by."""
        return statistics.fmean(self.read_best()["judged"])

    def read_weights(self, part: str) -> dict[str, "Tensor"]:
        """What the best checkpoint holds of the `network` or the `loss`, by its names in there."""
        state = self.read_best()["state_dict"].items()
        return {name.removeprefix(f"{part}."): tensor for name, tensor in state if name.startswith(f"{part}.")}

    def select_last(self) -> None:
        """Let the last checkpoint be the best one, whole: of a stage that selects its last epoch."""
        with whole(self.best, seal=True) as temporary:
            shutil.copyfile(self.last, temporary)

    def read_last(self) -> dict[str, Any]:
        """The last checkpoint, as Lightning writes it; InputError where it is damaged."""
        return _read_checkpoint(self.last)

    def check_place(self) -> None:
        """Refuse a run that was moved: Lightning's checkpoints name their folder, and best weights would be lost."""
        callbacks = self.read_last()["callbacks"]
        places = {state["dirpath"] for state in callbacks.values() if "dirpath" in state}
        if places != {str(self.last.parent)}:
            made = ", ".join(sorted(places))
            raise InputError(f"{self.last}: the run was made in {made} and moved since. Move it back to resume it.")

    def read_seconds(self) -> float:
        """How long the finished stage took."""
        return float(self._read_finished("seconds"))

    def read_epochs(self) -> int:
        """How many epochs the finished stage had."""
        return int(self._read_finished("epochs"))

    def _read_finished(self, name: str) -> float:
        refuse_spoilt(self.finished)
        try:
            value = as_mapping(read_json(self.finished)).get(name)
        except ValueError:
            value = None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(
                f"{self.finished}: is damaged. Delete it and resume the run, it goes on from its checkpoint."
            )
        return value

    def write_finished(self, seconds: float, epochs: int) -> None:
        """Say that the stage has finished."""
        write_json(self.finished, {"seconds": seconds, "epochs": epochs}, seal=True)


class RunDirectory:
    """A run directory, whether or not it is there. The folder of an evaluation has results of the same names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "config.yaml"  # the resolved config
        self.corpus = path / "corpus.csv"  # what the run saw of its corpus, by content
        self.log = path / "train.log"
        self.output = path / "output.log"  # what a job of a sweep printed that ran beside others
        self.metrics = path / "metrics.json"  # written last: with it the run has finished
        self.failure = path / "failure.json"  # why the run ended before its results
        self.predictions = path / "predictions.csv"
        self.confusion_matrix = path / "confusion_matrix.png"
        self.training_curves = path / "training_curves.png"
        self.reliability = path / "reliability.png"  # of evaluations alone, as the next two
        self.confusions = path / "confusions.csv"
        self.speakers = path / "speakers.csv"
        self.model = path / "model"  # see `fourm_ser.models.directory`
        self.evaluations = path / "evaluation"
        self.tensorboard = path / "tensorboard"
        self.wandb = path / "wandb" / "id"  # the run's name there, under which a resumed run goes on
        self.hydra = path / ".hydra" / "hydra.yaml"  # the command line
        self._stages = path / "stages"
        self._refit = path / REFIT

    @property
    def has_begun(self) -> bool:
        """Whether there is anything of a run but its record, what it saw of its corpus and why it ended."""
        return any(path.exists() for path in (self._stages, self.model, self.metrics))

    def stage(self, number: int, name: str, refit: bool = False) -> StageDirectory:
        """The folder of a stage by its place in the run, from 0, and its name; or of its refit."""
        if Path(f"{number}-{name}").name != f"{number}-{name}" or "\\" in name:
            raise InputError(f"{self.record}: stage.{name!r}: expected a name that a folder can have.")
        return StageDirectory((self._refit if refit else self._stages) / f"{number}-{name}")

    @property
    def chosen(self) -> str:
        """The name of the stage whose weights the finished run ended with.

        Runs of earlier versions, which do not say, ended with the last one's.
        """
        return str(self.read_results().get("chosen_stage", list(self.peek_record().stage)[-1]))

    @property
    def chosen_stage(self) -> StageDirectory:
        """The folder of the stage in which the model was learned: where the run was refitted, that of the refit."""
        record, name = self.peek_record(), self.chosen
        return self.stage(list(record.stage).index(name), name, record.refit)

    @property
    def batch_size(self) -> int | None:
        """How many utterances a batch of the chosen stage had, over all processes; None for a baseline, without any."""
        record = self.peek_record()
        if "stage" not in record:
            return None
        name = self.chosen
        return int(self.read_results().get(f"batch_size/{name}", record.stage[name].batch_size))

    @property
    def tables(self) -> dict[str, Path]:
        """The tables of the epochs by the names of the stages that have one, in the order they were run."""
        number = {path: path.name.partition("-")[0] for path in self._stages.glob("*")}
        ordered = sorted(number, key=lambda path: int(number[path]) if number[path].isdigit() else 0)
        stages = [StageDirectory(path) for path in ordered]
        return {stage.name: stage.epochs for stage in stages if stage.epochs.is_file()}

    def analysis(self, side: str) -> Path:
        """The folder of the analyses of a side."""
        return self.path / ("analysis" if side == "test" else f"analysis-{side}")

    @property
    def is_run(self) -> bool:
        """Whether a run is here: a config alone may be somebody else's, and Hydra's words may be those of a sweep."""
        has_words = self.hydra.parent.is_dir()
        is_recorded = self.metrics.is_file() or (self.record.is_file() and (self.log.exists() or has_words))
        return is_recorded or self.failure.is_file() or (has_words and not (self.path / SWEEP).is_file())

    @property
    def has_stopped(self) -> bool:
        """Whether a run is here that began to train and has no results."""
        return self._stages.is_dir() and not self.metrics.is_file()

    def refuse_unrecorded(self) -> None:
        """Refuse to go on with what is no run."""
        if not self.record.is_file():
            raise InputError(f"resume={self.path}: no config.yaml there. Expected the directory of an earlier run.")

    def refuse_stopped(self) -> None:
        """Refuse a run that began to train and has no results."""
        if self.has_stopped:
            raise InputError(
                f"{self.path}: this run has not finished. Go on with it: {command_line('train', f'resume={self.path}')}"
            )

    @contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Keep other processes out of the run; one that does it now is waited for, or refused by a BusyError."""
        try:
            with FileLock(self.path / ".lock").acquire(timeout=-1 if wait else 0):
                yield
        except Timeout as error:
            raise BusyError(f"{self.path}: another process is running this run. Wait for it, or end it.") from error

    def peek_record(self) -> DictConfig:
        """The run's config, also that of an earlier version, to be looked at: nothing is built from it."""
        refuse_spoilt(self.record)
        config = upgrade(read_config(self.record))
        if not isinstance(config.get("data"), DictConfig):
            raise InputError(f"{self.record}: is damaged, or no record of a run: it says nothing of data.")
        return config

    def read_record(self, trust: Sequence[str] = ()) -> DictConfig:
        """The run's config, also that of an earlier version, to be built from.

        Args:
            trust: packages of the user's own whose classes it may name.

        Raises:
            InputError: it is damaged, or names anything but parts of a run.
        """
        config = self.peek_record()
        refuse_strangers(config, self.record, trust)
        return config

    def read_finished_record(self, trust: Sequence[str] = ()) -> DictConfig:
        """The run's config to be built from, see `read_record`; refused where it has not finished."""
        self.refuse_unfinished()
        return self.read_record(trust)

    def refuse_unfinished(self) -> None:
        """Refuse what is no directory of a finished run, or a run that has not finished (InputError)."""
        if not self.record.is_file() or not self.model.is_dir():
            missing = self.record.name if not self.record.is_file() else f"{self.model.name}/"
            hint = " It is a model directory: give the run's own." if is_model(self.path) else ""
            raise InputError(f"{self.path}: no {missing} there. Expected the directory of a finished run.{hint}")
        self.refuse_stopped()

    def read_metrics(self) -> dict[str, Any]:
        """The results.

        Raises:
            FileNotFoundError: the run has none.
            ValueError: they are damaged, unfinished, or have no accuracy.
        """
        if is_spoilt(self.metrics):
            raise ValueError("is not what was written there")
        metrics = as_mapping(read_json(self.metrics))
        if metrics.get("finished") is not True:
            raise ValueError("does not say that the run has finished")
        for name in ("test/ua", "test/wa"):
            value = metrics.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{name} is {value!r}, expected a number from 0 to 1")
        for name, value in metrics.items():
            sound = value is None or (isinstance(value, int | float) and math.isfinite(value))
            if name.startswith("test/") and not sound:
                raise ValueError(f"{name} is {value!r}, expected a number")
        return metrics

    def read_results(self) -> dict[str, Any]:
        """The results, of a run that is not done again where they are damaged.

        Raises:
            InputError: they are damaged.
        """
        try:
            return self.read_metrics()
        except ValueError as error:
            said = " ".join(str(error).split())
            raise InputError(
                f"{self.metrics}: is damaged ({said}). Delete it and start the run again: its checkpoints stay."
            ) from error

    def read_failure(self) -> dict[str, Any]:
        """Why the run ended, `error`, and its `overrides`; OSError or ValueError where it cannot be read."""
        return as_mapping(read_json(self.failure))

    def write_failure(self, error: Exception, overrides: Sequence[str] = ()) -> None:
        """Say why the run, of these `key=value` words, ended before its results; gone as soon as it goes on."""
        said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        write_json(self.failure, {"error": said, "overrides": list(overrides)})

    def read_predictions(self) -> "pd.DataFrame":
        """What was predicted: the columns `PREDICTED`, as strings; InputError, OSError or ValueError without."""
        import pandas as pd

        refuse_spoilt(self.predictions)
        return pd.read_csv(regular(self.predictions), usecols=PREDICTED, dtype=str, keep_default_na=False)

    def read_corpus(self) -> "pd.DataFrame | None":
        """What the run recorded of its corpus (see `fourm_ser.data.content`); None where its version did not.

        Raises:
            InputError: the record is damaged.
        """
        import pandas as pd

        from fourm_ser.data.content import COLUMNS

        path = self.corpus
        if not path.is_file():
            return None
        refuse_spoilt(path)
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
        if tuple(table.columns) != COLUMNS:
            raise InputError(
                f"{path}: expected the columns {', '.join(COLUMNS)}, found {listed(list(table.columns))[:200]!r}."
            )
        return table

    def forget(self) -> None:
        """Remove a finished run's files, what says that it has finished last of all."""
        if self.metrics.is_file():
            for folder in (self._stages, self._refit):
                shutil.rmtree(folder, ignore_errors=True)
            for path in (self.record, self.corpus, self.failure, self.log, self.output, self.metrics):
                remove(path)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint; InputError where it is damaged, or holds anything but tensors and plain values."""
    import torch

    refuse_spoilt(path)
    try:
        with zipfile.ZipFile(path) as parts:  # of each part it holds a CRC, which torch does not look at
            damaged = parts.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is not what was written")
        return as_mapping(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever torch.load stumbles over in a foreign file
        raise InputError(
            f"{path}: is damaged: {brief(error)}. Copy it again, or delete the folder {path.parent.parent} and those "
            "of later stages, and resume the run: these stages are done anew."
        ) from error


def read_epochs_table(path: Path) -> "pd.DataFrame":
    """The table of a stage's epochs: numbers, a row for each `epoch`, counted from 1: earlier versions counted from 0.

    Raises:
        InputError: it is damaged.
    """
    import pandas as pd

    refuse_spoilt(path)
    try:
        table = pd.read_csv(regular(path)).apply(pd.to_numeric, errors="coerce")
        if "epoch" not in table or not table["epoch"].is_unique or table["epoch"].isna().any() or not len(table):
            raise ValueError("expected a row for each epoch")
        if (table["epoch"] == 0).any():
            table["epoch"] += 1
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: is damaged: {brief(error)}. Delete it: a stage that goes on begins its table there."
        ) from error
    return table


def is_model(folder: Path) -> bool:
    """Whether a folder is a model directory."""
    return (folder / "labels.json").is_file()


def model_folder(folder: Path) -> Path:
    """The model directory that `folder` is, or holds as `model`; InputError where it is neither, or unfinished."""
    if (folder / "model.safetensors").is_file():
        lacking = [name for name in ("config.yaml", "labels.json") if not (folder / name).is_file()]
        if lacking:
            raise InputError(f"{folder}: no {lacking[0]} there. Expected the whole folder `model` of a finished run.")
        return folder
    run = RunDirectory(folder)
    run.refuse_stopped()
    if (run.model / "model.safetensors").is_file():
        return model_folder(run.model)
    what = "neither a model directory nor a finished run" if folder.is_dir() else "no such folder"
    raise InputError(f"{folder}: {what}. Expected the folder `model` of a finished run, or the run's own.")


def find_model(name: str) -> Path:
    """The model directory of a name: a folder (see `model_folder`), or a repository of the hub, which is fetched.

    Args:
        name: a path; or `<user>/<name>`, which `@<revision>` may follow, where nothing of that name is here.

    Raises:
        InputError: it is neither, or cannot be had.
    """
    from fourm_ser.models.shared import fetch_model, is_hub_id

    return fetch_model(name) if is_hub_id(name) else model_folder(Path(name).expanduser())
