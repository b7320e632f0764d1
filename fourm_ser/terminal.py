"""What is shown on the terminal."""

import logging
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

from rich import get_console
from rich.console import Console, OverflowMethod
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


def make_table(
    title: str | None,
    columns: Iterable[str],
    numbers: Collection[str] = (),
    *,
    overflow: OverflowMethod = "ellipsis",
    **options: Any,
) -> Table:
    """A `rich.table.Table` without rows, its title on the left, the columns that hold numbers set to the right.

    Of cells that the terminal has no room for `overflow="fold"` shows all.
    """
    table = Table(title=title, title_justify="left", **options)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow=overflow)
    return table


def say(text: str) -> None:
    """Print a text as it is, above a progress bar that is shown: it may be copied, so that nothing folds or colours it.

    What is longer than a line goes on in the terminal's next one, which a terminal copies as one.
    """
    get_console().print(Text(text), soft_wrap=True, highlight=False)


@contextmanager
def busy(what: str, console: Console | None = None) -> Iterator[None]:
    """Show on a terminal what is being done, and for how long: nothing stays of it, and nothing comes elsewhere."""
    console = console or get_console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    is_shown = console.is_terminal
    with Progress(
        *columns, console=console, transient=True, disable=not is_shown, redirect_stdout=False, redirect_stderr=False
    ) as progress:
        progress.add_task(what, total=None)
        yield


class TerminalHandler(logging.Handler):
    """Says what is logged, as it is."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record))
        except Exception:
            self.handleError(record)


def many(number: int) -> str:
    """A number of parameters, short: `84,736`, `0.5 M`."""
    return f"{number:,}" if number < 100_000 else f"{number / 1e6:,.1f} M"


def command_line(*words: str) -> str:
    """A line of this package's commands that can be pasted where one is: `fourm_ser train resume=outputs/x`.

    Where no shell finds `fourm_ser`, as in an environment that is not activated, the line names its place.
    """
    script = Path(sys.executable).with_name("fourm_ser")
    found = which("fourm_ser")
    if found is not None and Path(found).resolve() == script.resolve():
        return shlex.join(["fourm_ser", *words])
    if script.is_file():
        return shlex.join([near(script), *words])
    python = which("python")
    is_it = python is not None and Path(python).resolve() == Path(sys.executable).resolve()
    return shlex.join(["python" if is_it else near(Path(sys.executable)), "-m", "fourm_ser", *words])


def near(path: Path) -> str:
    """A path as it is shown: from where one is, if it lies there."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
