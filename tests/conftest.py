"""What several tests share: a small demo corpus, a cache, and a way to compose configs."""

import os
from pathlib import Path
from typing import Protocol

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

CONF = Path(__file__).resolve().parent.parent / "conf"

os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
# Models this small only wait for each other's threads; set before torch is imported, and for child processes.
os.environ["OMP_NUM_THREADS"] = "1"


class Compose(Protocol):
    def __call__(self, *overrides: str) -> DictConfig: ...


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
        "fusion.heads=4",
    ]


@pytest.fixture(scope="session")
def composed() -> Compose:
    """The config that a command line composes."""

    def compose_config(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", list(overrides))

    return compose_config


@pytest.fixture(scope="session")
def two_stage_run(tmp_path_factory: pytest.TempPathFactory, composed: Compose, slice_of_demo: list[str]) -> Path:
    """A finished run of two stages, of two epochs each, whose loss has centres."""
    from fourm_ser.experiment import run

    run_dir = tmp_path_factory.mktemp("two_stage") / "centres"
    epochs = [f"stage.{name}.epochs=2" for name in ("transfer", "finetune")]
    run(composed(*slice_of_demo, "loss=ce_center", "stage=two_stage", *epochs), run_dir)
    return run_dir
