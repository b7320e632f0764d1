"""What is shown on the terminal."""

from collections.abc import Collection, Iterable
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
