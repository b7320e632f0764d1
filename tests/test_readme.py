"""The README's examples, as they stand there."""

import re
from pathlib import Path

import pytest

from fourm_ser.experiment import run
from tests.conftest import Compose

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
PYTHON = re.compile(r"```python\n(?P<code>.*?# (?P<path>my_lab/\w+\.py).*?)```", re.S)
YAML = re.compile(r"```yaml\n# conf/(?P<path>\S+?\.yaml);(?P<text>.*?)```", re.S)


def test_the_examples_of_extending_the_grid_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, composed: Compose, slice_of_demo: list[str]
) -> None:
    modules, options = list(PYTHON.finditer(README)), list(YAML.finditer(README))
    assert len(modules) == len(options) == 3
    for found in modules:
        path = tmp_path / found["path"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(found["code"])
    for found in options:
        path = tmp_path / "my_conf" / found["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {found['text']}")
    monkeypatch.syspath_prepend(tmp_path)
    chosen = [choice for choice in slice_of_demo if not choice.startswith(("encoder.audio", "fusion."))]
    config = composed(
        *chosen,
        f"hydra.searchpath=[file://{tmp_path / 'my_conf'}]",
        "fusion=max",
        "loss=hinge",
        "encoder/audio=mel",
        "stage=transfer",
        "stage.transfer.epochs=1",
    )
    metrics = run(config, tmp_path / "run")
    assert metrics["finished"] is True
    assert config.fusion._target_ == "my_lab.fusions.MaxFusion"
