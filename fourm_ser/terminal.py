"""What is shown on the terminal."""

import shlex
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from shutil import which
from typing import Any

from rich.console import OverflowMethod
from rich.table import Table


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
