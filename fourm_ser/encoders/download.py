"""Files of the Hugging Face hub, fetched: gone on with where a fetch broke off, and checked against their hashes."""

import errno
import hashlib
import logging
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

from fourm_ser.encoders.repositories import ELSEWHERE, FetchError, Snapshot, in_a_line
from fourm_ser.files import write_text

log = logging.getLogger(__name__)

DAMAGED = "Start again to fetch it anew. Where it comes so again, a mirror (HF_ENDPOINT) or a proxy is at fault."
SHA256 = re.compile(r"[0-9a-f]{64}")


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
            _check(snapshot, path, sha256)


def _fetch_content(snapshot: Snapshot, name: str, size: int, sha256: str) -> None:
    """Put a large file's content where the hub's library looks for it: that one would begin anew after a break."""
    content = snapshot.storage / "blobs" / sha256
    part = content.with_name(f"{sha256}.fourm_ser.incomplete")
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / snapshot.storage.name / f"{sha256}.lock"  # the library's
    for folder in (content.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if content.is_file():
            return
        if _size(part) > size:
            part.unlink()
        if shutil.disk_usage(content.parent).free < size - _size(part):
            raise _no_space(name, size - _size(part))
        log.info("fetching %s of %s (%s)", name, snapshot.repo, _megabytes(size))
        try:
            _append(hf_hub_url(snapshot.repo, name, revision=snapshot.commit), part, name, size)
        except HfHubHTTPError:
            raise
        except HTTPError as error:
            seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
            raise FetchError(
                f"{name}: the connection broke off or stood still: {in_a_line(error)}",
                f"Start again: {_megabytes(_size(part))} of {_megabytes(size)} are kept. Where the network pauses for "
                f"more than {seconds} s, let the variable HF_HUB_DOWNLOAD_TIMEOUT say more.",
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_space(name, size - _size(part)) from error
            raise
        _check(snapshot, part, sha256, name)
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
            log.warning("%s: going on after %s", name, in_a_line(error))
        except OSError as error:
            if error.errno is not None:
                raise
            found = _size(part)
            part.unlink()
            reason = f"{name} comes with {found} bytes, where the hub lists {size}; it was not kept"
            raise FetchError(reason, DAMAGED) from error


_checked: dict[Path, str] = {}  # by this process, where nothing can be written


def _check(snapshot: Snapshot, path: Path, sha256: str, name: str | None = None) -> None:
    """Compare a file's content with its hash, once for as long as the file stays as it is.

    What differs is removed, so that the next fetch brings it anew.
    """
    mark, status = snapshot.storage / ".fourm_ser" / sha256, path.stat()
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


def _megabytes(size: int) -> str:
    """A number of bytes as `1.2 MB`."""
    return f"{size / 1e6:,.1f} MB"


def _no_space(name: str, lacking: int) -> FetchError:
    free = shutil.disk_usage(constants.HF_HUB_CACHE).free
    return FetchError(
        f"{name} needs {_megabytes(lacking)} more, and {constants.HF_HUB_CACHE} has {_megabytes(free)} free",
        f"Make room, or {ELSEWHERE}; what is fetched is kept.",
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
