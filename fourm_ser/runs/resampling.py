"""What is drawn anew to tell how sure a number is, speakers or utterances, and the quantiles that few of them need."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from fourm_ser.errors import InputError

LEVEL = 0.95  # of every interval
FEWEST = 5  # speakers, for whom there is a spread to speak of


def unit_of(speakers: Sequence[str] | np.ndarray, wanted: str = "auto") -> str:
    """What to resample: `speakers`, or `utterances`.

    Utterances of a speaker are recognised alike, so that those of few speakers say less than their number promises.

    Args:
        speakers: (n,) of the utterances.
        wanted: one of the two, or `auto`: speakers where there are five or more.

    Raises:
        InputError: speakers are wanted, and there is one alone.
    """
    count = len(set(speakers))
    if wanted == "speakers" and count < 2:
        raise InputError("resample=speakers: there is one speaker alone. Choose resample=utterances.")
    return ("speakers" if count >= FEWEST else "utterances") if wanted == "auto" else wanted


def tails(units: int) -> tuple[float, float]:
    """The two quantiles of resampled values that make a 95% interval.

    A percentile interval over few units is too narrow: their spread is that of n - 1, and no better known than
    Student's t says. Its ends are moved outwards accordingly (Hesterberg 2015, https://arxiv.org/abs/1411.5279).

    Args:
        units: how many units are resampled.
    """
    t = special.stdtrit(units - 1, (1 + LEVEL) / 2)
    low = float(special.ndtr(-math.sqrt(units / (units - 1)) * t))
    return low, 1 - low
