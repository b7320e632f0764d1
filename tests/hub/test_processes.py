"""The hub by the variables of its library, as a user's processes see it: several at once, and one that is killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.server import Hub

CONTENT = bytes(range(256)) * 100_000  # more than two of the pieces of 10 MB in which it is written
FETCH = "from fourm_ser.encoders.checkpoints import fetch_weights as fetch; print(fetch('lab/files', (), 'asr'))"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(hub: Hub, tmp_path: Path) -> Start:
    """Starts a process that fetches the weights and prints their folder."""

    def begin(**variables: str) -> "subprocess.Popen[str]":
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DOWNLOAD_TIMEOUT": "120",
            **variables,
        }
        command, pipe = [sys.executable, "-c", FETCH], subprocess.PIPE
        return subprocess.Popen(command, text=True, env=environment, stdout=pipe, stderr=pipe)

    return begin


def weights(process: "subprocess.Popen[str]") -> bytes:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return (Path(output.strip()) / "model.safetensors").read_bytes()


def fetched_from(hub: Hub) -> list[int]:
    return [request.begins for request in hub.requests if request.line.startswith("GET /content/")]


def test_a_fetch_that_is_killed_is_gone_on_with(
    hub: Hub, repository: Callable[..., str], start: Start, tmp_path: Path
) -> None:
    repository({"model.safetensors": CONTENT})
    hub.faults = {"model.safetensors": ["stall"]}
    killed = start()
    while not any(path.stat().st_size for path in tmp_path.glob("cache/*/blobs/*.incomplete")):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    hub.requests.clear()
    assert weights(start()) == CONTENT
    assert [begun > 0 for begun in fetched_from(hub)] == [True]
    hub.close()
    assert weights(start(HF_HUB_OFFLINE="1")) == CONTENT


def test_two_processes_fetch_it_once(hub: Hub, repository: Callable[..., str], start: Start) -> None:
    repository({"model.safetensors": CONTENT})
    assert [weights(process) for process in [start(), start()]] == [CONTENT] * 2
    assert fetched_from(hub) == [0]
