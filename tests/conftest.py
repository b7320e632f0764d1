"""What several tests share: a small demo corpus, a cache, and a way to compose configs."""

import functools
import os
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, settings
from omegaconf import DictConfig

CONF = Path(__file__).resolve().parent.parent / "conf"
PIXEL = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)  # as PNG

os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
# Where others keep the processors busy, everything may take its time.
os.environ["WANDB_X_SERVICE_WAIT"] = os.environ["WANDB_INIT_TIMEOUT"] = "600"
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
# Models this small only wait for each other's threads; set before torch is imported, and for child processes.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="the tests that are marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked slow, but for the cases that it keeps; not under --all, nor where a test is named."""
    if config.getoption("--all") or any("::" in word for word in config.args):
        return
    staying, left_out = list[pytest.Item](), list[pytest.Item]()
    found = defaultdict[tuple[str, tuple[str, ...]], set[str]](set)
    for item in items:
        mark = item.get_closest_marker("slow")
        words, case = tuple(mark.kwargs.get("but", ())) if mark else (), item.name.partition("[")[2].removesuffix("]")
        kept = {word for word in words if word in case}
        found[item.nodeid.partition("[")[0], words] |= kept
        (left_out if mark and not kept else staying).append(item)
    for (name, words), kept in found.items():
        if lost := set(words) - kept:
            raise pytest.UsageError(f"{name}: slow(but=...) names no case: {', '.join(sorted(lost))}.")
    config.hook.pytest_deselected(items=left_out)
    items[:] = staying


@pytest.fixture(scope="session", autouse=True)
def _shortcuts() -> Iterator[None]:
    from tests.shortcuts import composing_once, disk_unhurried, imports_kept

    with composing_once(CONF), disk_unhurried(), imports_kept():
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_module_moves_in_inference_mode() -> Iterator[None]:
    """In inference mode no module is moved, cast or loaded: on a GPU its parameters could never train again."""
    import torch
    from torch import nn

    def guarded(own: Any) -> Any:
        @functools.wraps(own)
        def checked(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            assert not torch.is_inference_mode_enabled(), f"{type(self).__name__} moves in inference mode"
            return own(self, *args, **kwargs)

        return checked

    with pytest.MonkeyPatch.context() as patched:
        for name in ("_apply", "load_state_dict"):
            patched.setattr(nn.Module, name, guarded(getattr(nn.Module, name)))
        yield


@pytest.fixture(params=["its own kernels", "refused kernels"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Does a test twice: with what this processor has, and as on one that has none of the optional kernels."""
    from tests.missing_kernels import refuse_kernels

    if request.param == "refused kernels":
        refuse_kernels(monkeypatch)
    return str(request.param)


class Compose(Protocol):
    def __call__(self, *overrides: str) -> DictConfig: ...


def drawing_of(module: ModuleType) -> list[str]:
    """The names of what a module draws and saves figures by."""
    return [name for name in vars(module) if name.endswith("_figure")]


@contextmanager
def one_pixel() -> Iterator[None]:
    """The figures of runs and evaluations are of one pixel: drawing them takes longer than small networks train."""
    from fourm_ser.runs import evaluation, results

    with pytest.MonkeyPatch.context() as patched:
        for module in (evaluation, results):
            for name in drawing_of(module):
                patched.setattr(module, name, lambda *arguments, **words: None)
            patched.setattr(module, "save_figure", lambda figure, path: path.write_bytes(PIXEL))
        yield


def draw_again(patched: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Let a module draw, where figures are of one pixel."""
    from fourm_ser import figures

    for name in drawing_of(module):
        patched.setattr(module, name, getattr(figures, name))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests: the corpus and the features are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def slice_of_demo(cache: Path) -> list[str]:
    """Overrides for short runs on a slice of the demo corpus."""
    return [
        f"cache={cache}",
        "data.utterances=200",
        "data.workers=0",
        "trainer=cpu",
        "trainer.precision=32-true",
        "encode.precision=32",
        "encoder.text.architecture.hidden_size=32",
        "encoder.audio.hidden=16",
        "fusion=self_attention",
        "fusion.heads=4",
    ]


@pytest.fixture(scope="session")
def composed() -> Compose:
    """The config that a command line composes."""

    def compose_config(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", list(overrides))

    return compose_config


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Runs and evaluations of a module leave figures of one pixel."""
    with one_pixel():
        yield


@pytest.fixture(scope="session")
def two_stage_run(tmp_path_factory: pytest.TempPathFactory, composed: Compose, slice_of_demo: list[str]) -> Path:
    """A finished run of two stages, of two epochs each, that ends with the second; its loss has centres."""
    from fourm_ser.training.experiment import run

    run_dir = tmp_path_factory.mktemp("two_stage") / "centres"
    words = [*(f"stage.{name}.epochs=2" for name in ("transfer", "finetune")), "stage.finetune.keep=always"]
    with one_pixel():
        run(composed(*slice_of_demo, "loss=ce_center", "stage=two_stage", *words), run_dir)
    return run_dir
