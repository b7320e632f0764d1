"""Folders of strangers: copies of a finished run that are changed, and commands that are watched while they read."""

import errno
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fourm_ser.errors import InputError
from tests.conftest import CONF, Compose

SECRET = "s3cr3t-of-the-user"
COMMANDS = ("predict", "evaluate", "analyze", "resume")
WRITES = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.link": 1, "os.symlink": 1, "os.truncate": 0}
RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "urllib.Request")


class Watch:
    """What this process does that a folder which is only read could not make it do."""

    def __init__(self) -> None:
        self.allowed: list[Path] | None = None
        self.seen: list[str] = []
        self.refused: Path | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.refused is not None:
            self.refuse(event, arguments, self.refused)
        if self.allowed is None:
            return
        if event in RUNS:
            self.seen.append(f"{event} {arguments}")
            return
        where: Any = arguments[WRITES[event]] if event in WRITES else None
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            where = arguments[0]
        if isinstance(where, str | bytes) and os.fsdecode(where) != os.devnull:
            path = Path(os.path.realpath(os.fsdecode(where)))
            if not any(path.is_relative_to(folder) for folder in self.allowed):
                self.seen.append(f"{event} {path}")

    def refuse(self, event: str, arguments: tuple[Any, ...], folder: Path) -> None:
        """Be a disk that may only be read, also for root: writing in a folder fails."""
        is_written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        where = arguments[0 if is_written else WRITES[event]] if is_written or event in WRITES else None
        if not isinstance(where, str | bytes) or (event == "os.mkdir" and os.path.exists(where)):
            return
        if Path(os.fsdecode(where)).is_relative_to(folder):
            raise OSError(errno.EROFS, "Read-only file system", os.fsdecode(where))


watch = Watch()
sys.addaudithook(watch)


class Payload:
    """Leaves a file where it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = str(ran)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.ran,)


class Stranger:
    """A copy of a finished run to be changed, without what tells that it was.

    Attributes:
        run: the run directory; `model` is in it.
        home: where the stranger's files lie; its modules can be imported.
        ran: what any of the stranger's code would leave.
    """

    def __init__(self, home: Path, finished: Path) -> None:
        self.home, self.run, self.ran = home, home / "run", home / "ran"
        home.mkdir()
        shutil.copytree(finished, self.run)
        self.model = self.run / "model"
        for seal in self.run.rglob(".*.xxh"):
            seal.unlink()
        config = self.model / "config.yaml"
        config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "digests": {}}))
        (home / "stranger_code.py").write_text(f"import os\nos.mkdir({str(self.ran)!r})\nclass Head: pass\n")
        (home / "data.pkl").write_bytes(pickle.dumps(Payload(self.ran)))
        np.save(home / "data.npy", np.array([Payload(self.ran)], dtype=object), allow_pickle=True)

    def change(self, file: Path, place: str, value: Any) -> None:
        """Put a value into a YAML file, at a full key."""
        config = OmegaConf.create(yaml.safe_load(file.read_text()))
        OmegaConf.update(config, place, None, force_add=True)
        node: Any = OmegaConf.to_container(config, resolve=False)
        below = node
        *path, last = place.split(".")
        for key in path:
            below = below[key]
        below[last] = value
        file.write_text(yaml.safe_dump(node))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nothing be written in a folder meanwhile."""
    watch.refused = folder
    try:
        yield
    finally:
        watch.refused = None


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, composed: Compose, slice_of_demo: list[str]) -> Path:
    """A small finished run of two stages that ends with the second; it reads text from the store, and raw audio."""
    from fourm_ser.training.experiment import run

    run_dir = tmp_path_factory.mktemp("finished") / "run"
    words = ["data.utterances=60", *(f"stage.{name}.epochs=1" for name in ("transfer", "finetune"))]
    last = ["stage.finetune.keep=always", "stage.finetune.unfreeze={text: none, audio: all}"]
    run(composed(*slice_of_demo, "loss=ce_center", "stage=two_stage", *words, *last), run_dir)
    return run_dir


@pytest.fixture
def stranger(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stranger:
    monkeypatch.setenv("SECRET", SECRET)
    found = Stranger(tmp_path / "stranger", finished)
    monkeypatch.syspath_prepend(str(found.home))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "here"))
    return found


Refusal = Callable[..., str]


@pytest.fixture
def refusal(
    stranger: Stranger,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Refusal]:
    """Do a command on the stranger's folder: the one line that it ends in, having run and written nothing else."""

    def refused(command: str, *words: str) -> str:
        monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of a fresh clone, whose modules are imported here
        watch.seen.clear()
        watch.allowed = [stranger.run, tmp_path / "here", cache]
        try:
            with pytest.raises((InputError, OSError)) as raised:
                do(command, stranger, tmp_path, *words)
        finally:
            watch.allowed = None
        said = f"{raised.value}"
        printed = capsys.readouterr()
        assert len(said.splitlines()) == 1, said
        assert not stranger.ran.exists(), said
        assert not watch.seen
        assert SECRET not in said + printed.out + printed.err
        return said

    yield refused
    assert "stranger_code" not in sys.modules


def do(command: str, stranger: Stranger, tmp_path: Path, *words: str) -> Any:
    """What a command does, without its command line."""
    from fourm_ser import predict
    from fourm_ser.analysis.analyses import analyze
    from fourm_ser.report.__main__ import report
    from fourm_ser.runs.evaluation import evaluate
    from fourm_ser.training.experiment import resume

    if command == "resume":
        return resume(stranger.run, trust=words)
    if command == "report":
        return report([stranger.run], tmp_path / "here" / "report")
    given = {
        "predict": [f"model={stranger.model}", f"audio={stranger.home / 'none.wav'}", "text=so", "workers=0"],
        "evaluate": [f"run={stranger.run}", "resamples=100"],
        "analyze": [f"run={stranger.run}", "parts=[correlation]"],
    }[command]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, [*given, *words])
    if command == "predict":
        return predict.run(config)
    if command == "evaluate":
        return evaluate(config, {})
    return analyze(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
