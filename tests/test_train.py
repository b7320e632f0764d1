"""The command line, as a user meets it."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fourm_ser.keys import check_config
from tests.conftest import CONF, Compose
from tests.processes import command

REPOSITORY = Path(__file__).resolve().parent.parent
PATIENT = {"WANDB_X_SERVICE_WAIT": "600", "WANDB_INIT_TIMEOUT": "600"}  # seconds, for a busy machine


def call(*arguments: str, cwd: Path, path: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "PYTHONPATH"))}
    environment |= {"COLUMNS": "200", "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, "-m", "fourm_ser.train", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_help_shows_the_groups(tmp_path: Path) -> None:
    shown = call("--help", cwd=tmp_path)
    assert shown.returncode == 0
    for group in ("encoder", "experiment", "fusion", "loss", "stage"):
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        assert len(options) > 3
        assert f"\n  {group}=" in shown.stdout
        assert ", ".join(options) in " ".join(shown.stdout.split())


@pytest.mark.slow
def test_a_run_with_wandb_and_no_key_is_logged_offline(tmp_path: Path, cache: Path, slice_of_demo: list[str]) -> None:
    short = ["stage=transfer", "stage.transfer.epochs=1", "logger=wandb", "hydra.run.dir=run"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"COLUMNS": "200", "NETRC": os.devnull, **PATIENT}
    ended = command("train", *slice_of_demo, *short, cwd=tmp_path, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert "no API key" in ended.stdout
    runs = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    assert f"wandb sync {runs[0]}" in " ".join(ended.stdout.split())
    identity = (tmp_path / "run" / "wandb" / "id").read_text()
    assert runs[0].name.endswith(identity)
    record = next(runs[0].glob("*.wandb")).read_bytes()
    for content in (b"transfer/val/ua", b"test/ua", b"self_attention", b"test/confusion_matrix"):
        assert content in record
    tables = list(runs[0].rglob("*.table.json"))
    assert any("Ses01F" in json.dumps(json.loads(table.read_text())["data"]) for table in tables)


def test_a_wheel_carries_the_configs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    for config in (REPOSITORY / "conf").rglob("*.yaml"):
        assert f"fourm_ser/conf/{config.relative_to(REPOSITORY / 'conf')}" in names
    empty = tmp_path / "empty"
    empty.mkdir()
    shown = call("--info", "searchpath", cwd=empty, path=tmp_path / "installed")
    assert str(tmp_path / "installed" / "fourm_ser" / "conf") in shown.stdout, shown.stderr


@pytest.mark.slow(but=["data", "stage"])
@pytest.mark.parametrize(
    "group",
    ["data", "fusion", "head", "loss", "stage", "optimizer", "scheduler", "sweep", "trainer", "logger", "experiment"],
)
def test_every_option_composes(group: str, composed: Compose) -> None:
    options = sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml"))
    assert options
    for option in options:
        pair = ["data@data.train=iemocap", "data@data.test=esd"] if option == "cross_corpus" else []
        config = composed(f"{group}={option}", *pair)
        assert config.get(group) or group == "experiment"  # which only chooses others
        check_config("train", config)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["text", "audio"])
def test_every_half_of_a_pair_composes(modality: str, composed: Compose) -> None:
    options = sorted(path.stem for path in (REPOSITORY / "conf" / "encoder" / modality).glob("*.yaml"))
    assert options
    for option in options:
        config = composed(f"encoder/{modality}={option}")
        check_config("train", config)
        half = config.encoder[modality]
        published = re.sub("_(server|3m_ser|4m_ser)$", "", option)
        assert half.name.removeprefix("tiny_") in (published, "bert", "lstm")
        if option.endswith("_large"):  # built on the base model's file
            assert (half.architecture.num_hidden_layers, half.normalize) == (24, "checkpoint")
            assert "large" in half.checkpoint


@pytest.mark.slow
def test_a_pair_is_what_its_name_says(composed: Compose) -> None:
    alone = {"descriptors", "prosody_cnn", "whisper_base"}  # for audio alone
    published = {"3m_ser", "4m_ser", "4m_ser_ssl"}
    pairs = {path.stem for path in (REPOSITORY / "conf" / "encoder").glob("*_*.yaml")} - alone - published
    study = {f"{text}_{audio}" for text in ("bert", "roberta") for audio in ("vggish", "hubert", "wav2vec", "wavlm")}
    assert study <= pairs
    assert composed("encoder=tiny").encoder.weights == "random"
    for pair in pairs:
        text, audio = pair.split("_", 1)
        config = composed(f"encoder={pair}")
        check_config("train", config)
        encoder = config.encoder
        assert (encoder.text.name, encoder.audio.name) == (text, audio)
        assert (encoder.weights, encoder.text.weights) == ("pretrained", "pretrained")
