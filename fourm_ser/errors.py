"""The one exception that means "your input, not our code"."""


class InputError(Exception):
    """Bad input from outside the program: a file, a table row, a config key, a checkpoint.

    The message is one clear statement for the person at the keyboard: what is wrong and where, what was expected, and
    what to do. Commands print it without a traceback and end with exit code 1.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class OtherRunError(InputError):
    """The run directory belongs to another run."""


class BusyError(OtherRunError):
    """Another process is doing the run."""


def printable(text: str) -> str:
    r"""A text that can be written anywhere: of a file's name, bytes that are no UTF-8 become escapes such as `\xe9`."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
