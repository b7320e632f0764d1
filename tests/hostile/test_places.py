"""Places that do not do what one expects of them: caches that may only be read, full disks, pipes and devices."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from fourm_ser.data.audio import check_recording, read_audio, readable, stated_seconds
from fourm_ser.data.manifest import read_manifest
from fourm_ser.data.recordings import scan_recordings
from fourm_ser.errors import InputError, PlaceError
from fourm_ser.files import whole
from fourm_ser.prediction.listing import read_listing
from fourm_ser.training.experiment import run
from fourm_ser.training.log import LogFile
from fourm_ser.trust import own_cache
from tests.conftest import Compose
from tests.hostile.conftest import Refusal, Stranger, do, read_only
from tests.hostile.test_damage import COMPUTED

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")


@pytest.mark.slow
def test_a_cache_that_may_only_be_read_serves_a_run(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str], finished: Path
) -> None:
    config = composed(*slice_of_demo, "data.utterances=60", "stage.transfer.epochs=1")
    run(config, tmp_path / "before")
    with read_only(Path(config.cache)):
        found = run(config, tmp_path / "now")
    before = json.loads((tmp_path / "before" / "metrics.json").read_text())
    assert found["encoded/text"] == found["encoded/audio"] == 0
    assert [found[f"test{name}"] for name in COMPUTED] == [before[f"test{name}"] for name in COMPUTED]


@pytest.mark.parametrize(
    ("lacking", "word"),
    [
        (["embeddings"], "features"),
        (["corpora"], "the demo corpus"),
        (["recordings", "padding", "manifests", "tokenizers"], None),
    ],
    ids=str,
)
def test_what_a_cache_that_may_only_be_read_lacks_is_said(
    stranger: Stranger, tmp_path: Path, cache: Path, lacking: list[str], word: str | None
) -> None:
    here = tmp_path / "cache"
    shutil.copytree(cache, here)
    for name in lacking:
        shutil.rmtree(here / name)
    with read_only(here):
        if word is None:  # it is known again in no time
            assert do("evaluate", stranger, tmp_path, f"cache={here}")
            return
        with pytest.raises(PlaceError, match=rf"^{here}.*Read-only.*{word} is not there.*cache=DIR"):
            do("evaluate", stranger, tmp_path, f"cache={here}")


@pytest.mark.parametrize("command", ["evaluate", "analyze", "resume"])
def test_no_cache_is_begun_where_a_folder_alone_says(stranger: Stranger, refusal: Refusal, command: str) -> None:
    (stranger.home / "documents").mkdir()
    for name in ("out", "documents"):
        stranger.change(stranger.run / "config.yaml", "cache", str(stranger.home / name))
        said = refusal(command)
        assert f"cache={stranger.home / name}: there is no cache" in said
        assert "cache=DIR" in said
    assert not (stranger.home / "out").exists()
    assert not list((stranger.home / "documents").iterdir())


def test_a_cache_of_one_s_own_that_a_run_names_serves(stranger: Stranger, tmp_path: Path) -> None:
    assert do("evaluate", stranger, tmp_path)["test/ua"] >= 0  # by the cache that the record names
    own = tmp_path / "empty" / "embeddings"
    own.mkdir(parents=True)
    assert own_cache(own.parent, stranger.run / "config.yaml") == own.parent
    assert own_cache("~/.cache/fourm_ser", stranger.run / "config.yaml") == Path.home() / ".cache" / "fourm_ser"


def test_recordings_that_have_to_be_decoded_into_a_cache_that_may_only_be_read_are_not_to_blame(tmp_path: Path) -> None:
    path = tmp_path / "so.ogg"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    with read_only(tmp_path / "cache"), pytest.raises(PlaceError, match=r"cache.*so\.ogg is not there.*cache=DIR"):
        scan_recordings([str(path)], tmp_path, tmp_path / "cache")


def text(path: Path) -> None:
    path.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def quota(path: Path) -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


def silent(path: Path) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


@pytest.mark.parametrize("kind", ["text", "quota", "torch, which does not say it"])
def test_a_full_disk_says_which_file_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    write = {"text": text, "quota": quota}.get(kind, silent)
    path = tmp_path / "so.txt"
    path.write_text("before")
    if write is silent:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 0))
    said = rf"^{path}: the disk is full: 0\.0 MB of the file were written, .* are left"
    with pytest.raises(PlaceError, match=said), whole(path) as temporary:
        write(temporary)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


def test_what_fails_for_another_reason_is_not_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="unexpected pos"), whole(tmp_path / "so") as temporary:
        silent(temporary)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
def test_a_log_on_a_full_disk_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.log").symlink_to("/dev/full")
    file = LogFile(tmp_path / "train.log")
    for _ in range(3):
        file.handle(logging.LogRecord("so", logging.INFO, "", 0, "so", None, None))
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1
    assert "Traceback" not in said


READERS: dict[str, Callable[[Path], Any]] = {
    "a recording": read_audio,
    "its length": stated_seconds,
    "its levels": check_recording,
    "what is decoded": lambda path: readable(path, path.with_name("so.flac")),
    "a manifest": read_manifest,
    "a table of recordings": lambda path: read_listing(path, ["audio"]),
}


@needs_pipes
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "so.wav"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(InputError, match=r"so\.wav.*(pipe|no such)"):
        READERS[reader](path)


@pytest.mark.slow(but=["resume-"])
@needs_pipes
@pytest.mark.parametrize(
    ("command", "file"),
    [
        *(("evaluate", file) for file in ("config.yaml", "metrics.json", "corpus.csv", "model/config.yaml")),
        *(("evaluate", file) for file in ("model/labels.json", "model/model.safetensors", "model/text/tokenizer.json")),
        *(("predict", file) for file in ("model/config.yaml", "model/labels.json", "model/model.safetensors")),
        *(("resume", file) for file in ("config.yaml", "corpus.csv", "stages/0-transfer/checkpoints/best.ckpt")),
        *(("report", file) for file in ("config.yaml", "metrics.json", "predictions.csv", "failure.json")),
    ],
)
def test_pipes_in_folders_are_never_waited_for(
    stranger: Stranger, tmp_path: Path, cache: Path, command: str, file: str
) -> None:
    if command == "resume":
        (stranger.run / "metrics.json").unlink()
    if command == "report":
        shutil.copytree(stranger.run, stranger.run / "sound", ignore=shutil.ignore_patterns("sound"))
    (stranger.run / file).unlink(missing_ok=True)
    os.mkfifo(stranger.run / file)
    with suppress(InputError, OSError):
        do(command, stranger, tmp_path, *([f"cache={cache}"] if command in ("predict", "evaluate") else []))
