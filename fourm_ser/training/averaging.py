"""Averaged weights: an exponential moving average over the steps of a stage, which is what is validated and kept."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

KEY = "average"  # of a checkpoint


class MovingAverage(Callback):
    """Averages the weights after each optimizer step; the average is what validation scores and checkpoints hold.

    After step t the average is sum_i decay^(t-i) w_i / sum_i decay^(t-i) over the weights w_1 to w_t: those that the
    stage began with are no part of it, and the first 1 / (1 - decay) steps count nearly alike. (As the correction of
    the bias in Adam, Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, section 3.)

    Averaged are the parameters that train, and in step with them the floating-point buffers that checkpoints hold, such
    as the running statistics of a normalisation: those were taken under the weights that are averaged, so that their
    average, and not their last state, is near to what the averaged weights would give. Other buffers are copied.

    Training goes on with its own weights. In a checkpoint `state_dict` is the average, and the own weights are beside
    it, under `average`, so that a resumed run goes on with them. Sums are kept in float32 at least.

    Lightning's WeightAveraging would copy the whole module, frozen stems included, and ask the device at every step.

    Args:
        decay: what the weights of a step count of those of the next one, from 0 to 1.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.average: dict[str, Tensor] = {}
        self.owners: list[tuple[nn.Module, str]] = []
        self.own: list[Tensor] = []  # training's own weights, while the average stands in their place

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = averaged_names(pl_module)
        parts = [name.rpartition(".") for name in names]
        self.owners = [(pl_module.get_submodule(module), leaf) for module, _, leaf in parts]
        kept = [self.average.get(name, tensor) for name, tensor in zip(names, self._tensors(), strict=True)]
        kept = [tensor.to(pl_module.device, torch.promote_types(tensor.dtype, torch.float32)) for tensor in kept]
        self.average = {name: tensor.detach().clone() for name, tensor in zip(names, kept, strict=True)}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.steps:  # a batch of several that make one step
            return
        self.steps = trainer.global_step
        share = (1.0 - self.decay) / (1.0 - self.decay**self.steps)
        average = list(self.average.values())
        now = [tensor.to(kept.dtype) for tensor, kept in zip(self._tensors(), average, strict=True)]
        get_ema_multi_avg_fn(1.0 - share)(average, now, self.steps)  # type: ignore[no-untyped-call]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.steps:
            tensors = self._tensors()
            self.own = [tensor.clone() for tensor in tensors]  # all of them first: a name may be another's second one
            for tensor, average in zip(tensors, self.average.values(), strict=True):
                tensor.copy_(average)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for tensor, own in zip(self._tensors(), self.own, strict=bool(self.own)):
            tensor.copy_(own)
        self.own = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        own = {name: checkpoint["state_dict"][name] for name in self.average}
        average = {name: tensor.to(own[name].dtype) for name, tensor in self.average.items()}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **average}
        checkpoint[KEY] = {"steps": self.steps, "own": own, "average": dict(self.average)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint[KEY]
        self.steps, self.average = kept["steps"], kept["average"]
        pl_module.load_state_dict({**checkpoint["state_dict"], **kept["own"]})

    def _tensors(self) -> list[Tensor]:
        """What is averaged, as it is now, in the average's order; looked up, for modules may put another in place."""
        return [getattr(owner, leaf).detach() for owner, leaf in self.owners]


def averaged_names(module: nn.Module) -> list[str]:
    """The names in a module's state of what is averaged: parameters that train, and floating-point buffers.

    A buffer that holds infinities, as a mask does, is none: their average is no number.
    """
    state = module.state_dict(keep_vars=True).items()
    found = [(name, tensor) for name, tensor in state if isinstance(tensor, Tensor) and tensor.is_floating_point()]
    return [
        name
        for name, tensor in found
        if (tensor.requires_grad if isinstance(tensor, nn.Parameter) else bool(tensor.isfinite().all()))
    ]
