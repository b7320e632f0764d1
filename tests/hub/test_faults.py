"""What goes wrong with a hub: each in one line that says what to do, and what was fetched is kept."""

import errno
import hashlib
import os
import pickle
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import constants, snapshot_download

from fourm_ser.encoders import download
from fourm_ser.encoders.checkpoints import checkpoint_folder, fetch_weights
from fourm_ser.errors import InputError
from tests.conftest import Compose
from tests.hub.conftest import KINDS
from tests.hub.server import Hub

Put = Callable[..., str]

NAME = "model.safetensors"
CONTENT = bytes(range(256)) * 400


def refused(checkpoint: str = "lab/files") -> str:
    """The one line that says why a checkpoint cannot be had."""
    with pytest.raises(InputError) as caught:
        fetch_weights(checkpoint, ("*.json",), "encoder.text.checkpoint")
    message = str(caught.value)
    assert message.startswith(f"{checkpoint}: the checkpoint cannot be fetched from the Hugging Face hub (")
    assert "encoder.text.checkpoint=PATH" in message
    assert "\n" not in message
    return message


def content() -> bytes:
    return (fetch_weights("lab/files", ("*.json",), "asr") / NAME).read_bytes()


def begins(hub: Hub) -> list[int]:
    """From which bytes on the weights were fetched."""
    return [request.begins for request in hub.requests if request.line.startswith("GET /content/")]


def test_a_connection_that_breaks_is_gone_on_with(repository: Put, hub: Hub) -> None:
    repository({NAME: CONTENT})
    hub.faults = {NAME: ["break"] * 4, "config.json": ["break"]}
    assert content() == CONTENT
    assert begins(hub)[0] == 0
    assert all(earlier < later for earlier, later in zip(begins(hub), begins(hub)[1:], strict=False))


