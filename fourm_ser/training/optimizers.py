"""The optimizer of a stage: which parameters train at which learning rate."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fourm_ser.encoders.lora import is_adapter
from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.training.stages import Stage


def build_optimizer(network: EmotionNetwork, loss: Loss, stage: Stage) -> Optimizer:
    """A stage's optimizer: a group of the network's own parameters, one for each rate of the stems, the loss's groups.

    Where the loss has an optimizer of its own, both are joined, the loss's behind the stage's.

    With `layer_decay`, a block k below a stem's last one has the rate times layer_decay ** k, whether its weights train
    or its adapters: layers near the input hold what is of use for any task, and move less (ELECTRA, Clark et al. 2020,
    https://arxiv.org/abs/2003.10555; BEiT, Bao et al. 2021, https://arxiv.org/abs/2106.08254).

    Args:
        network: The network, of whose stems what trains has `requires_grad`.
        loss: The loss, set up for the network.
        stage: The stage.
    """
    stems = {p for encoder in network.by_modality.values() for p in encoder.stem.parameters()}
    elsewhere = {*stems, *loss.parameters()}
    thawed = _stem_groups(network, stage)
    own = [parameter for parameter in network.parameters() if parameter not in elsewhere]
    rated = [(stage.learning_rate, own), *((rate, parameters) for (rate, _), parameters in thawed.items())]
    groups = [{"params": parameters, **({} if rate is None else {"lr": rate})} for rate, parameters in rated]
    optimizer = stage.optimizer(groups if loss.optimizer else groups + loss.groups())
    decay = 1.0 if stage.layer_decay is None else stage.layer_decay
    for group, (_, depth) in zip(optimizer.param_groups[1:], thawed, strict=False):
        group["lr"] *= decay**depth  # before a scheduler looks at it; the rate may be the optimizer's own
    return JoinedOptimizers([optimizer, loss.optimizer(loss.groups())]) if loss.optimizer else optimizer


def _stem_groups(network: EmotionNetwork, stage: Stage) -> dict[tuple[float | None, int], list[nn.Parameter]]:
    """What trains of the stems by its learning rate, None for the optimizer's, and how deep it lies.

    Depths are all 0 where they do not matter: then there is one group a rate.
    """
    thawed: dict[tuple[float | None, int], list[nn.Parameter]] = {}
    for encoder in network.by_modality.values():
        depths = {} if stage.layer_decay is None or encoder.frozen else encoder.depths()
        for name, parameter in encoder.stem.named_parameters():
            if parameter.requires_grad:
                rate = stage.lora_learning_rate if is_adapter(name) else None
                rate = stage.encoder_learning_rate if rate is None else rate
                thawed.setdefault((rate, depths.get(parameter, 0)), []).append(parameter)
    return thawed


def rehearse(
    optimizer: tuple[str, Callable[..., Optimizer]], scheduler: tuple[str, Callable[..., LRScheduler]]
) -> None:
    """Let an optimizer and a schedule take a step on a weight of their own, so that what cannot is refused early.

    Args:
        optimizer: Where the config says it, and what builds it from parameter groups.
        scheduler: The same of the schedule, built from an optimizer and a stage's length.

    Raises:
        InputError: values that the class does not take, or cannot reckon with.
    """
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    with _said_of(*optimizer):
        built = optimizer[1]([weight])
    with _said_of(*scheduler):
        schedule = scheduler[1](built, steps=2, steps_per_epoch=1)
    with _said_of(*optimizer), suppress(RuntimeError, AssertionError):  # of this device: the run's may be another
        built.step(lambda: 0.0)
        schedule.step()


@contextmanager
def _said_of(place: str, factory: Any) -> Iterator[None]:
    """Say what goes wrong with a factory of where it lies in the config."""
    try:
        yield
    except InputError as error:  # of a schedule: as if it were the run's own
        raise InputError(place + str(error).removeprefix("scheduler")) from error
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:
        given = ", ".join(f"{key}={value}" for key, value in getattr(factory, "keywords", {}).items())
        name = getattr(getattr(factory, "func", factory), "__name__", str(factory))
        raise InputError(f"{place}: {name} does not work with {given or 'nothing'}: {error}") from error


class JoinedOptimizers(Optimizer):
    """Several optimizers that step together, as one: Lightning trains by one alone.

    Groups and state are those of the parts, in their order.

    Args:
        parts: the optimizers, of different parameters.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[torch.Tensor, Any]:  # type: ignore[override]
        return {parameter: state for part in self.parts for parameter, state in part.state.items()}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
