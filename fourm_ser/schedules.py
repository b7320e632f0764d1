"""Learning rate schedules, each built for a stage of so many steps; all parameter groups follow them."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, StepLR


def constant(optimizer: Optimizer, steps: int) -> dict[str, Any]:
    """The optimizer's own learning rates throughout."""
    return {"scheduler": LambdaLR(optimizer, lambda step: 1.0), "interval": "epoch"}


def step(optimizer: Optimizer, steps: int, epochs: int, gamma: float) -> dict[str, Any]:
    """Multiply the learning rates by `gamma` every `epochs` epochs."""
    return {"scheduler": StepLR(optimizer, epochs, gamma), "interval": "epoch"}


def cosine(optimizer: Optimizer, steps: int, warmup: float, floor: float) -> dict[str, Any]:
    """Rise in a line over the first share `warmup` of the steps, then fall along half a cosine to the share `floor`.

    Args:
        optimizer: what is scheduled.
        steps: optimizer steps of the stage.
        warmup: share of the steps that the rise takes.
        floor: share of the learning rate that is left at the end.
    """
    rise = max(1, round(warmup * steps))

    def share(now: int) -> float:
        if now < rise:
            return (now + 1) / (rise + 1)
        progress = min(1.0, (now - rise) / max(1, steps - rise))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return {"scheduler": LambdaLR(optimizer, share), "interval": "step"}