def test_where_nothing_comes_any_more_the_next_start_goes_on(
    repository: Put, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository({NAME: CONTENT})
    checkpoint_folder("lab/files", (), "asr")
    hub.faults = {NAME: ["stall", *["503"] * 40]}
    with monkeypatch.context() as impatient:
        impatient.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
        message = refused()
    assert "503" in message
    assert "what is fetched is kept" in message
    hub.requests.clear()
    hub.faults.clear()
    assert content() == CONTENT
    assert len(begins(hub)) == 1
    assert begins(hub)[0] > 0


def test_a_hub_that_stands_still_is_given_up(repository: Put, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository({NAME: CONTENT})
    checkpoint_folder("lab/files", (), "asr")
    hub.faults = {NAME: ["stall"] * 100}
    with monkeypatch.context() as impatient:
        impatient.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
        message = refused()
    assert re.search(r"broke off or stood still: .* MB of 0\.1 MB are kept.*HF_HUB_DOWNLOAD_TIMEOUT", message)
    hub.faults.clear()
    assert content() == CONTENT


def test_a_hub_that_does_not_answer_is_named(repository: Put, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository({NAME: CONTENT})
    hub.faults = {"revision": ["stall"]}
    with monkeypatch.context() as impatient:
        impatient.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
        message = refused()
    assert re.search(rf"the connection to {hub.url} fails: .*Timeout.*Start again later", message)
    assert content() == CONTENT


def test_a_server_that_is_gone_is_named(hub: Hub) -> None:
    hub.close()
    assert "ConnectError" in refused()


@pytest.mark.parametrize(
    ("place", "fault", "words"),
    [
        ("revision", "401 RepoNotFound", ("no such repository, or it is a private one", "hf auth login", "HF_TOKEN")),
        ("revision", "403 GatedRepo", ("it is gated", "Ask for access", "hf auth login", "HF_TOKEN")),
        (NAME, "403 GatedRepo", ("it is gated", "Ask for access", "hf auth login", "HF_TOKEN")),
        ("config.json", "403 GatedRepo", ("it is gated", "Ask for access", "hf auth login", "HF_TOKEN")),
        (NAME, "401", ("refuses access: 401", "hf auth login")),
        (NAME, "404 EntryNotFound", (f"the server has no {NAME}",)),
        ("revision", "500", ("the server answers 500", "Start again later")),
        (NAME, "500", ("the server answers 500", "Start again later")),
        ("config.json", "500", ("the server answers 500", "Start again later")),
        ("revision", "page", ("JSONDecodeError",)),
    ],
)
def test_what_the_server_refuses_is_said_with_what_to_do(
    repository: Put, hub: Hub, place: str, fault: str, words: tuple[str, ...]
) -> None:
    repository({NAME: CONTENT})
    hub.faults = {place: [fault] * 40}
    message = refused()
    assert all(word in message for word in words), message
    hub.faults.clear()
    assert content() == CONTENT


def test_a_repository_and_a_revision_that_are_not_there_are_told_apart(repository: Put, hub: Hub) -> None:
    repository({NAME: CONTENT})
    assert "no such repository" in refused("lab/other")
    assert "no such revision" in refused("lab/files@v9")
    assert "no such revision" in refused(f"lab/files@{'0' * 40}")
    for name in ("lab/files@", "lab/files@../../main"):
        with pytest.raises(InputError, match="no revision behind the @"):
            fetch_weights(name, (), "asr")


def test_a_hub_that_fails_lets_what_is_here_serve_and_says_so(
    repository: Put, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    commit = repository({NAME: CONTENT})
    assert content() == CONTENT
    hub.faults = {"revision": ["503"] * 40}
    assert content() == CONTENT
    assert f"the hub does not tell (the server answers 503); commit {commit} serves" in caplog.text


def test_content_that_is_not_the_server_s_is_not_kept(repository: Put, hub: Hub) -> None:
    repository({NAME: CONTENT})
    for fault, words in (("other", "SHA-256"), ("short", f"comes with {len(CONTENT) - 7} bytes")):
        hub.faults = {NAME: [fault]}
        message = refused()
        assert words in message
        assert "Start again to fetch it anew" in message
        assert not list(Path(constants.HF_HUB_CACHE).rglob(NAME))
    hub.requests.clear()
    assert content() == CONTENT
    assert begins(hub) == [0]


def test_what_lies_in_the_cache_is_checked_once(repository: Put, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository({NAME: CONTENT})
    snapshot_download("lab/files")
    hashed = Mock(side_effect=hashlib.file_digest)
    monkeypatch.setattr(hashlib, "file_digest", hashed)
    for process in range(3):
        monkeypatch.setattr(download, "_checked", {})
        assert content() == CONTENT, process
    assert hashed.call_count == 1
    (file,) = Path(constants.HF_HUB_CACHE).rglob(NAME)
    file.resolve().write_bytes(CONTENT[:-1] + b"!")
    assert "SHA-256" in refused()
    assert content() == CONTENT


def test_a_disk_that_is_full_is_said_with_how_much_is_needed(
    repository: Put, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository({NAME: CONTENT})
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1_234))
        assert re.search(r"model\.safetensors needs 0\.1 MB more, and .* has 0\.0 MB free.*HF_HOME", refused())

    def write(url: str, file: Any, **arguments: Any) -> None:
        file.write(CONTENT[:1_000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as filling:
        filling.setattr(download, "http_get", write)
        assert re.search(r"model\.safetensors needs 0\.1 MB more.*Make room", refused())
    hub.requests.clear()
    assert content() == CONTENT
    assert begins(hub) == [1_000]


def test_a_cache_that_cannot_be_written_is_named(
    repository: Put, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository({NAME: CONTENT})
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    message = refused()
    assert f"nothing can be written to {tmp_path / 'file' / 'hub'}" in message
    assert "HF_HOME" in message


def test_a_token_stays_with_the_hub(repository: Put, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repository({NAME: CONTENT})
    content()
    sent = {request.has_token for request in hub.requests if "/content/" not in request.line}
    assert (sent, {request.has_token for request in hub.requests if "/content/" in request.line}) == ({True}, {False})


class Planted:
    """What runs code when a pickle of it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.slow(but=["text"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_without_safetensors_are_read_and_code_in_them_is_not_run(
    kind: str, hub: Hub, saved: Callable[[str], Path], composed: Compose, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "old"
    shutil.copytree(saved(kind), folder)
    state = load_file(folder / NAME)
    (folder / NAME).unlink()
    torch.save(state, folder / "pytorch_model.bin")
    hub.commit("lab/old", folder)
    use = KINDS[kind].use
    assert use(composed, "lab/old") == use(composed, str(saved(kind)))

    torch.save({**state, "planted": Planted(tmp_path / "ran")}, folder / "pytorch_model.bin")
    hub.commit("lab/bad", folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"planted": Planted(tmp_path / "ran")}, protocol=2))
    hub.commit("lab/worse", folder)
    for name in ("lab/bad", "lab/worse"):
        with pytest.raises(InputError, match=rf"{name}.*pickled code.*not run") as caught:
            use(composed, name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_wants_code_of_its_own_is_refused(
    kind: str, hub: Hub, saved: Callable[[str], Path], composed: Compose, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(saved(kind), folder)
    config = '{"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}'
    (folder / "config.json").write_text(config)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    hub.commit("lab/own", folder)
    with pytest.raises(InputError, match=r"lab/own: .*trust_remote_code.*never") as caught:
        KINDS[kind].use(composed, "lab/own")
    assert "\n" not in str(caught.value)
    assert "own.py" not in hub.asked()
    assert not (tmp_path / "ran").exists()
