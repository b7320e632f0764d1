"""What the figures of several analyses draw alike."""

from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def legend_below(figure: Figure, axes: Axes, columns: int, side: Literal["center", "left"] = "center") -> None:
    """The legend of one of the axes, below all of them."""
    handles, labels = axes.get_legend_handles_labels()
    loc: Any = f"outside lower {side}"
    figure.legend(handles, labels, loc=loc, ncols=columns, frameon=False, fontsize="small")
