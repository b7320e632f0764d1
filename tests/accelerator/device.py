"""The pretend accelerator: device.cpp, compiled, loaded and registered, switched on and off, and watched."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor
from torch.library import Library
from torch.utils import backend_registration

NAME = "pretend"
SOURCE = Path(__file__).with_name("device.cpp")
COMPILERS = ("g++", "c++", "clang++")
TORCH = Path(torch.__file__).parent
INCLUDE = TORCH / "include"


def find_compiler() -> str | None:
    """The first C++ compiler that there is; None without one."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def compile_library(compiler: str, folder: Path) -> Path:
    """The library in `folder`, made by the first process that asks for it, in some 15 seconds."""
    library = folder / "pretend.so"
    with FileLock(folder / "pretend.lock"):
        if not library.is_file():
            unfinished = library.with_suffix(".unfinished")
            words = ["-std=c++20", "-O1", "-w", "-fPIC", "-shared", str(SOURCE), "-o", str(unfinished)]
            words.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
            words += ["-isystem", str(INCLUDE), "-isystem", str(INCLUDE / "torch" / "csrc" / "api" / "include")]
            words += [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-lc10", "-ltorch_cpu"]
            done = subprocess.run([compiler, *words], capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{SOURCE.name} did not compile:\n{done.stderr}")
            unfinished.rename(library)
    return library


class Call(NamedTuple):
    """A line of Python at work."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{'/'.join(Path(self.file).parts[-2:])}:{self.line} {self.function}"


class Wait(NamedTuple):
    """One time that the host waited for the device.

    Attributes:
        operator: for what: an operator, `copy to the host`, `copy to the device`, `stream` or `device`.
        calls: where in Python, innermost first.
    """

    operator: str
    calls: list[Call]

    def within(self, *packages: ModuleType) -> Call | None:
        """The innermost call in code of these packages; None where there is none."""
        folders = tuple(f"{Path(str(package.__file__)).parent}{os.sep}" for package in packages)
        return next((call for call in self.calls if call.file.startswith(folders)), None)

    def __str__(self) -> str:
        return f"{self.operator} in {' < '.join(map(str, self.calls[:10]))}"


class Seen:
    """What was seen of the device while it was watched.

    Attributes:
        runs: how often each operator ran.
        waits: every time that the host waited.
        events: how often it waited for an event, and so for no more than what was asked of the device before that.
        there, back: copies to the device, and to the host, and
        bytes_there, bytes_back: how many bytes they had.
    """

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.waits: list[Wait] = []
        self.events = self.there = self.back = self.bytes_there = self.bytes_back = 0

    def note(self, what: str, where: str, size: int) -> None:
        """Add what device.cpp tells."""
        match what:
            case "runs":
                self.runs[where] += 1
            case "waits":
                stack = traceback.walk_stack(sys._getframe(2))
                self.waits.append(
                    Wait(where, [Call(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in stack])
                )
            case "event":
                self.events += 1
            case "there":
                self.there += 1
                self.bytes_there += size
            case "back":
                self.back += 1
                self.bytes_back += size


class DeviceModule(ModuleType):
    """What stands as `torch.pretend`, as `torch.cuda` does for CUDA. Its random numbers are the CPU's."""

    def __init__(self) -> None:
        super().__init__(f"torch.{NAME}")
        self.on = False

    def is_available(self) -> bool:
        return self.on

    def device_count(self) -> int:
        return int(self.on)

    def is_initialized(self) -> bool:
        return self.on

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def device(self, device: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def synchronize(self, device: Any = None) -> None:
        torch.accelerator.synchronize()

    def empty_cache(self) -> None:
        pass

    def get_device_name(self, device: Any = None) -> str:
        return "a pretend accelerator"

    def is_bf16_supported(self) -> bool:
        return True

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    def manual_seed(self, seed: int) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


def lstm_cell(
    inputs: Tensor, hidden: Tensor, cell: Tensor, bias: Tensor | None = None, other: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What accelerators fuse, and the CPU does not have: the next hidden and cell states, and the gates."""
    gates = inputs + hidden if bias is None or other is None else inputs + hidden + bias + other
    enter, keep, offer, show = gates.chunk(4, 1)
    enter, keep, offer, show = enter.sigmoid(), keep.sigmoid(), offer.tanh(), show.sigmoid()
    after = keep * cell + enter * offer
    return show * after.tanh(), after, torch.cat([enter, keep, offer, show], 1)


def lstm_cell_backward(
    of_hidden: Tensor | None, of_cell: Tensor | None, cell: Tensor, after: Tensor, gates: Tensor, has_bias: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by the gates before their functions, by the cell state before, and by the biases."""
    if of_hidden is None and of_cell is None:
        return None, None, None
    enter, keep, offer, show = gates.chunk(4, 1)
    shown = after.tanh()
    hidden = torch.zeros_like(after) if of_hidden is None else of_hidden
    through = hidden * show * (1 - shown**2) + (0 if of_cell is None else of_cell)
    parts = [
        through * offer * enter * (1 - enter),
        through * cell * keep * (1 - keep),
        through * enter * (1 - offer**2),
        hidden * shown * show * (1 - show),
    ]
    of_gates = torch.cat(parts, 1)
    return of_gates, through * keep, of_gates.sum(0) if has_bias else None


def cuda_policies() -> Iterator[tuple[str, int]]:
    """Operators that CUDA's autocast treats, with their policy in device.cpp, from PyTorch's own header."""
    header = (INCLUDE / "ATen" / "autocast_mode.h").read_text(encoding="utf-8")
    for policy, name in enumerate(("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE")):
        listed = re.search(rf"#define AT_FORALL_{name}\(_\)((?:.*\\\n)+.*\n)", header)
        operators = re.findall(r"_\((\w+)(?:, (\w+))?\)", listed[1] if listed else "")
        assert operators, f"no operators of {name} in autocast_mode.h"
        yield from ((".".join(filter(None, operator)), policy) for operator in operators)
    yield from (("norm.Scalar", 1), ("norm.ScalarOpt_dim", 1))  # float32, too, by a signature of their own


class Pretend:
    """The pretend accelerator in this process, registered and switched off.

    Args:
        library: see `compile_library`.
    """

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.module = DeviceModule()
        kernels: Any = Library
        self.kernels = kernels("aten", "IMPL")  # what it registers ends with it
        backend_registration.rename_privateuse1_backend(NAME)
        self.device = torch.device(NAME, 0)
        self.watching: list[Seen] = []
        kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64)
        self.watcher = kind(self._note)  # kept: the library calls it
        torch._register_device_module(NAME, self.module)
        backend_registration.generate_methods_for_privateuse1_backend()
        for name, kernel in (("", lstm_cell), ("_backward_impl", lstm_cell_backward)):
            self.kernels.impl(f"_thnn_fused_lstm_cell{name}", kernel, "PrivateUse1")
        for operator, policy in cuda_policies():
            self.library.pretend_autocast(operator.encode(), policy)

    @contextmanager
    def switched_on(self) -> Iterator[torch.device]:
        """PyTorch's accelerator meanwhile, and one of Lightning's by the name of its type."""
        from tests.accelerator.lightning import registered

        # In this thread: autograd makes threads for devices only where there are some at its first backward pass.
        with torch.autograd.set_multithreading_enabled(False), registered():
            self._switch(True)
            try:
                yield self.device
            finally:
                self._switch(False)

    def _switch(self, on: bool) -> None:
        self.library.pretend_switch(ctypes.c_bool(on))
        self.module.on = on

    @contextmanager
    def watched(self) -> Iterator[Seen]:
        """See what the device does meanwhile, asked by any thread."""
        seen = Seen()
        self.watching.append(seen)
        self.library.pretend_watch(self.watcher)
        try:
            yield seen
        finally:
            self.watching.remove(seen)
            if not self.watching:
                self.library.pretend_watch(None)

    def _note(self, what: bytes, where: bytes, size: int) -> None:
        for seen in self.watching:
            seen.note(what.decode(), where.decode(), size)
