"""Networks against their baselines: what a network adds to a linear probe of its encoders, in a table and in words."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from fourm_ser.report.cells import Section
from fourm_ser.report.significance import Comparison, compare_with_baselines, read_predictions

SURE = 0.05  # the least error that is called chance


class Against(NamedTuple):
    """A network against a baseline, in UA.

    Attributes:
        network: the number of the network's cell.
        baseline: the number of the baseline's cell.
        own: the network's mean over the repeats that both have; NaN where there are none.
        other: the baseline's.
        comparison: the tests, after Holm's correction.
    """

    network: int
    baseline: int
    own: float
    other: float
    comparison: Comparison

    @property
    def p(self) -> float:
        """The bootstrap's p value; the signed-rank test's where there is none."""
        found = self.comparison
        return found.wilcoxon_holm if pd.isna(found.bootstrap_holm) else found.bootstrap_holm

    @property
    def beaten(self) -> bool:
        """Whether the network is better than its baseline, by more than chance where that can be told."""
        return self.own > self.other and not self.p >= SURE


def hold_against(section: Section, predictions: Sequence[pd.DataFrame]) -> list[Against]:
    """Each network of a section against the baselines that read what it reads; predictions are each cell's."""
    found = [comparison for comparison in compare_with_baselines(section, predictions) if comparison.metric == "ua"]
    return [Against(each.first, each.second, *_means(section, each), each) for each in found]


def _means(section: Section, comparison: Comparison) -> tuple[float, float]:
    runs = section.table[section.table["cell"].isin([comparison.first, comparison.second])]
    both = runs.pivot_table("test/ua", ["fold", "drawn"], "cell").dropna()  # seeds are averaged first
    return float(both[comparison.first].mean()), float(both[comparison.second].mean())


def sentences(section: Section, found: Iterable[Against]) -> list[str]:
    """A sentence for each network that does not beat its baseline."""
    said = []
    for each in found:
        if each.beaten or pd.isna(each.own):
            continue
        network, baseline = section.cells[each.network].name, section.cells[each.baseline].name
        p = "" if pd.isna(each.p) else f" (p = {each.p:.2g})" if each.p >= 0.001 else " (p < 0.001)"
        how = "below" if each.own < each.other else "that of" if each.own == each.other else "above"
        chance = " by no more than chance may be" if how == "above" else ""
        said.append(
            f"{network}: UA {100 * each.own:.1f} is {how} its baseline {baseline}'s {100 * each.other:.1f}{chance}{p}."
        )
    return said


def note_baselines(sections: Iterable[Section]) -> list[str]:
    """Add those sentences to the notes of sections, and return them."""
    lines = []
    for section in sections:
        if section.held_against:
            predictions, _ = zip(*(read_predictions(cell.runs) for cell in section.cells), strict=True)
            said = sentences(section, hold_against(section, predictions))
            section.notes += said
            lines += said
    return lines
