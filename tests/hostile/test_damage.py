"""Each file of a run, a model and a cache, damaged in each way: it is named in one line, made anew, or changes nothing.

`NaN` weights, doubled labels and their like, which no accident makes, are in `test_files`.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fourm_ser.data.recordings import scan_recordings
from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.hub import train_wordpiece
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError
from fourm_ser.prediction.predictor import Predictor
from fourm_ser.runs.directory import StageDirectory
from fourm_ser.training.loggers import EpochTable
from tests.hostile.conftest import do

DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "its end lost": lambda content: content[:-3],
    "garbage": lambda content: bytes(range(256)) * 4,
    "zeros": lambda content: bytes(len(content)),
    "another type": lambda content: b"[1]",
    "twice": lambda content: content + content,
    "a bit flipped": lambda content: flipped(content, len(content) // 2),
    "a bit flipped near its beginning": lambda content: flipped(content, min(30, len(content) - 1)),
    "a bit flipped near its end": lambda content: flipped(content, len(content) - 2),
    "gone": lambda content: None,
}
WORDS = ("left out", "damaged", "unfinished")  # of a report, where it says that of a run not all is shown
COMPUTED = ("/ua", "/wa", "/loss", "/ece", "/f1_macro", "/recall/anger")


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


class Copy:
    """A finished run and its cache, in a folder in which all stands again as it was before each damage.

    Attributes:
        run: the run directory.
        cache: the cache, which remembers the recordings by where they lie in it.
    """

    def __init__(self, root: Path, finished: Path, cache: Path) -> None:
        self.root, self.sound = root, root / "sound"
        self.run, self.cache = root / "now" / "run", root / "now" / "cache"
        shutil.copytree(finished, self.run)
        shutil.copytree(cache, self.cache)
        evaluate(self)
        shutil.rmtree(self.run / "evaluation")
        shutil.copytree(root / "now", self.sound, copy_function=os.link)  # nothing is ever written in place
        self.expected: dict[str, Any] = {}

    def restore(self) -> None:
        shutil.rmtree(self.root / "now")
        shutil.copytree(self.sound, self.root / "now", copy_function=os.link)

    def damage(self, path: Path, damage: str) -> None:
        content = DAMAGES[damage](path.read_bytes())
        path.unlink()
        if content is not None:
            path.write_bytes(content)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, finished: Path, cache: Path) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"), finished, cache)


@pytest.fixture
def here(copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copy]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield copy
    copy.restore()


def evaluate(it: Copy) -> Any:
    place: Any = SimpleNamespace(run=it.run, model=it.run / "model", home=it.root)
    found = do("evaluate", place, it.root, f"cache={it.cache}")
    return {f"test{name}": found[f"test{name}"] for name in COMPUTED}


def predict(it: Copy) -> Any:
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    return Predictor.load(it.run / "model", cache=it.cache, device="cpu")(samples, "so it is")


def report(it: Copy) -> Any:
    """Its tables and curves of the run beside a sound one, or the line that says that it is damaged."""
    from fourm_ser.report.__main__ import report as report_on

    lines = report_on([it.run, it.sound / "run"], Path("report"))
    page = Path("report", "report.html").read_text(encoding="utf-8")
    damaged = [line for line in [*lines, *page.splitlines()] if any(word in line for word in WORDS)]
    if damaged:
        raise InputError(f"{it.run}: {' '.join(damaged)[:500]}")
    return Path("report", "results.csv").read_text(), re.sub(r"\nMade .* UTC by", "", page)  # whatever the minute


def resume(it: Copy) -> Any:
    from fourm_ser.training import experiment

    return experiment.resume(it.run)


def stage(it: Copy) -> Any:
    """All that resume and analyze read of a stage."""
    found: list[Any] = []
    for path in sorted((it.run / "stages").iterdir()):
        folder = StageDirectory(path)
        best, last = folder.read_best(), folder.read_last()
        found += [best["state_dict"], best["epoch"], folder.read_score(), last["state_dict"], last["global_step"]]
        found += [folder.read_seconds(), folder.read_epochs(), EpochTable(folder.epochs).rows]
    return [
        {name: tensor.double().sum().item() for name, tensor in part.items()} if number % 8 in (0, 3) else part
        for number, part in enumerate(found)
    ]


def recordings(it: Copy) -> Any:
    (source,) = it.cache.glob("corpora/demo-1-60-0")
    return scan_recordings(sorted(map(str, source.glob("wav/*.wav"))), source, it.cache)


def tokenizer(it: Copy) -> Any:
    return sorted(train_wordpiece(Resources(it.cache, ["so it is", "it was so"]), 40).get_vocab().items())


def store(it: Copy) -> Any:
    """What there is to say of each store."""
    for about in it.cache.glob("embeddings/*"):
        name, _, fingerprint = about.name.rpartition("-")
        FeatureStore(root=about.parent, name=name, fingerprint=fingerprint, made_by={})
    return [json.loads(path.read_text())["format"] for path in it.cache.glob("embeddings/*/store.json")]


STAGE = "run/stages/1-finetune/"
LOOKS: dict[str, Callable[[Copy], Any]] = {
    "run/config.yaml": evaluate,
    "run/corpus.csv": evaluate,
    "run/model/config.yaml": predict,
    "run/model/labels.json": predict,
    "run/model/model.safetensors": predict,
    "run/model/text/tokenizer.json": predict,
    "run/model/text/tokenizer_config.json": predict,
    "run/metrics.json": report,
    "run/predictions.csv": report,
    f"{STAGE}metrics.csv": report,
    f"{STAGE}finished.json": stage,
    f"{STAGE}checkpoints/best.ckpt": stage,
    f"{STAGE}checkpoints/last.ckpt": stage,
    "run/stages/0-transfer/checkpoints/best.ckpt": stage,
    "run/stages/0-transfer/metrics.csv": stage,
    "cache/embeddings/tiny_bert-*/shard-*.safetensors": evaluate,
    "cache/embeddings/tiny_bert-*/store.json": store,
    "cache/recordings/*.csv": recordings,
    "cache/tokenizers/wordpiece-*.json": tokenizer,
    "cache/corpora/demo-1-60-0/manifest.csv": evaluate,
}


# A stage has a table when its first epoch has ended.
CASES = [(file, damage) for file in LOOKS for damage in DAMAGES if (file[-11:], damage) != ("metrics.csv", "gone")]


@pytest.mark.slow(but=["config.yaml-empty", "safetensors-empty", "metrics.json-empty"])
@pytest.mark.parametrize(("file", "damage"), CASES)
def test_what_is_damaged_is_named_or_changes_nothing(here: Copy, file: str, damage: str) -> None:
    look = LOOKS[file]
    if file not in here.expected:
        here.expected[file] = look(here)
        here.restore()
    paths = sorted((here.root / "now").glob(file))
    assert paths
    for path in paths:
        here.damage(path, damage)
    try:
        found = look(here)
    except (InputError, OSError) as error:
        said = str(error)
        assert len(said.splitlines()) == 1
        assert len(said) < 2_000
        assert str(here.root) in said or "the manifest" in said
        assert not file.startswith("cache") or "corpora" in file  # it is made anew
    else:
        assert found == here.expected[file]


@pytest.mark.parametrize(
    ("command", "file"),
    [
        *(("evaluate", file) for file in ("config.yaml", "metrics.json", "corpus.csv", "model/config.yaml")),
        *(("resume", file) for file in ("config.yaml", "metrics.json", "corpus.csv")),
    ],
)
def test_every_command_looks(here: Copy, command: str, file: str) -> None:
    here.damage(here.run / file, "a bit flipped")
    with pytest.raises((InputError, OSError), match=str(here.run / file)):
        {"evaluate": evaluate, "resume": resume}[command](here)
