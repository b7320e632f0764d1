"""The runs and models that commands are given, refused before anything heavy is loaded where they are none."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fourm_ser.errors import InputError
from fourm_ser.models.shared import is_hub_id
from fourm_ser.runs.directory import RunDirectory, is_model, model_folder

SIDES = ("train", "val", "test", "all")


def evaluated(given: Mapping[str, Any], *, other_corpus: bool) -> tuple[RunDirectory | None, Path]:
    """What is evaluated.

    Args:
        given: the keys of `evaluate`, of which `run`, `model` and `side` are read.
        other_corpus: whether a corpus is given beside it.

    Returns:
        The run, None where a model directory is given, and the folder of its model, or its id on the hub.

    Raises:
        InputError: neither or both are given, a model without a corpus, no such side, or there is no such run or model.
    """
    if (given["run"] is None) == (given["model"] is None):
        raise InputError("evaluate: give either run=DIR, a finished run, or model=DIR, a model directory.")
    if given["side"] not in SIDES:
        raise InputError(f"side={given['side']}: expected {', '.join(SIDES)}.")
    if given["run"] is not None:
        run = RunDirectory(Path(given["run"]).expanduser())
        run.refuse_unfinished()
        return run, run.model
    if not other_corpus:
        raise InputError("model=DIR: a model directory has no corpus. Choose one: data=iemocap data.root=DIR")
    folder = Path(given["model"]).expanduser()
    if is_hub_id(given["model"]):
        return None, folder
    inner = RunDirectory(folder).model
    if is_model(inner):
        raise InputError(f"model={folder}: is a run. Give run={folder}, or model={inner}.")
    refuse_no_model(folder)
    return None, folder


def refuse_no_model(folder: Path) -> None:
    """Refuse a folder without a model's weights."""
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder}: no model.safetensors there. Expected the folder `model` of a finished run.")


def refuse_unusable(model: str | None) -> None:
    """Refuse a model that is not given, or a folder that holds none; what the hub has is not asked for yet."""
    if not model:
        raise InputError("model: nothing is given. Add model=DIR, the folder model/ of a finished run.")
    if not is_hub_id(model):
        model_folder(Path(model).expanduser())


def analyzed(given: Iterable[str | None]) -> list[Path]:
    """The folders of the runs that are looked into, the first first; whether they have finished is not looked at.

    Raises:
        InputError: none is given, one is a model directory, or there is no such folder.
    """
    folders = [Path(path).expanduser() for path in given if path is not None]
    if not folders:
        raise InputError("analyze: nothing is given. Add run=DIR, the directory of a finished run.")
    for folder in folders:
        if is_model(folder):
            raise InputError(f"{folder}: is a model directory. Analyses need the run: give the folder above it.")
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder. Expected a run or a folder of runs, such as a sweep.")
    return folders
