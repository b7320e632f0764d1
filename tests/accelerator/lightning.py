"""The pretend accelerator as one of Lightning's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import Accelerator, AcceleratorRegistry
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import SingleDeviceStrategy

from tests.accelerator.device import NAME


class PretendAccelerator(Accelerator):
    """`Trainer(accelerator="pretend", devices=1)`."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def setup(self, trainer: Trainer) -> None:
        """Put the device where Lightning has the CPU, and CUDA's autocast, for an accelerator that it does not know."""
        strategy = trainer.strategy
        assert isinstance(strategy, SingleDeviceStrategy)
        strategy._root_device = torch.device(NAME, 0)
        if isinstance(strategy.precision_plugin, MixedPrecision):
            kept: Any = strategy.precision_plugin.precision
            strategy.precision_plugin = MixedPrecision(kept, NAME)

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return int(devices)

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, index) for index in range(devices)]

    @staticmethod
    def auto_device_count() -> int:
        return torch.accelerator.device_count()

    @staticmethod
    def is_available() -> bool:
        return torch.get_device_module(NAME).is_available()

    @staticmethod
    def name() -> str:
        return NAME


@contextmanager
def registered() -> Iterator[None]:
    """Known to Lightning meanwhile."""
    AcceleratorRegistry.register(NAME, PretendAccelerator)
    try:
        yield
    finally:
        AcceleratorRegistry.remove(NAME)
