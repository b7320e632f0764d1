"""The command that serves: what it refuses, and where it listens."""

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi_offline")
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from starlette.testclient import TestClient

from fourm_ser import serve
from fourm_ser.errors import InputError
from tests.conftest import CONF, Compose
from tests.prediction.predictors import model


def config(*words: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("serve", list(words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], r"model: nothing is given"),
        (["model=x", "asr_language=de"], r"asr_language=de: there is no recogniser"),
        (["model=x", "port=70000"], r"port=70000"),
        (["model=x", "max_seconds=0"], r"max_seconds=0"),
        (["model=nowhere"], r"nowhere"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_listens(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        serve.run(config(*words))


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r'uvicorn is not installed. pip install "fourm_ser\[serve\]"'):
        serve.run(config(f"model={model(tmp_path / 'model', composed)}"))


@pytest.mark.parametrize(
    ("words", "called", "status"),
    [
        ([], "localhost", 200),
        ([], "lab.example", 400),
        (["host=0.0.0.0"], "lab.example", 200),
        (["host=0.0.0.0", "names=[lab.example]"], "lab.example", 200),
        (["host=0.0.0.0", "names=[lab.example]"], "other.example", 400),
    ],
)
def test_it_answers_to_its_own_names(
    words: list[str], called: str, status: int, tmp_path: Path, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **keys: given.update(keys, app=app))
    serve.run(config(f"model={model(tmp_path / 'model', composed)}", f"cache={tmp_path}", "port=8123", *words))
    assert given["port"] == 8123
    assert given["host"] == ("0.0.0.0" if words else "127.0.0.1")
    with TestClient(given["app"]) as client:
        assert client.get("/api/model", headers={"host": f"{called}:8123"}).status_code == status
