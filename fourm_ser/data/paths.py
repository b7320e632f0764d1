"""Where a cell of the column `audio` points to."""

import os
import re
import unicodedata
from pathlib import Path

from fourm_ser.errors import InputError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def locate(root: Path, audio: str) -> str:
    """The absolute path of what a cell names, relative to `root`. Whether there is any file, the reader says.

    A name with accents has two Unicode forms, and file systems keep the one that it was made in: where the name as it
    is written is not there, the file in the other form is meant.

    Raises:
        InputError: what is written is no path of this machine, and there is no such file.
    """
    path = str(root / audio)
    kind = _other_kind(audio)
    if audio.isascii() and kind is None:
        return path  # a table may have very many, and each question to the disk takes its time
    forms = [str(root / unicodedata.normalize(form, audio)) for form in ("NFC", "NFD")]
    found = next((form for form in (path, *forms) if os.path.exists(form)), None)
    if found is None and kind is not None:
        raise InputError(f"audio={audio}: {kind}")
    return found or path


def _other_kind(audio: str) -> str | None:
    """What is written where it is no path of this machine, and what to do; None where it may be one."""
    if audio.startswith("~"):
        return "~ stands for nobody's home in a table. Write the whole path, or one relative to the folder."
    if URL.match(audio):
        return "is an address. Download the recording and write its path."
    if os.sep == "/" and DRIVE.match(audio):
        return "is a path of Windows. Write one of this machine, relative to the folder."
    if os.sep == "/" and "\\" in audio:
        return f"backslashes part no folders here. Write {audio.replace(chr(92), '/')}."
    return None
