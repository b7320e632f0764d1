"""How long a stage lasts and how large its batches are, whatever the size of the corpus."""

import math

SHARE, LEAST, MOST = 40, 32, 128  # of `auto_batch_size`; conf/stage says them, too


def auto_batch_size(utterances: int) -> int:
    """The batch size that `auto` means: the power of two nearest to a fortieth of the training side, from 32 to 128.

    An epoch is then about forty steps where that is possible: enough for a validation to say something new, few enough
    that it comes often. Smaller batches than 32 leave classes out and cost a step for little, and beyond 128 a step
    takes longer while it learns little more. It is a function of the corpus alone, so that the same config gives the
    same.

    Args:
        utterances: how many there are on the training side.
    """
    wanted = max(LEAST, min(MOST, utterances / SHARE))
    return int(2 ** round(math.log2(wanted)))


def in_epochs(steps: float, steps_per_epoch: int, least: int | None = None, most: int | None = None) -> int:
    """The whole epochs that `steps` optimizer steps need, at least `least` (or 1) and at most `most`.

    Args:
        steps: optimizer steps.
        steps_per_epoch: optimizer steps of an epoch.
        least: the fewest epochs; None for 1.
        most: the most epochs; None for any number.
    """
    epochs = max(least or 1, math.ceil(steps / steps_per_epoch))
    return epochs if most is None else min(most, epochs)
