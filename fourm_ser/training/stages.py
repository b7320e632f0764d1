"""Stages of training: what the config says of one, what became of it, and which the run ends with."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fourm_ser.checks import check_number, check_word
from fourm_ser.encoders.base import Unfreeze
from fourm_ser.errors import InputError
from fourm_ser.training.length import auto_batch_size, in_epochs

ROUNDING = 1e-6  # of a score, relative where it is above 1: means in float32 hang on the order of their terms
MONITORS = {"val/ua": "max", "val/wa": "max", "val/loss": "min"}  # what an epoch may be judged by, and what is better
SAID = {"val/ua": "validation UA", "val/wa": "validation WA", "val/loss": "validation loss"}
SCORE = "val/score"  # what it is judged by where that is a mean over several epochs


@dataclasses.dataclass(frozen=True)
class Stage:
    """A named entry of the config's `stage`.

    Attributes:
        name: The entry's name.
        number: Its index in the run, from 0.
        steps: How many optimizer steps it lasts, in whole epochs; None where `epochs` says it.
        epochs: Passes over the training side, at most; where it is a number, `steps` is not read.
        min_epochs: The fewest epochs that `steps` may come to; None for one.
        max_epochs: The most epochs that `steps` may come to; None for any number.
        batch_size: Utterances in a batch, over all processes; `auto` for what `auto_batch_size` gives.
        unfreeze: What trains of each modality's stem: `none`, `all`, or how many of the last blocks.
        optimizer: Builds the optimizer from parameter groups.
        scheduler: Builds from an optimizer, `steps` and `steps_per_epoch` a scheduler that goes on with every step.
        learning_rate: The learning rate of fusion, head and the encoders' tops; None for the optimizer's.
        encoder_learning_rate: The learning rate of stems that train; None for the optimizer's.
        layer_decay: What that is multiplied by from each block of a stem to the one below; None for 1.
        lora_learning_rate: The learning rate of adapters; None for `encoder_learning_rate`.
        patience: Epochs without a better score before the stage ends; None where `patience_steps` says it.
        patience_steps: Optimizer steps without a better score before the stage ends, in whole epochs; None for never.
        monitor: What an epoch is judged by, one of `MONITORS`.
        smooth: Over how many epochs up to each one its score is averaged.
        select: Which epoch's weights the stage ends with: the `best` by its score, or the `last`.
        ema: The decay of the weights' moving average (see `MovingAverage`); None for the weights themselves.
        gradient_clip: The largest norm of the gradient; None for any.
        accumulate: How many batches' mean gradient makes one optimizer step.
        keep: Whether the run ends with this stage's weights, or an earlier one's: `better` for this stage's only where
            their score is better by more than its standard error (see `choose_stage`), `always` for this stage's.
    """

    name: str
    number: int
    steps: int | None
    epochs: int | None
    min_epochs: int | None
    max_epochs: int | None
    batch_size: int | str
    unfreeze: dict[str, Unfreeze]
    optimizer: Callable[..., Optimizer]
    scheduler: Callable[..., LRScheduler]
    learning_rate: float | None
    encoder_learning_rate: float | None
    layer_decay: float | None
    lora_learning_rate: float | None
    patience: float | None
    patience_steps: int | None
    monitor: str
    smooth: int
    select: str
    ema: float | None
    gradient_clip: float | None
    accumulate: int
    keep: str

    @property
    def score(self) -> str:
        """The name under which an epoch's score is logged."""
        return self.monitor if self.smooth == 1 else SCORE

    @property
    def told_unfreeze(self) -> str:
        """What trains of the encoders, in words."""
        words = {"all": "all", "lora": "adapters", "1": "last block"}
        parts = [
            f"{modality} ({words.get(str(what), f'last {what} blocks')})"
            for modality, what in self.unfreeze.items()
            if what != "none"
        ]
        return f"unfreezes {' and '.join(parts)}" if parts else "encoders frozen"

    def size(self, utterances: int) -> int:
        """The batch size on a training side of so many utterances."""
        return auto_batch_size(utterances) if self.batch_size == "auto" else int(self.batch_size)

    def settled(self, batch_size: int, steps_per_epoch: int) -> Self:
        """The stage on a corpus where an epoch has so many steps: its length and its patience in epochs."""
        epochs, patience = self.epochs, self.patience
        if epochs is None:
            assert self.steps is not None
            epochs = in_epochs(self.steps, steps_per_epoch, self.min_epochs, self.max_epochs)
        if patience is None and self.patience_steps is not None:
            patience = in_epochs(self.patience_steps, steps_per_epoch)
        return dataclasses.replace(self, epochs=epochs, patience=patience, batch_size=batch_size)

    def lasting(self, steps: int, steps_per_epoch: int) -> Self:
        """The stage as long as so many steps, in whole epochs."""
        return dataclasses.replace(self, epochs=in_epochs(steps, steps_per_epoch))


