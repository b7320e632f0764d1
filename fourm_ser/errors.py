"""The one exception that means "your input, not our code"."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

# What an error may quote of a file, and a terminal obeys: controls, breaks of lines, the direction of writing.
OBEYED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
LONGEST = 300  # characters of what a library says


class InputError(Exception):
    """Bad input from outside the program: a file, a table row, a config key, a checkpoint.

    The message is one clear statement for the person at the keyboard: what is wrong and where, what was expected, and
    what to do. Commands print it without a traceback and end with exit code 1.
    """

    def __str__(self) -> str:
        return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), printable(super().__str__()))


class PlaceError(InputError):
    """Nothing can be written where it has to be, on a full disk or in a cache that may only be read."""


class ValuesError(InputError):
    """What a class met in the values of a config, which none of its checks foresaw."""


class OtherRunError(InputError):
    """The run directory belongs to another run."""


class BusyError(OtherRunError):
    """Another process is doing the run."""


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, and how many more there are: `u1, u2, u3 and 5 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def brief(error: Exception) -> str:
    """An exception's first line, and the next where that one announces it, for one line of our own.

    Of two that advise to run a foreign file's code, what is the matter: this package never does.
    """
    said = str(error).strip()
    if isinstance(error, UnpicklingError):
        _, _, objects = said.partition("Unsupported global: GLOBAL ")
        return f"it holds pickled code ({objects.split()[0] if objects else 'or is damaged'}), which is not run"
    if "trust_remote_code" in said:
        return "it asks for code of its own to be run (trust_remote_code), which this package never does"
    lines = said.splitlines() or [type(error).__name__]
    first = " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")]).rstrip(".")
    return first if len(first) <= LONGEST else f"{first[:LONGEST]}..."  # some list all that could have been


class PanicError(RuntimeError):
    """A library written in Rust gave up."""


@contextmanager
def unpanicked() -> Iterator[None]:
    """Make a PanicError of what libraries written in Rust raise in a panic, which no `except Exception` catches."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise PanicError(str(error)) from error


@contextmanager
def blamed(place: Any) -> Iterator[None]:
    """Say in one line that what lies at `place`, which others may have written, cannot be used, whatever it raises."""
    try:
        yield
    except ValuesError as error:  # it tells of keys, and not whose
        raise InputError(f"{place}: {error}") from error
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:
        cause = error
        while isinstance(cause.__cause__, Exception) and type(cause).__name__ == "InstantiationException":
            cause = cause.__cause__
        if isinstance(cause, InputError):
            raise cause from error
        raise InputError(
            f"{place}: is damaged, was changed, or is of another version ({type(cause).__name__}: {brief(cause)})."
        ) from error


def printable(text: str) -> str:
    r"""A text that can be written anywhere: of a file's name, bytes that are no UTF-8 become escapes such as `\xe9`."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
