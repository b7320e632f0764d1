"""README.md and docs/: their examples run as they stand there, their tables say what the configs say."""

import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from fourm_ser.training.experiment import run
from tests.conftest import CONF, Compose

pytestmark = pytest.mark.usefixtures("no_figures")

README = "\n".join(
    path.read_text(encoding="utf-8")
    for path in (CONF.parent / "README.md", *sorted((CONF.parent / "docs").glob("*.md")))
)
PYTHON = re.compile(r"```python\n(?P<code>.*?# (?P<path>my_lab/\w+\.py).*?)```", re.S)
YAML = re.compile(r"```yaml\n# conf/(?P<path>\S+?\.yaml);(?P<text>.*?)```", re.S)
ROW = re.compile(r"^\| `(?P<name>\w+)` \|(?P<rest>.*)\|$", re.M)
VALUE = re.compile(r"`([\w.]+)=([^`]*)`")


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, composed: Compose, slice_of_demo: list[str]) -> Compose:
    """Composes a short run with the README's own options at hand."""
    for found in PYTHON.finditer(README):
        path = tmp_path / found["path"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(found["code"])
    for found in YAML.finditer(README):
        path = tmp_path / "my_conf" / found["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {found['text']}")
    monkeypatch.syspath_prepend(tmp_path)

    def compose_run(*overrides: str) -> DictConfig:
        given = [word for word in slice_of_demo if not word.startswith(("encoder.audio", "fusion.", "data.utterances"))]
        path = f"hydra.searchpath=[file://{tmp_path / 'my_conf'}]"
        config = composed(*given, "data.utterances=80", path, *overrides)
        for stage in config.stage.values():
            stage.epochs = 1
        return config

    return compose_run


def test_a_fusion_a_loss_and_an_encoder_of_one_s_own_train(choose: Compose, tmp_path: Path) -> None:
    assert [found["path"] for found in PYTHON.finditer(README)] == [
        "my_lab/fusions.py",
        "my_lab/losses.py",
        "my_lab/encoders.py",
    ]
    config = choose("fusion=max", "loss=hinge", "encoder/audio=mel", "stage=transfer")
    metrics = run(config, tmp_path / "run")
    assert metrics["finished"] is True
    assert metrics["test/loss/hinge"] == metrics["test/loss"]
    assert config.fusion._target_ == "my_lab.fusions.MaxFusion"


def test_a_sum_and_stages_of_one_s_own_train(choose: Compose, tmp_path: Path) -> None:
    metrics = run(choose("loss=three", "stage=polished", "fusion=concat"), tmp_path / "run")
    terms = {"ce": 1.0, "center": 0.01, "arcface": 0.1}
    assert metrics["test/loss"] == pytest.approx(sum(w * metrics[f"test/loss/{name}"] for name, w in terms.items()))
    assert {"test/loss/center/embedding", "test/loss/center/audio"} <= set(metrics)
    stages = sorted(path.name for path in (tmp_path / "run" / "stages").iterdir())
    assert stages == ["0-transfer", "1-finetune", "2-polish"]


@pytest.mark.parametrize(
    "group",
    [
        *("data", "baseline", "fusion", "head", "loss", "augment"),
        *("stage", "optimizer", "scheduler", "experiment", "trainer", "logger", "precision", "protocol", "sweep"),
    ],
)
def test_the_table_of_groups_names_every_option(group: str) -> None:
    table = README.partition("| group | options |")[2].partition("\n\n")[0]
    (row,) = (found["rest"] for found in ROW.finditer(table) if found["name"] == group)
    named = re.findall(r"`(\w+)`", row.split("|")[0])
    assert sorted(named) == sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize(("group", "options"), [("fusion", 9), ("loss", 21)])
def test_the_tables_of_fusions_and_losses_give_the_configs_defaults(group: str, options: int) -> None:
    table = README.partition(f"| `{group}=` |")[2].partition("\n\n")[0]
    rows = list(ROW.finditer(table))
    assert len(rows) == options
    with initialize_config_dir(str(CONF), version_base="1.3"):
        nodes = {row["name"]: compose(f"{group}/{row['name']}")[group] for row in rows}
    for row in rows:
        values = dict(flat(OmegaConf.to_container(nodes[row["name"]])))
        given = VALUE.findall(row["rest"])
        assert given
        assert given == [(key, value) for key, value in given if values[key] == yaml.safe_load(value)], row["name"]


def test_the_table_of_stages_gives_the_configs_defaults(composed: Compose) -> None:
    table = README.partition("| `stage.<name>.` |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    stage = OmegaConf.to_container(composed("stage=two_stage").stage, resolve=False)
    assert isinstance(stage, dict)
    for place, name in ((1, "transfer"), (2, "finetune")):
        written = {key: yaml.safe_load(row[place].strip("`")) for row in rows for key in re.findall("`(.*?)`", row[0])}
        assert written == dict(flat(stage[name]))


def flat(node: object, name: str = "") -> list[tuple[str, object]]:
    """The leaves of a config by their keys: `unfreeze.text`."""
    if not isinstance(node, dict):
        return [(name, node)]
    return [leaf for key, value in node.items() for leaf in flat(value, f"{name}.{key}" if name else str(key))]