Trained = Mapping[str, set[Unfreeze]]
"""What trained so far of the stems, by modality, in the words of `stage.<name>.unfreeze`."""


def trained_parts(stages: Sequence[Stage], modalities: Iterable[str]) -> Trained:
    """What stages train of the stems of some modalities, where that is anything."""
    parts = {modality: {stage.unfreeze[modality] for stage in stages} - {"none"} for modality in modalities}
    return {modality: found for modality, found in parts.items() if found}


def adapted(trained: Trained) -> set[str]:
    """The modalities of which nothing but adapters trained."""
    return {modality for modality, parts in trained.items() if parts == {"lora"}}


class Outcome(NamedTuple):
    """What became of a stage.

    Attributes:
        stage: The stage, settled.
        steps_per_epoch: Optimizer steps of an epoch.
        steps: Optimizer steps behind the weights that it ended with.
        seconds: How long it took.
    """

    stage: Stage
    steps_per_epoch: int
    steps: int
    seconds: float


def told(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """What metrics.json says of stages that ended, by their names."""
    return {
        f"{what}/{name}": value
        for name, outcome in outcomes.items()
        for what, value in (
            ("seconds", outcome.seconds),
            ("steps", outcome.steps),
            ("batch_size", outcome.stage.batch_size),
        )
    }


def read_stages(entries: Mapping[str, Any], optimizer: Any, scheduler: Any) -> list[Stage]:
    """The config's stages in the order they run; those without an optimizer or a scheduler take the run's own.

    Raises:
        InputError: no stage, a key that a stage does not have, one that is missing, a value out of range.
    """
    stages: list[Stage] = []
    fields = {field.name for field in dataclasses.fields(Stage)} - {"name", "number"}
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise InputError(f"stage.{name}={entry}: expected a stage with the keys {', '.join(sorted(fields))}.")
        for problem, keys in (("unknown key", set(entry) - fields), ("missing key", fields - set(entry))):
            if keys:
                known = f"A stage has the keys {', '.join(sorted(fields))}."
                raise InputError(f"stage.{name}: {problem} {', '.join(sorted(keys))}. {known}")
        unfreeze = entry["unfreeze"]
        if not isinstance(unfreeze, Mapping) or set(unfreeze) != {"text", "audio"}:
            found = ", ".join(unfreeze) if isinstance(unfreeze, Mapping) else unfreeze
            raise InputError(f"stage.{name}.unfreeze: expected the keys text and audio, found {found}.")
        _check_values(f"stage.{name}", entry)
        own = {"optimizer": entry["optimizer"] or optimizer, "scheduler": entry["scheduler"] or scheduler}
        stages.append(Stage(**{**entry, **own}, name=str(name), number=len(stages)))
    for before, stage in itertools.pairwise(stages):
        if stage.keep == "better" and stage.monitor != before.monitor:
            raise InputError(
                f"stage.{stage.name}.keep=better: compares its {stage.monitor} with {before.monitor} of stage "
                f"{before.name}. Give both the same `monitor`, or stage.{stage.name}.keep=always."
            )
    if not stages:
        raise InputError("stage: no stage to run. Choose stage=transfer, stage=finetune or stage=two_stage.")
    return stages


def _check_values(place: str, entry: Mapping[str, Any]) -> None:
    """Refuse the numbers and words of a stage that are none, and those that contradict each other."""
    for key in ("epochs", "steps", "min_epochs", "max_epochs", "patience_steps", "accumulate", "smooth"):
        is_needed = key in ("accumulate", "smooth")
        check_number(f"{place}.{key}", entry[key], "a whole number, 1 or more", least=1, whole=True, null=not is_needed)
    if entry["batch_size"] != "auto":
        words = "a whole number, 1 or more, or auto"
        check_number(f"{place}.batch_size", entry["batch_size"], words, least=1, whole=True)
    for key in ("learning_rate", "encoder_learning_rate", "lora_learning_rate", "patience", "gradient_clip"):
        check_number(f"{place}.{key}", entry[key], "more than 0", above=True, null=True)
    decay = entry["layer_decay"]
    check_number(f"{place}.layer_decay", decay, "above 0 and up to 1", above=True, most=1, null=True)
    check_number(f"{place}.ema", entry["ema"], "a decay between 0 and 1", most=1, above=True, below=True, null=True)
    check_word(f"{place}.monitor", entry["monitor"], MONITORS)
    check_word(f"{place}.select", entry["select"], ("best", "last"))
    check_word(f"{place}.keep", entry["keep"], ("better", "always"))
    if entry["epochs"] is None and entry["steps"] is None:
        raise InputError(f"{place}: has neither epochs nor steps, so that it has no length. Add {place}.steps=1000.")
    least, most = entry["min_epochs"], entry["max_epochs"]
    if least is not None and most is not None and least > most:
        raise InputError(f"{place}.min_epochs={least}: is more than {place}.max_epochs={most}.")


def choose_stage(stages: Sequence[Stage], scores: Sequence[float], counts: Sequence[int]) -> Stage:
    """The stage whose weights a run ends with.

    It is the one of the best score. Of those that differ by no more than the score's standard error it is the earlier,
    whose encoders are nearer to what they were: the one-standard-error rule (Breiman et al. 1984, "Classification and
    regression trees", 3.4.3), as the best of many epochs is partly luck on few utterances. A stage that is `always`
    kept takes the place of all before it.

    Args:
        stages: All stages in their order. What is compared has the same `monitor`, as `read_stages` sees to.
        scores: The score of the weights that each ended with.
        counts: Validation utterances of each class.
    """
    chosen, best = stages[0], scores[0]
    for stage, score in zip(stages[1:], scores[1:], strict=True):
        gain = score - best if MONITORS[stage.monitor] == "max" else best - score
        least = ROUNDING * max(1.0, abs(best)) + standard_error(stage.monitor, best, counts)
        if stage.keep == "always" or gain > least:
            chosen, best = stage, score
    return chosen


def standard_error(monitor: str, score: float, counts: Sequence[int]) -> float:
    """The standard error of a score over utterances that are right or wrong each by itself; of a loss it is 0.

    That of UA is the one of a mean of recalls where all classes are recognised alike, sqrt(p (1 - p) sum(1 / n_c)) / C.

    Args:
        monitor: What the score is, one of `MONITORS`.
        score: Its value p.
        counts: Utterances n_c of each of C classes; those without any count for nothing.
    """
    spread, present = max(0.0, score * (1 - score)), [count for count in counts if count]  # rounded, 1 may be above it
    if monitor == "val/ua":
        return math.sqrt(spread * sum(1 / count for count in present)) / len(present)
    return math.sqrt(spread / sum(present)) if monitor == "val/wa" else 0.0


def told_score(stage: Stage, score: float, counts: Sequence[int]) -> str:
    """The score that a stage ended with, and its standard error, in words."""
    error = standard_error(stage.monitor, score, counts)
    return f"{stage.name} {SAID[stage.monitor]} {score:.4f}" + (f" ± {error:.4f}" if error else "")
