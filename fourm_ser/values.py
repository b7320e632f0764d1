"""What the numbers, switches and choices of a command may be, whatever class reads them later."""

import os
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from fourm_ser.checks import Number
from fourm_ser.errors import InputError

REQUIRED = ("id", "audio", "text", "emotion", "speaker")  # columns of a manifest


class Choice(NamedTuple):
    """Some values and no others."""

    values: tuple[Any, ...]

    def allows(self, value: Any) -> bool:
        """Whether it may be that; True is not 1."""
        return any(type(value) is type(allowed) and value == allowed for allowed in self.values)

    def __str__(self) -> str:
        return " or ".join(shown(value) for value in self.values)


class Words(NamedTuple):
    """A list of some words, each once."""

    words: tuple[str, ...]

    def allows(self, value: Any) -> bool:
        """Whether it may be that."""
        if not isinstance(value, ListConfig):
            return False
        return bool(value) and all(word in self.words and list(value).count(word) == 1 for word in value)

    def __str__(self) -> str:
        return f"a list of any of {', '.join(self.words)}, each once"


class WordsByModality(NamedTuple):
    """One of some words for both modalities, or such a word for `text`, for `audio`, or for each."""

    words: tuple[str, ...]

    def allows(self, value: Any) -> bool:
        """Whether it may be that."""
        if not isinstance(value, DictConfig):
            return value in self.words
        return bool(value) and set(value) <= {"text", "audio"} and all(word in self.words for word in value.values())

    def __str__(self) -> str:
        return f"{' or '.join(self.words)}, or one of them each: {{text: {self.words[0]}, audio: {self.words[-1]}}}"


Rule = Number | Choice | Words | WordsByModality

ABSENT: Any = object()
SWITCH = Choice((True, False))
WHOLE = Number(whole=True)
SEED = WHOLE._replace(most=2**32 - 1)
COUNT = WHOLE._replace(least=1)
ABOVE_0 = Number(above=True)
BUDGETS = {f"encode.{key}": ABOVE_0._replace(words=("auto",)) for key in ("max_seconds", "max_tokens")}
SECONDS = ABOVE_0._replace(words=(None,))

RULES: dict[str, dict[str, Rule]] = {
    "train": {
        "seed": SEED,
        "refit": SWITCH,
        "sweep.skip_finished": SWITCH,
        "sweep.dry_run": SWITCH,
        **BUDGETS,
        "encode.tf32": SWITCH,
        "encode.pool": WordsByModality(("none", "mean", "mean_std")),
        "encode.store": SWITCH,
        "export.include_encoders": SWITCH,
        "augment.mixup": Number(),
        "augment.copies": WHOLE,
        "augment.seed": SEED,
        "fusion.modalities": Words(("text", "audio")),
        "optimizer.lr": ABOVE_0,
        "optimizer.weight_decay": Number(),
        "lora.r": COUNT,
        "lora.alpha": ABOVE_0,
        "lora.dropout": Number(most=1, below=True),
        "encoder.init_seed": SEED,
        "encoder.text.init_seed": SEED,
        "encoder.audio.init_seed": SEED,
        "encoder.learning_rate": ABOVE_0._replace(words=(None,)),
        "trainer.num_nodes": COUNT,
        "trainer.deterministic": Choice((True, False, "warn")),
        "trainer.tf32": SWITCH,
        "trainer.compile": SWITCH,
        "trainer.keep_freed_memory": SWITCH,
        "trainer.sync_batchnorm": SWITCH,
    },
    "prepare": {"data.show_split": SWITCH},
    "evaluate": {
        "seed": SEED,
        "resamples": COUNT,
        "resample": Choice(("auto", "speakers", "utterances")),
        "classes": Choice(("all", "shared")),
        "allow_seen": SWITCH,
        "shown": WHOLE,
        "batch_size": COUNT._replace(words=(None,)),
        **BUDGETS,
    },
    "predict": {
        "window": SECONDS._replace(words=("auto", None)),
        "hop": SECONDS,
        "auto_window": ABOVE_0,
        "batch_size": COUNT,
        "batch_seconds": ABOVE_0,
        "workers": WHOLE,
        "format": Choice(("table", "json")),
        "overwrite": SWITCH,
    },
    "serve": {
        "port": COUNT._replace(most=65535),
        "window": SECONDS._replace(words=("auto", None)),
        "hop": SECONDS,
        "auto_window": ABOVE_0,
        "max_megabytes": ABOVE_0,
        "max_seconds": ABOVE_0,
        "waiting": COUNT,
        "batch_size": COUNT,
        "batch_seconds": ABOVE_0,
    },
    "export": {"overwrite": SWITCH},
    "push": {
        "private": Choice((True, False, None)),
        "card": SWITCH,
        "resamples": COUNT,
        "seed": SEED,
    },
    "analyze": {
        "seed": SEED,
        "examples.each": WHOLE,
        "examples.mistakes": WHOLE,
        "correlation.folds": WHOLE._replace(least=2),
        "correlation.components": COUNT,
        "correlation.regularisation": Number(),
        "correlation.draws": WHOLE._replace(least=100),
        "contribution.shuffles": COUNT,
        "attribution.steps": COUNT,
        "attribution.tolerance": ABOVE_0,
        "attribution.most_steps": COUNT,
    },
}


def check_values(command: str, config: DictConfig) -> None:
    """Refuse values of a command's composed config that no class refuses before something was loaded or written.

    Raises:
        InputError: the first one, by its key.
    """
    for key, rule in RULES[command].items():
        # What is not there, or waits for a value or another key, is refused where it is resolved.
        value = OmegaConf.select(config, key, default=ABSENT, throw_on_resolution_failure=False)
        if value is not ABSENT and not rule.allows(value):
            raise InputError(f"{key}={shown(value)}: expected {rule}.")
    for place in ("data", "data.train", "data.test"):
        path = OmegaConf.select(config, f"{place}.manifest", default=None, throw_on_resolution_failure=False)
        if isinstance(path, str):
            refuse_no_manifest(os.path.abspath(os.path.expanduser(path)))


def refuse_no_manifest(path: str | os.PathLike[str]) -> None:
    """Refuse a manifest that is not there.

    Raises:
        InputError: there is no such file.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such manifest. Expected a CSV with the columns {', '.join(REQUIRED)}.")


def shown(value: Any) -> str:
    """A value as a command line has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
