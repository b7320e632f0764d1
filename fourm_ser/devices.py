"""Where things are computed, and every `auto` that hangs on it: device, precision, budgets, processes, workers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fourm_ser.errors import InputError

HALVES = {"bf16": torch.bfloat16, "16": torch.float16}
"""The half precisions that stems are encoded in, by their names in the config."""

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What Lightning's mixed precisions compute in."""

BUDGETS = {"max_seconds": (24.0, 240.0), "max_tokens": (2_000.0, 32_000.0)}
"""What a batch may hold on a processor, whose caches its activations should fit, and on a GPU, which it should fill."""

MOST_WORKERS = 8  # beyond it they wait for the disk, or for the process that they feed


def find_device(name: str, key: str) -> torch.device:
    """The device of a name; `auto` is the GPU where there is one, but for Apple's MPS, on which nothing was ever run.

    Args:
        name: `auto`, `cpu`, `gpu`, or PyTorch's own name of the GPU here: `cuda` (AMD's cards, too), `mps` or another.
        key: the config's key, for the error.

    Raises:
        InputError: there is no such device here; those that there are.
    """
    here = torch.accelerator.current_accelerator(check_available=True)
    if name == "cpu" or (name == "auto" and (here is None or here.type == "mps")):
        return torch.device("cpu")
    if here is not None and name in ("auto", "gpu", here.type):
        return torch.device(here.type)
    names = ", ".join(["auto", "cpu", *([] if here is None else ["gpu", here.type])])
    found = "no GPU" if here is None else f"{here.type} alone"
    raise InputError(f"{key}={name}: PyTorch sees {found} here. Expected one of {names}.")


def resolve_accelerator(name: str) -> str:
    """Replace `auto` in `trainer.accelerator` by `gpu`, where there is one that Lightning trains on, or `cpu`.

    Raises:
        InputError: there is no such device here, or Lightning cannot train on it.
    """
    from pytorch_lightning.accelerators import AcceleratorRegistry  # seconds that predicting does not need

    device = find_device(name, "trainer.accelerator")
    known = sorted(AcceleratorRegistry.available_accelerators())
    if name == "auto":
        return "gpu" if device.type != "cpu" and device.type in known else "cpu"
    if device.type not in known:
        raise InputError(f"trainer.accelerator={name}: Lightning trains on {', '.join(known)}, not on {device.type}.")
    return name


def resolve_devices(devices: Any, device: torch.device) -> int:
    """Replace `auto` in `trainer.devices` by the number of GPUs here, or by one process on a processor.

    Raises:
        InputError: it is no positive number, or there are fewer GPUs.
    """
    count = 1 if device.type == "cpu" else torch.accelerator.device_count()
    if devices == "auto":
        return count
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise InputError(
            f"trainer.devices={devices}: expected auto or how many processes train together, each on its own device. "
            "CUDA_VISIBLE_DEVICES says which GPUs."
        )
    if device.type != "cpu" and devices > count:
        raise InputError(f"trainer.devices={devices}: PyTorch sees {count} GPUs here.")
    return devices


def half_precision(device: torch.device) -> torch.dtype | None:
    """The half precision that a device computes in natively, bf16 before float16; None where none is known to pay."""
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else None
    if device.type == "mps":
        return None  # not tried
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if capability >= (8, 0) else torch.float16 if capability >= (7, 0) else None
    supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return torch.bfloat16 if supported is not None and supported() else None


def computes_in(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device computes in a half precision natively; a GPU that does in bf16 does so in float16, too."""
    half = half_precision(device)
    return half == dtype or (dtype == torch.float16 and half is not None and device.type != "cpu")


def resolve_trainer_precision(precision: str, device: torch.device) -> str:
    """Replace `auto` in `trainer.precision`: mixed with what the device computes in natively, else `32-true`."""
    return _native(MIXED, device, "32-true") if precision == "auto" else precision


def resolve_encode_precision(precision: str, device: torch.device) -> str:
    """Replace `auto` in `encode.precision`: the half precision that the device computes in natively, else `32`.

    Raises:
        InputError: it is none of these.
    """
    if precision not in ("auto", "32", *HALVES):
        raise InputError(f"encode.precision={precision}: expected auto, 32, {' or '.join(HALVES)}.")
    return _native(HALVES, device, "32") if precision == "auto" else precision


def _native(names: dict[str, torch.dtype], device: torch.device, full: str) -> str:
    """The name of the half precision that a device computes in natively; `full` where there is none."""
    half = half_precision(device)
    return next((name for name, dtype in names.items() if dtype == half), full)


def resolve_budget(key: str, value: Any, device: torch.device) -> float:
    """Replace `auto` in `encode.max_seconds` or `encode.max_tokens` by what a batch may hold on a device."""
    return BUDGETS[key][device.type != "cpu"] if value == "auto" else float(value)


def autocast(device: torch.device, half: torch.dtype | None) -> torch.autocast:
    """Computing on a device in a half precision meanwhile; None for the precision that tensors have."""
    return torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Say meanwhile whether an NVIDIA GPU may round what float32 layers multiply to TF32's 10 bits.

    By itself PyTorch lets convolutions and recurrent layers do so, on cards since Ampere.
    """
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def resolve_workers(workers: Any) -> int:
    """Replace `auto` in `data.workers` by as many processes as there are processors for this one, eight at most.

    Processors are those that it is bound to, and not more than its threads are limited to, as launchers do where
    several jobs share a machine.
    """
    if workers != "auto":
        return int(workers)
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    processors = min(bound, int(limit)) if limit.isdecimal() and int(limit) else bound
    return min(MOST_WORKERS, processors)


def copies_ahead(device: torch.device) -> bool:
    """Whether copies to and from a device go on while the host does other things; MPS does not tell when they end."""
    return device.type not in ("cpu", "mps")


class HostCopy:
    """A tensor on its way from its device to the host, which nothing waits for until it is asked for.

    On a processor a tensor is its own copy.
    """

    def __init__(self, tensor: Tensor) -> None:
        ahead = copies_ahead(tensor.device)
        self.copy = tensor.to("cpu", non_blocking=ahead)
        self.arrived = torch.Event(tensor.device.type) if ahead else None
        if self.arrived is not None:
            self.arrived.record()

    def get(self) -> Tensor:
        """The tensor on the host; waits for it where it is not there yet."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.copy


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, on its way there from page-locked memory."""
    return tensor.to(device, non_blocking=copies_ahead(device))


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left for a tensor."""
    said = str(error)
    is_ours = isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    return isinstance(error, torch.OutOfMemoryError) or is_ours


def free_memory(device: torch.device) -> None:
    """Give back what a device holds for tensors that are gone."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
