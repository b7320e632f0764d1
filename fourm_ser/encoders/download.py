"""Files of the Hugging Face hub: looked up, fetched, gone on with where a fetch broke off, and checked.

They lie in the hub's own cache, as its library lays it out, so that all programs share them. Beside it, in `.fourm_ser`
of a repository, is remembered what a commit holds and which content was found to be what its SHA-256 says.
"""

import errno
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url

# Of the httpx that the library is built on, whichever that is; neither name is said to be exported.
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
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

from fourm_ser.errors import brief
from fourm_ser.files import write_json, write_text

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
LOG_IN = "log in (hf auth login, or the variable HF_TOKEN)"
ELSEWHERE = "let the variable HF_HOME name a folder elsewhere"
AGAIN = "Start again later: what is fetched is kept."
DAMAGED = "Start again to fetch it anew. Where it comes so again, a mirror (HF_ENDPOINT) or a proxy is at fault."

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
    def folder(self) -> Path:
        """Where its files lie on this machine, as far as they were fetched."""
        return _storage(self.repo) / "snapshots" / self.commit


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
        log.log(level, "%s: the hub was not asked (%s): commit %s serves", repo, explain(error)[0], local.commit)
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
            write_text(_storage(repo) / "refs" / revision, snapshot.commit)
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
    files = {path.name: File(None, None) for path in folder.iterdir() if path.is_file()} if folder.is_dir() else {}
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
        commit = (_storage(repo) / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return commit if COMMIT.fullmatch(commit) else None


def fetch(snapshot: Snapshot, names: Iterable[str]) -> None:
    """Have files of a repository on this machine, whole and with the content that the hub says.

    What is there is not fetched. A file that comes in part stays, and the next call goes on from there.

    Raises:
        FAULTS: a file cannot be had, or is not what the hub says.
    """
    for name in names:
        path, file = snapshot.folder / name, snapshot.files[name]
        if not path.is_file():
            if file.sha256 is not None and SHA256.fullmatch(file.sha256) and file.size is not None:
                _fetch_content(snapshot, name, file.size, file.sha256)
            timeout = constants.HF_HUB_ETAG_TIMEOUT
            hf_hub_download(snapshot.repo, name, revision=snapshot.commit, etag_timeout=timeout)
        # Where the hub did not list the hash, its cache names content by it.
        sha256 = file.sha256 or path.resolve().name
        if SHA256.fullmatch(sha256):
            _check(snapshot.repo, path, sha256)


def _fetch_content(snapshot: Snapshot, name: str, size: int, sha256: str) -> None:
    """Put a large file's content where the hub's library looks for it: that one would begin anew after a break."""
    content = _storage(snapshot.repo) / "blobs" / sha256
    part = content.with_name(f"{sha256}.fourm_ser.incomplete")
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / _storage(snapshot.repo).name / f"{sha256}.lock"  # the library's
    for folder in (content.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if content.is_file():
            return
        if _size(part) > size:
            part.unlink()
        if shutil.disk_usage(content.parent).free < size - _size(part):
            raise _no_space(name, size - _size(part))
        log.info("fetching %s of %s (%s)", name, snapshot.repo, megabytes(size))
        try:
            _append(hf_hub_url(snapshot.repo, name, revision=snapshot.commit), part, name, size)
        except HfHubHTTPError:
            raise
        except HTTPError as error:
            seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
            raise FetchError(
                f"{name}: the connection broke off or stood still: {_in_a_line(error)}",
                f"Start again: {megabytes(_size(part))} of {megabytes(size)} are kept. Where the network pauses for "
                f"more than {seconds} s, let the variable HF_HUB_DOWNLOAD_TIMEOUT say more.",
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_space(name, size - _size(part)) from error
            raise
        _check(snapshot.repo, part, sha256, name)
        part.replace(content)


def _append(url: str, part: Path, name: str, size: int) -> None:
    """Fetch what a file lacks, as long as something comes."""
    while True:
        begun = _size(part)
        try:
            with part.open("ab") as file:
                http_get(
                    url,
                    file,
                    resume_size=begun,
                    headers=build_hf_headers(),
                    expected_size=size,
                    displayed_filename=name,
                )
            return
        except HfHubHTTPError:
            raise
        except HTTPError as error:
            if _size(part) <= begun:
                raise
            log.warning("%s: going on after %s", name, _in_a_line(error))
        except OSError as error:
            if error.errno is not None:
                raise
            found = _size(part)
            part.unlink()
            reason = f"{name} comes with {found} bytes, where the hub lists {size}; it was not kept"
            raise FetchError(reason, DAMAGED) from error


_checked: dict[Path, str] = {}  # by this process, where nothing can be written


def _check(repo: str, path: Path, sha256: str, name: str | None = None) -> None:
    """Compare a file's content with its hash, once for as long as the file stays as it is.

    What differs is removed, so that the next fetch brings it anew.
    """
    mark, status = _storage(repo) / ".fourm_ser" / sha256, path.stat()
    stamp = f"{status.st_size} {status.st_mtime_ns}"
    if _checked.get(mark) == stamp:
        return
    with suppress(OSError):
        if mark.read_text(encoding="utf-8") == stamp:
            return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        with suppress(OSError):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        reason = f"{name or path.name} is damaged: its SHA-256 is {found}, the hub lists {sha256}; it was not kept"
        raise FetchError(reason, DAMAGED)
    _checked[mark] = stamp
    with suppress(OSError):
        write_text(mark, stamp)


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
        return f"a file is missing there: {_in_a_line(error)}", AGAIN
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is a private one", f"Check its name; for a private one {LOG_IN}."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return (
                f"the server refuses access: {status}",
                f"For what is not public {LOG_IN} with a token that may read.",
            )
        return f"the server answers {status}", AGAIN
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return f"nothing can be written to {constants.HF_HUB_CACHE}: {_in_a_line(error)}", f"Or {ELSEWHERE}."
    return _in_a_line(error), None


def megabytes(size: int) -> str:
    """A number of bytes as `1.2 MB`."""
    return f"{size / 1e6:,.1f} MB"


def _no_space(name: str, lacking: int) -> FetchError:
    free = shutil.disk_usage(constants.HF_HUB_CACHE).free
    return FetchError(
        f"{name} needs {megabytes(lacking)} more, and {constants.HF_HUB_CACHE} has {megabytes(free)} free",
        f"Make room, or {ELSEWHERE}; what is fetched is kept.",
    )


def _storage(repo: str) -> Path:
    """A repository's folder in the hub's cache."""
    return Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo, repo_type="model")


def _listing(repo: str, commit: str) -> Path:
    return _storage(repo) / ".fourm_ser" / f"{commit}.json"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _in_a_line(error: Exception) -> str:
    return f"{brief(error)} ({type(error).__name__})"
