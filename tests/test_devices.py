"""What a device is called, what it computes in, what is said of one that is not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from fourm_ser.devices import (
    HostCopy,
    find_device,
    half_precision,
    ran_out_of_memory,
    resolve_accelerator,
    resolve_budget,
    resolve_devices,
    resolve_encode_precision,
    resolve_trainer_precision,
    tf32,
)
from fourm_ser.errors import InputError
from fourm_ser.models.features import Encoding
from fourm_ser.training import sweeps
from fourm_ser.training.experiment import run
from fourm_ser.training.trainer import trainer_arguments
from tests.conftest import Compose

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def see(
    monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int = 1, capability: tuple[int, int] = (9, 0)
) -> None:
    """Let PyTorch see so many GPUs of a kind."""
    device = None if kind is None else torch.device(kind)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available=False: device)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: count)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: capability)


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps", "tpu", ""])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    see(monkeypatch, None)
    with pytest.raises(InputError, match=f"device={name}: PyTorch sees no GPU here. Expected one of auto, cpu."):
        find_device(name, "device")
    see(monkeypatch, "cuda")
    if name in ("gpu", "cuda"):
        assert find_device(name, "device") == CUDA
    else:
        with pytest.raises(InputError, match=r"cuda alone here\. Expected one of auto, cpu, gpu, cuda\."):
            find_device(name, "device")


def test_lightning_s_names_of_devices_work(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, "cuda")
    assert [resolve_accelerator(name) for name in ("auto", "gpu", "cuda", "cpu")] == ["gpu", "gpu", "cuda", "cpu"]
    see(monkeypatch, "mps")  # on which nothing was ever run: by name alone
    assert [resolve_accelerator(name) for name in ("auto", "gpu", "mps", "cpu")] == ["cpu", "gpu", "mps", "cpu"]
    assert find_device("gpu", "device").type == "mps"
    see(monkeypatch, None)
    assert resolve_accelerator("auto") == "cpu"
    see(monkeypatch, "xpu")
    assert resolve_accelerator("auto") == "cpu"
    with pytest.raises(InputError, match=r"Lightning trains on cpu, cuda, mps, .*not on xpu"):
        resolve_accelerator("gpu")


@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_a_gpu_that_is_not_there_is_said_before_anything_is_prepared(
    tmp_path: Path, composed: Compose, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    see(monkeypatch, None)
    with pytest.raises(InputError, match=r"trainer\.accelerator=gpu: PyTorch sees no GPU here"):
        run(composed(f"cache={tmp_path / 'cache'}", f"trainer={trainer}"), tmp_path / "run")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("capability", "half", "trainer", "encode"),
    [
        ((9, 0), torch.bfloat16, "bf16-mixed", "bf16"),
        ((8, 0), torch.bfloat16, "bf16-mixed", "bf16"),
        ((7, 5), torch.float16, "16-mixed", "16"),
        ((7, 0), torch.float16, "16-mixed", "16"),
        ((6, 1), None, "32-true", "32"),
    ],
)
def test_auto_is_the_half_precision_that_a_gpu_computes_in(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], half: torch.dtype, trainer: str, encode: str
) -> None:
    see(monkeypatch, "cuda", capability=capability)
    assert half_precision(CUDA) == half
    assert resolve_trainer_precision("auto", CUDA) == trainer
    assert resolve_encode_precision("auto", CUDA) == encode
    for named in ("32", "bf16", "16"):
        assert resolve_encode_precision(named, CUDA) == named


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_on_processors_that_compute_in_it(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    assert resolve_encode_precision("auto", CPU) == ("bf16" if native else "32")
    assert resolve_trainer_precision("auto", CPU) == ("bf16-mixed" if native else "32-true")


@pytest.mark.parametrize("precision", ["8", "bf16-mixed", "32-true", "", "None"])
def test_another_precision_is_refused(precision: str) -> None:
    with pytest.raises(InputError, match=rf"encode\.precision={precision}: expected auto, 32, bf16 or 16"):
        resolve_encode_precision(precision, CPU)


def test_budgets_and_processes_follow_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, "cuda", count=3)
    assert resolve_budget("max_seconds", "auto", CUDA) > resolve_budget("max_seconds", "auto", CPU)
    assert resolve_devices("auto", CUDA) == 3
    assert resolve_devices("auto", CPU) == 1
    with pytest.raises(InputError, match=r"trainer\.devices=4: PyTorch sees 3 GPUs here"):
        resolve_devices(4, CUDA)


def test_tf32_is_what_was_said_and_afterwards_what_it_was() -> None:
    def now() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = now()
    assert before[1]  # PyTorch's own choice, which no encoding pass may be left to
    for allowed in (True, False):
        with tf32(allowed):
            assert now() == (allowed, allowed)
        assert now() == before


def test_rounded_features_have_a_store_of_their_own() -> None:
    def key(precision: str, device: torch.device, rounds: bool) -> str:
        return Encoding(Path(), precision, 1.0, 1.0, device, rounds).changes

    assert [key(precision, CUDA, False) for precision in ("32", "bf16", "16")] == ["", "-bf16", "-16"]
    assert key("32", CUDA, True) == "-tf32"
    assert key("32", CPU, True) == ""  # a processor has no such rounding


def test_what_ran_out_of_memory_is_told_from_other_errors() -> None:
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert ran_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert ran_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert not ran_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ran_out_of_memory(ValueError("out of memory"))


def test_a_copy_is_the_tensor() -> None:
    tensor = torch.randn(3)
    assert torch.equal(HostCopy(tensor).get(), tensor)


@pytest.mark.parametrize(("visible", "names"), [(None, ["0", "1"]), ("3, GPU-5f", ["3", "GPU-5f"])])
def test_jobs_side_by_side_take_a_gpu_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str]
) -> None:
    def another_process(number: int) -> tuple[str | None, FileLock | None]:
        with monkeypatch.context() as process:
            process.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            if visible:
                process.setenv("CUDA_VISIBLE_DEVICES", visible)
            process.setattr(sweeps, "_gpu", None)
            sweeps._take_gpu(tmp_path, number)
            return os.environ.get("CUDA_VISIBLE_DEVICES"), sweeps._gpu

    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert another_process(0) == (visible, None)  # nothing to choose
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    first, second, third = (another_process(number) for number in range(3))
    assert [first[0], second[0]] == names
    assert third == (names[0], None)  # none is left: shared, by the job's number
    assert second[1] is not None
    second[1].release()  # that process has ended
    assert another_process(3)[0] == names[1]


def test_several_processes_look_for_unused_parameters_only_where_some_may_be() -> None:
    config = {"strategy": "ddp_auto", "devices": 2, "accelerator": "gpu", "tf32": False, "compile": False}
    for skips, strategy in ((False, "ddp"), (True, "ddp_find_unused_parameters_true")):
        assert trainer_arguments(config, CUDA, skips) == {"strategy": strategy, "devices": 2, "accelerator": "cuda"}
    own = {**config, "strategy": "ddp_spawn"}
    assert trainer_arguments(own, CPU, False) == {"strategy": "ddp_spawn", "devices": 2, "accelerator": "cpu"}


@pytest.mark.parametrize(("before", "after"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_cublas_is_told_before_torch_is_there(before: str | None, after: str) -> None:
    code = "import fourm_ser, os, sys; print(os.environ['CUBLAS_WORKSPACE_CONFIG'], 'torch' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key != "CUBLAS_WORKSPACE_CONFIG"}
    environment |= {} if before is None else {"CUBLAS_WORKSPACE_CONFIG": before}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [after, "False"]
