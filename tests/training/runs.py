"""What tests of whole runs share: reading what a run left, evaluating it, and a death in its midst."""

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from fourm_ser.runs import evaluation
from tests.conftest import CONF


class DiedError(Exception):
    """Ends a run where nothing of it catches errors, as a kill does."""


def lasting(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that a repetition has to give again."""
    return {name: value for name, value in metrics.items() if not name.startswith(("seconds/", "encoded/"))}


def read_metrics(run_dir: Path) -> dict[str, Any]:
    """What a run's metrics.json holds."""
    metrics: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    return metrics


def evaluate(*words: str) -> dict[str, Any]:
    """What the command gives with few resamples."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return evaluation.evaluate(compose("evaluate", ["resamples=50", *words]), {})
