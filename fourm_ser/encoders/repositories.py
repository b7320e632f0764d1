"""Repositories of the Hugging Face hub: which commit a name is, what it holds, and why it cannot be had.

Their files lie in the hub's own cache, as its library lays it out, so that all programs share them. Beside them, in
`.fourm_ser` of a repository, is remembered what a commit holds and which content was found to be what its SHA-256 says.
"""

import errno
import json
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of the httpx that the library is built on, whichever that is
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from fourm_ser.errors import brief
from fourm_ser.files import write_json, write_text

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
LOG_IN = "log in (hf auth login, or the variable HF_TOKEN)"
ELSEWHERE = "let the variable HF_HOME name a folder elsewhere"
AGAIN = "Start again later: what is fetched is kept."

FAULTS: tuple[type[Exception], ...] = (HTTPError, OSError, ValueError)
"""What looking up and fetching raise; the hub's own are among them. `explain` says them in words."""


class FetchError(OSError):
    """A fetch that failed, in words.

    Attributes:
        reason: What happened.
        advice: What to do, as a sentence.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


class File(NamedTuple):
    """A file of a repository; None where the hub did not say.

    Attributes:
        size: Its length in bytes.
        sha256: The hash of its content, of the large ones.
    """

    size: int | None
    sha256: str | None


class Snapshot(NamedTuple):
    """A repository of the hub at one commit.

    Attributes:
        repo: Its id.
        commit: The commit, forty hexadecimal digits.
        files: What it holds, by their paths in there.
    """

    repo: str
    commit: str
    files: dict[str, File]

    @property
    def storage(self) -> Path:
        """The repository's folder in the hub's cache."""
        return storage_of(self.repo)

    @property
    def folder(self) -> Path:
        """Where its files lie on this machine, as far as they were fetched."""
        return self.storage / "snapshots" / self.commit


def look_up(repo: str, revision: str) -> Snapshot:
    """A repository at a branch, tag or commit; by what this machine has of it where the hub cannot be asked.

    Raises:
        FAULTS: the hub does not give it, and it is not on this machine.
    """
    if COMMIT.fullmatch(revision) and (known := _listed(repo, revision)):
        return known
    local = at_hand(repo, revision)
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except RevisionNotFoundError:
        raise
    except (HTTPError, OSError) as error:
        if local is None:
            raise
        level = logging.INFO if isinstance(error, OfflineModeIsEnabled) else logging.WARNING
        log.log(level, "%s: the hub does not tell (%s); commit %s serves", repo, explain(error)[0], local.commit)
        return local
    if not COMMIT.fullmatch(info.sha or ""):
        raise FetchError("the server names no commit", "Is HF_ENDPOINT a mirror of the hub?")
    files = {
        file.rfilename: File(file.size, None if file.lfs is None else file.lfs.sha256) for file in info.siblings or ()
    }
    snapshot = Snapshot(repo, str(info.sha), files)
    with suppress(OSError):  # a cache that is only read
        write_json(_listing(repo, snapshot.commit), {name: list(file) for name, file in files.items()})
        if not COMMIT.fullmatch(revision):
            write_text(storage_of(repo) / "refs" / revision, snapshot.commit)
    return snapshot


def at_hand(repo: str, revision: str) -> Snapshot | None:
    """A repository as far as this machine has it; None where it has nothing. The hub is not asked."""
    commit = known_commit(repo, revision)
    if commit is None:
        return None
    listed = _listed(repo, commit)
    if listed is not None:
        return listed
    folder = Snapshot(repo, commit, {}).folder  # that another program may have fetched
    found = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    files = {path.relative_to(folder).as_posix(): File(None, None) for path in found}
    return Snapshot(repo, commit, files) if files else None


def _listed(repo: str, commit: str) -> Snapshot | None:
    """What the hub once said that a commit holds; None where it was not asked."""
    try:
        listed = json.loads(_listing(repo, commit).read_text(encoding="utf-8"))
        return Snapshot(repo, commit, {name: File(*values) for name, values in listed.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def known_commit(repo: str, revision: str) -> str | None:
    """The commit that a branch or tag was when the hub was last asked; None where this machine does not know it."""
    if COMMIT.fullmatch(revision):
        return revision
    try:
        commit = (storage_of(repo) / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return commit if COMMIT.fullmatch(commit) else None


def explain(error: Exception) -> tuple[str, str | None]:
    """Why something could not be had, and what to do about it, as a sentence; None where nothing particular helps."""
    if isinstance(error, FetchError):
        return error.reason, error.advice
    causes = [error, error.__cause__]
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        where = f"it is not in {constants.HF_HUB_CACHE} as a whole, and HF_HUB_OFFLINE forbids to ask for it"
        return where, "Fetch it once where there is a network, with HF_HUB_OFFLINE=0."
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__)
    if isinstance(error, GatedRepoError):
        return "it is gated", f"Ask for access on its page of the hub, and {LOG_IN}."
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision", "Behind the @ stands a branch, a tag or a commit of it."
    if isinstance(error, RemoteEntryNotFoundError):
        return f"the server has no {error.response.url.path.rpartition('/')[2]} any more", AGAIN
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is a private one", f"Check its name; for a private one {LOG_IN}."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the server refuses access: {status}", f"Expected a token that may read it: {LOG_IN}."
        return f"the server answers {status}", AGAIN
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return (
            f"nothing can be written to {constants.HF_HUB_CACHE}: {in_a_line(error)}",
            "Let the variable HF_HOME name a folder elsewhere.",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space is left in {constants.HF_HUB_CACHE}", f"Make room, or {ELSEWHERE}."
    if isinstance(error, HTTPError):
        return f"the connection to {constants.ENDPOINT} fails: {in_a_line(error)}", AGAIN
    return in_a_line(error), None


def in_a_line(error: Exception) -> str:
    """What an exception says, and its kind, which says more where it says little."""
    return f"{brief(error)} ({type(error).__name__})"


def storage_of(repo: str) -> Path:
    """A repository's folder in the hub's cache."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _listing(repo: str, commit: str) -> Path:
    return storage_of(repo) / ".fourm_ser" / f"{commit}.json"
