"""Model directories on the Hugging Face hub: which files they are, and how they come to this machine."""

import re
from pathlib import Path

from fourm_ser.errors import InputError

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # <user>/<name>
ID = re.compile(rf"{REPOSITORY.pattern}(@.*)?")


def is_hub_id(name: str) -> bool:
    """Whether a name stands for a repository of the hub, `<user>/<name>[@<revision>]`, and for nothing that is here."""
    return ID.fullmatch(name) is not None and not Path(name).exists()


def fetch_model(name: str) -> Path:
    """The folder on this machine of a model directory of the hub, fetched where it is not there yet.

    Of the repository nothing but the files of a model directory is fetched. What it says is as little trusted as what
    any folder says.

    Args:
        name: `<user>/<name>`, or `<user>/<name>@<revision>` at a branch, tag or commit of it.

    Raises:
        InputError: the hub does not give it, or it is no model of this package.
    """
    from fourm_ser.encoders.checkpoints import split_id
    from fourm_ser.encoders.download import fetch
    from fourm_ser.encoders.repositories import FAULTS, explain, look_up
    from fourm_ser.models.directory import FILES, model_files

    try:
        snapshot = look_up(*split_id(name))
        lacking = [needed for needed in FILES if needed not in snapshot.files]
        if lacking:
            raise InputError(
                f"{name}: the repository of the hub holds no {lacking[0]}: it is no model of this package. Expected "
                "one that fourm_ser push made."
            )
        fetch(snapshot, model_files(snapshot.files))
    except FAULTS as error:
        reason, advice = explain(error)
        said = f"no such folder here, and the Hugging Face hub does not give such a model ({reason}). {advice or ''}"
        raise InputError(f"{name}: {said.strip()} Or give a folder: the folder model/ of a finished run.") from error
    return snapshot.folder
