"""The one exception that means "your input, not our code"."""


class InputError(Exception):
    """Bad input from outside the program: a file, a table row, a config key, a checkpoint.

    The message is one clear statement for the person at the keyboard: what is wrong and where, what was expected, and
    what to do. Commands print it without a traceback and end with exit code 1.
    """


class OtherRunError(InputError):
    """The run directory belongs to another run."""


class BusyError(OtherRunError):
    """Another process is doing the run."""
