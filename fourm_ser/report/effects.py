"""What one axis does by itself, whatever is chosen on the others."""

from typing import NamedTuple

from scipy import stats

from fourm_ser.report.cells import Section
from fourm_ser.runs.resampling import LEVEL


class Effect(NamedTuple):
    """What a value of an axis adds to a metric: its mean distance from the mean over the axis's values.

    With the ends of the mean's 95% interval, which are NaN where nothing was repeated.
    """

    value: str
    mean: float
    low: float
    high: float


class Effects(NamedTuple):
    """The effects of an axis.

    Attributes:
        axis: the axis's name.
        effects: an effect a value; empty where no setting of the other axes was run with every value.
        settings: how many settings of the other axes were run with every value.
        n: the number of repeats, or settings, that the interval is over.
        over: what the interval is over: repeats (`folds`, `seeds` ...) or, where nothing was repeated, `settings of the
            other axes`.
    """

    axis: str
    effects: list[Effect]
    settings: int
    n: int
    over: str


def marginal_effects(section: Section, axis: str, metric: str) -> Effects:
    """Mean effect of each value of an axis over all settings of the other axes.

    Only settings of the other axes that were run with every value of the axis, in the same repeat, are compared, so
    that an incomplete sweep favours nobody. In each of them a value's effect is its distance from the mean over the
    axis's values. The interval is Student's over the repeats' mean effects, or over the settings where there is one
    repeat.
    """
    others = [name for name in section.axes if name != axis]
    long = section.values(metric).melt(ignore_index=False, value_name="score").dropna().reset_index()
    cells = long["cell"].map(lambda number: section.cells[number])
    long["value"] = [cell.values[axis] for cell in cells]
    long["setting"] = [" · ".join(cell.values[name] for name in others) for cell in cells]
    wide = long.pivot_table(index=["repeat", "setting"], columns="value", values="score")
    present = [value for value in section.axes[axis] if value in wide]
    wide = wide[present].dropna()
    if wide.empty or len(present) < 2:
        return Effects(axis, [], 0, 0, f"{section.repeat}s")
    deviations = wide.sub(wide.mean(axis=1), axis=0)
    by_repeat = deviations.groupby("repeat").mean()
    by_setting = deviations.groupby("setting").mean()
    repeated = len(by_repeat) > 1
    chosen = by_repeat if repeated else by_setting
    mean, half = chosen.mean(), stats.t.ppf((1 + LEVEL) / 2, len(chosen) - 1) * chosen.sem()
    effects = [Effect(value, mean[value], mean[value] - half[value], mean[value] + half[value]) for value in present]
    over = f"{section.repeat}s" if repeated else "settings of the other axes"
    return Effects(axis, effects, len(by_setting), len(chosen), over)
