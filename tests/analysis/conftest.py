"""What the tests of analyses share: one small finished run."""

from pathlib import Path

import pytest

from fourm_ser.experiment import run
from tests.conftest import Compose


@pytest.fixture(scope="session")
def two_stage_run(tmp_path_factory: pytest.TempPathFactory, composed: Compose, slice_of_demo: list[str]) -> Path:
    """A finished run of two stages, of two epochs each, whose loss has centres."""
    run_dir = tmp_path_factory.mktemp("two_stage") / "centres"
    epochs = [f"stage.{name}.epochs=2" for name in ("transfer", "finetune")]
    run(composed(*slice_of_demo, "loss=ce_center", "stage=two_stage", *epochs), run_dir)
    return run_dir
