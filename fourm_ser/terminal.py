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
    """A table without rows, its title on the left.

    Args:
        title: What stands above it; None for nothing.
        columns: The heads of its columns.
        numbers: Which columns hold numbers, and are set to the right.
        overflow: What becomes of cells that are longer than the terminal has room for: `fold` shows all of them.
        **options: Of `rich.table.Table`.
    """
    table = Table(title=title, title_justify="left", **options)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow=overflow)
    return table
