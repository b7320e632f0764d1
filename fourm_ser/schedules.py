"""Learning rate schedules, each built for a stage of so many steps; all parameter groups follow them.

All go on with every optimizer step: Lightning writes checkpoints before it moves schedules that go on with epochs, so
that a resumed run would be one epoch behind.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant(optimizer: Optimizer, steps: int, steps_per_epoch: int) -> LambdaLR:
    """The optimizer's own learning rates throughout."""
    return LambdaLR(optimizer, lambda now: 1.0)


def step(optimizer: Optimizer, steps: int, steps_per_epoch: int, epochs: int, gamma: float) -> LambdaLR:
    """Multiply the learning rates by `gamma` every `epochs` epochs."""
    return LambdaLR(optimizer, lambda now: gamma ** (now // (epochs * steps_per_epoch)))


def cosine(optimizer: Optimizer, steps: int, steps_per_epoch: int, warmup: float, floor: float) -> LambdaLR:
    """Rise in a line over the first share `warmup` of the steps, then fall along half a cosine to the share `floor`.

    Args:
        optimizer: what is scheduled.
        steps: optimizer steps of the stage.
        steps_per_epoch: optimizer steps of an epoch.
        warmup: share of the steps that the rise takes.
        floor: share of the learning rate that is left at the end.
    """
    rise = round(warmup * steps)

    def share(now: int) -> float:
        if now < rise:
            return (now + 1) / (rise + 1)
        progress = min(1.0, (now - rise) / max(1, steps - rise))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, share)
