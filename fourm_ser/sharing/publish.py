"""A finished run's model on the Hugging Face hub: what is sent, in one commit, and why it cannot be."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from omegaconf import DictConfig, OmegaConf

from fourm_ser import __version__
from fourm_ser.config import OF_ENCODERS
from fourm_ser.encoders.checkpoints import split_id
from fourm_ser.encoders.repositories import FAULTS, explain, in_a_line
from fourm_ser.errors import InputError, brief, listed
from fourm_ser.models.directory import FILES, check_digests, model_files, read_model_config
from fourm_ser.models.shared import REPOSITORY
from fourm_ser.runs.directory import RunDirectory, model_folder
from fourm_ser.sharing.card import FOLDER, Weights, is_place, make_card

log = logging.getLogger(__name__)

CARD = "README.md"
BESIDE = (CARD, ".gitattributes", ".gitignore", "LICENSE")  # what a repository may hold before there is a model
REFUSALS: tuple[type[Exception], ...] = (*FAULTS, RuntimeError)  # of an upload in a thread of its own
NOTHING = "Nothing was changed there: start again."


class Pushed(NamedTuple):
    """What was sent.

    Attributes:
        repo: The repository's id.
        commit: The commit that it is now.
        url: Its page at that commit.
        private: Whether nobody else sees it.
    """

    repo: str
    commit: str
    url: str
    private: bool


def push(
    run_dir: Path,
    repo: str,
    *,
    private: bool | None,
    licence: str | None,
    message: str | None,
    card: bool,
    resamples: int,
    seed: int,
) -> Pushed:
    """Send a finished run's model directory, as it is, and its card to a repository of the hub, in one commit.

    A repository that is not there is made. Of one that is, files of a model that this one does not have are removed,
    and others are left alone.

    Args:
        run_dir: The run directory.
        repo: `<user>/<name>`.
        private: Whether a new repository is seen by its owner alone; None for the owner's default.
        licence: An identifier of the hub's list of licences, for the card; None for none.
        message: Of the commit; None for one that says what it is.
        card: Whether README.md is written; false leaves what stands there.
        resamples: How many resamples the card's intervals are from.
        seed: Seed of these.

    Raises:
        InputError: no finished run, a model that others could not use, no token, or the hub does not take it.
    """
    if not REPOSITORY.fullmatch(repo) or "--" in repo or ".." in repo:
        raise InputError(f"repo={repo}: expected <user>/<name>, of letters, digits, -, _ and single dots.")
    run = RunDirectory(run_dir)
    run.refuse_unfinished()
    folder = model_folder(run.model)
    config = read_model_config(folder)
    check_digests(folder, config)
    _refuse_places(run_dir, config)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    strange = sorted(set(files) - set(model_files(files)))
    if strange:
        raise InputError(
            f"{folder}: holds {listed(strange)}, which is no part of a model. Move it elsewhere: the folder is sent as "
            "it is."
        )
    _refuse_without_token(repo)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, folder / name) for name in files
    ]
    try:
        if card:
            written = make_card(
                run,
                repo=repo,
                weights=find_weights(run.peek_record(), config),
                licence=licence,
                resamples=resamples,
                seed=seed,
            )
            operations.append(CommitOperationAdd(CARD, str(written).encode()))
    except (OSError, ValueError, KeyError) as error:
        said = f"no card can be made of its results: {brief(error)}. Train it again, or add card=false."
        raise InputError(f"{run_dir}: {said}") from error
    try:
        return _send(repo, operations, private, message or f"Push a model of fourm_ser {__version__}")
    except REFUSALS as error:
        reason, advice = explain_push(repo, error)
        raise InputError(f"repo={repo}: the Hugging Face hub does not take the model ({reason}). {advice}") from error


def _send(
    repo: str, operations: list[CommitOperationAdd | CommitOperationDelete], private: bool | None, message: str
) -> Pushed:
    """Commit to a repository, which is made where there is none."""
    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    info = api.model_info(repo)
    there = [file.rfilename for file in info.siblings or ()]
    strange = [name for name in there if name not in BESIDE]
    if strange and not set(FILES) <= set(there):
        raise InputError(
            f"repo={repo}: holds something else than a model of this package ({listed(strange)}). Choose another name: "
            "repo=<user>/<name>."
        )
    sent = {operation.path_in_repo for operation in operations}
    gone = [CommitOperationDelete(name) for name in model_files(there) if name not in sent]
    # Where somebody else pushed meanwhile, the hub refuses.
    done = api.create_commit(repo, [*operations, *gone], commit_message=message, parent_commit=info.sha)
    return Pushed(repo, done.oid, f"{constants.ENDPOINT}/{repo}/tree/{done.oid}", bool(info.private))


def _refuse_without_token(repo: str) -> None:
    """Refuse what needs no look at the hub to be impossible."""
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"repo={repo}: HF_HUB_OFFLINE forbids to ask the hub. Set HF_HUB_OFFLINE=0.")
    if get_token() is None:
        raise InputError(
            f"repo={repo}: there is no token. Make one that may write ({constants.ENDPOINT}/settings/tokens), and log "
            "in with it: hf auth login, or the variable HF_TOKEN."
        )


def _refuse_places(run_dir: Path, config: DictConfig) -> None:
    """Refuse a model that reads weights from a folder of this machine; warn of one that only names it."""
    own = str(RunDirectory(run_dir).model.resolve())  # of ${folder}
    for modality, node in config.encoder.items():
        for key in OF_ENCODERS:
            value = node.get(key)
            if not is_place(value) or value.startswith(own):
                continue
            if modality in config.fingerprints:
                raise InputError(
                    f"{run_dir}: its model reads weights of encoder.{modality}.{key}={value}, a place of this machine "
                    "that nobody else has. Push a run with export.include_encoders=true, which writes all weights into "
                    "its model."
                )
            log.warning("config.yaml names a place of this machine: encoder.%s.%s=%s", modality, key, value)


def find_weights(record: DictConfig, config: DictConfig) -> list[Weights]:
    """Where the weights of a model's encoders come from; the hub is asked for their licences.

    Args:
        record: The record of the run that it is of.
        config: The model directory's own.
    """
    found = []
    for modality, node in config.encoder.items():
        asked = OmegaConf.select(record, f"encoder.{modality}") or OmegaConf.select(record, "baseline.encoder") or {}
        weights, source = asked.get("weights", "random"), None
        if weights != "random":
            source = (asked.get("checkpoint") or asked.get("url")) if weights == "pretrained" else weights
        is_named = source is not None and "://" not in source and not is_place(source)
        licence = _licence(str(source)) if is_named else None
        shown = FOLDER if source is not None and is_place(source) else source
        found.append(Weights(modality, node.name, shown, licence, modality not in config.fingerprints))
    return found


def _licence(source: str) -> str | None:
    """The licence that the hub names of a checkpoint; None where it cannot be asked, or names none."""
    repo, revision = split_id(source)
    with suppress(*FAULTS):
        data = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT).card_data
        licence = None if data is None else data.get("license")
        return None if licence is None else str(licence)
    return None


def explain_push(repo: str, error: BaseException) -> tuple[str, str]:
    """Why the hub does not take a push, and what to do about it, as sentences."""
    user = repo.partition("/")[0]
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of an upload, in a thread of its own
        return explain_push(repo, error.__cause__)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to ask it", "Set HF_HUB_OFFLINE=0."
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or the token may not see it", f"Is {user} your name, or a group of yours?"
    if isinstance(error, HfHubHTTPError):
        status, own = error.response.status_code, f"{constants.ENDPOINT}/settings/tokens"
        if status == 401:
            return "it does not know the token: 401", f"Make a new one ({own}), and log in again: hf auth login."
        if status == 403:
            return f"the token may not write to {user}: 403", f"Make one that may ({own}), and log in: hf auth login."
        if status == 404:
            return "it has no such place: 404", f"Is {user} your name, or a group of yours?"
        if status in (409, 412):
            return f"somebody else changed the repository meanwhile: {status}", NOTHING
        if status == 429:
            return "it was asked too often: 429", f"{NOTHING[:-1]} in some minutes."
        return f"the server answers {status}: {brief(Exception(error.server_message or 'nothing more'))}", NOTHING
    if isinstance(error, HTTPError):
        return f"the connection to {constants.ENDPOINT} fails: {in_a_line(error)}", NOTHING
    if isinstance(error, Exception):
        reason, advice = explain(error)
        return reason, advice or NOTHING
    return str(error), NOTHING
