"""Where a run's numbers go while it trains: a table in the run directory, Weights & Biases, TensorBoard."""

import logging
import os
import shlex
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from fourm_ser.checks import check_word
from fourm_ser.errors import InputError
from fourm_ser.files import whole, write_text
from fourm_ser.runs.directory import RunDirectory, StageDirectory, read_epochs_table
from fourm_ser.runs.results import Results

log = logging.getLogger(__name__)


class RunLogger(ABC):
    """Follows a run from its first stage to its results."""

    def start(self, directory: RunDirectory, config: Mapping[str, Any]) -> None:  # noqa: B027 - most have nothing to start
        """The run begins, or goes on."""

    @abstractmethod
    def stage(self, stage: StageDirectory) -> Logger:
        """The Lightning logger of a stage."""

    def finish(self, results: Results) -> None:  # noqa: B027 - most have nothing to add
        """The run has ended well."""


class EpochTable(Logger):
    """A stage's metrics as CSV, one row an epoch, from 1; a resumed stage goes on in the same table.

    Tables of earlier versions count from 0, and are brought to this.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, float]] = {}
        if path.is_file():
            self.rows = read_epochs_table(path).set_index("epoch").to_dict(orient="index")  # type: ignore[assignment]

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run directory's config.yaml says it already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Merge metrics into their epoch's row."""
        values = {name: value for name, value in metrics.items() if name.startswith(("train/", "val/"))}
        if "epoch" not in metrics or not values:
            return
        self.rows.setdefault(int(metrics["epoch"]) + 1, {}).update(values)
        table = pd.DataFrame.from_dict(self.rows, orient="index").sort_index()
        with whole(self.path, seal=True) as temporary:
            table[sorted(table.columns)].to_csv(temporary, index_label="epoch")


class CSV(RunLogger):
    """A table in each stage's folder."""

    def stage(self, stage: StageDirectory) -> Logger:
        return EpochTable(stage.epochs)


class WandB(RunLogger):
    """Weights & Biases: one run a run directory, metrics under the stage's name.

    Args:
        project: the project's name.
        entity: the user or team; None for the account's default.
        mode: `online`, `offline` or `disabled`. Online without an API key becomes offline, and the log says so.
        group: group of runs; None for none.
        job_type: the kind of run.
        tags: tags.
        name: the run's display name; None lets W&B invent one.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        mode: str,
        group: str | None,
        job_type: str | None,
        tags: list[str],
        name: str | None,
    ) -> None:
        check_word("logger.wandb.mode", mode, ("online", "offline", "disabled"))
        self.arguments: dict[str, Any] = {"project": project, "entity": entity, "name": name}
        self.arguments |= {"group": group, "job_type": job_type, "tags": [tag for tag in tags if tag]}
        self.mode = mode
        self.run: Any = None

    def start(self, directory: RunDirectory, config: Mapping[str, Any]) -> None:
        import wandb

        mode = self.mode
        if mode == "online" and not _has_key(wandb.Settings().base_url):
            mode = "offline"
            log.warning("wandb: no API key (run `wandb login`), so this run is logged offline")
        if wandb.run is not None:  # of a job before this one that failed; W&B would go on with it
            wandb.run.finish(exit_code=1)
        if not directory.wandb.is_file():
            write_text(directory.wandb, uuid.uuid4().hex[:8])
        self.run = wandb.init(
            **self.arguments,
            id=directory.wandb.read_text(encoding="utf-8").strip(),
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            dir=directory.path,
            config=dict(config),
            settings=wandb.Settings(console="off"),
        )
        self.run.define_metric("trainer/global_step")
        self.run.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def stage(self, stage: StageDirectory) -> Logger:
        from pytorch_lightning.loggers import WandbLogger

        logger = _counted_from_one(WandbLogger)(experiment=self.run, prefix=stage.name)
        logger.LOGGER_JOIN_CHAR = "/"
        return logger

    def finish(self, results: Results) -> None:
        import wandb

        outputs = results.outputs
        self.run.summary.update(results.metrics)
        self.run.log(
            {
                "test/predictions": wandb.Table(dataframe=results.predictions),
                "test/confusion_matrix": wandb.plot.confusion_matrix(
                    y_true=outputs.labels.tolist(), preds=outputs.predicted.tolist(), class_names=results.emotions
                ),
                **{path.stem: wandb.Image(str(path)) for path in results.figures},
            }
        )
        self.run.finish()
        if self.run.offline:
            folder = shlex.quote(str(Path(self.run.dir).parent))
            log.info("wandb: logged offline; upload it with: wandb sync %s", folder)


class TensorBoard(RunLogger):
    """TensorBoard: the events of each stage, and of the test, in the run directory's `tensorboard` folder.

    Args:
        choices: what tells runs of a sweep apart, beside their test metrics: encoder, fusion, loss.
    """

    def __init__(self, choices: Mapping[str, Any]) -> None:
        self.choices = {name: str(value) for name, value in choices.items()}
        self.folder = Path()

    def start(self, directory: RunDirectory, config: Mapping[str, Any]) -> None:
        if find_spec("tensorboard") is None:
            raise InputError('logger=tensorboard: tensorboard is not installed. pip install "fourm_ser[tensorboard]"')
        self.folder = directory.tensorboard

    def stage(self, stage: StageDirectory) -> Logger:
        from pytorch_lightning.loggers import TensorBoardLogger

        return _counted_from_one(TensorBoardLogger)(self.folder, name="", version=stage.name)

    def finish(self, results: Results) -> None:
        from torch.utils.tensorboard import SummaryWriter

        numbers = {name: float(value) for name, value in results.metrics.items() if isinstance(value, float)}
        with SummaryWriter(str(self.folder)) as writer:
            writer.add_hparams(self.choices, numbers, run_name="results")


def _counted_from_one(kind: type[Logger]) -> Any:
    """A logger of Lightning's, which counts epochs from 0, that counts them from 1, as all that is shown does."""

    class FromOne(kind):  # type: ignore[misc, valid-type]
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            more = {"epoch": metrics["epoch"] + 1} if "epoch" in metrics else {}
            super().log_metrics({**metrics, **more}, step)

    return FromOne


def _has_key(base_url: str) -> bool:
    """Whether W&B would find an API key for its server."""
    from requests.utils import get_netrc_auth

    return bool(os.environ.get("WANDB_API_KEY")) or get_netrc_auth(base_url) is not None
