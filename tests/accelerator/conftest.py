"""The pretend accelerator of this folder's tests, see device.py: where it is switched on, `auto` and `gpu` mean it."""

import copy
import os
from collections.abc import Iterator

import pytest
import torch
from omegaconf import DictConfig

from fourm_ser.analysis import analyses
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.runs import evaluation, results
from tests.accelerator import networks
from tests.accelerator.device import Pretend, compile_library, find_compiler
from tests.accelerator.networks import Build
from tests.conftest import Compose


@pytest.fixture(scope="session")
def pretend(tmp_path_factory: pytest.TempPathFactory) -> Pretend:
    """The accelerator, compiled once a session of tests, registered for good, and switched off."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("the pretend accelerator needs a C++ compiler: there is neither g++, c++ nor clang++")
    real = torch.accelerator.current_accelerator(check_available=True)
    if real is not None:
        pytest.skip(f"a process has one accelerator, and here it is {real}: none can be pretended beside it")
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return Pretend(compile_library(compiler, shared))


@pytest.fixture(scope="module")
def device(pretend: Pretend) -> Iterator[torch.device]:
    """The accelerator, switched on for a module's tests."""
    with pretend.switched_on() as device:
        yield device


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory, composed: Compose) -> Build:
    """Small networks by the words of a command line, each time a new copy."""
    cache = tmp_path_factory.mktemp("networks")
    built: dict[tuple[str, ...], tuple[DictConfig, EmotionNetwork]] = {}

    def copied(*words: str) -> tuple[DictConfig, EmotionNetwork]:
        if words not in built:
            built[words] = networks.build(composed, cache, words)
        return copy.deepcopy(built[words])

    return copied


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, evaluations and analyses draw nothing: figures know no device, and take longer than a small run."""
    monkeypatch.setattr(results, "save_figure", nothing)
    monkeypatch.setattr(evaluation, "save_figure", nothing)
    monkeypatch.setattr(analyses, "write_finding", nothing)
    monkeypatch.setattr(analyses, "write_page", nothing)


def nothing(*_: object) -> None:
    """Done in place of what takes time."""
