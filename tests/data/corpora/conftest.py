"""What the tests of all readers share: corpora as a command line would build them, and what should be in them."""

import functools
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from fourm_ser.config import build
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.transcripts import Cleaning
from fourm_ser.errors import InputError
from fourm_ser.training.experiment import run
from tests.conftest import Compose
from tests.releases import Told

EVERY: dict[str, Any] = {"emotions": None, "label_map": {}, "language": None}
"""Choices that leave nothing out."""

CLEANING = Cleaning("tags")

LINE_ENDS = ("\n", "\r\n", "\r", " \t\r\n", "\n\n")

CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0\r\n")
TEXTS = st.text(CHARACTERS, max_size=12).map(str.strip)
"""Texts of one line without blanks around, short enough for UTF-16 to be known by the ASCII around them."""


class MakeCorpus(Protocol):
    def __call__(self, name: str, root: Path | str, **choices: Any) -> Corpus: ...


class CheckFault(Protocol):
    def __call__(self, name: str, root: Path, told: Sequence[Told], harm: "Harm", **choices: Any) -> None: ...


class Train(Protocol):
    def __call__(self, *overrides: str) -> dict[str, Any]: ...


class Harm(NamedTuple):
    """What was done to a release.

    Attributes:
        reason: what the reader should call it.
        ids: whom it should name, each as often as here.
        where: what the first place should say.
        lost: the utterances that are left out.
    """

    reason: str
    ids: Collection[str]
    where: str
    lost: Collection[str]


@pytest.fixture(scope="session")
def node(composed: Compose) -> Callable[..., dict[str, Any]]:
    """The composed config of a corpus as a plain dict, by name; further arguments are overrides."""

    @functools.cache
    def compose(name: str, *overrides: str) -> Any:
        return OmegaConf.to_container(composed(f"data={name}", *overrides).data)

    return compose


@pytest.fixture(scope="session")
def make_corpus(node: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> MakeCorpus:
    """A corpus by its name and root; further arguments are keys of `data`, and `cache`, one for all by default."""
    shared = tmp_path_factory.mktemp("corpora")

    def make(name: str, root: Path | str, *, cache: Path = shared, **choices: Any) -> Corpus:
        corpus: Corpus = build({**node(name), "root": str(root), **choices}, cache=cache)
        return corpus

    return make


@pytest.fixture(scope="session")
def check_fault(make_corpus: MakeCorpus) -> CheckFault:
    """A fault is named, counted and left out with nothing else; with data.strict it is an error."""

    def check(name: str, root: Path, told: Sequence[Told], harm: Harm, **choices: Any) -> None:
        choices = {**EVERY, **choices}
        corpus = make_corpus(name, root, **choices)
        summary = json.loads((corpus.prepare() / "summary.json").read_text(encoding="utf-8"))
        faults = [item for item in corpus.left_out if item.fault]
        assert {item.reason for item in faults} == {harm.reason}
        assert Counter(item.id for item in faults) == Counter(harm.ids)
        assert any(harm.where in item.where for item in faults), [item.where for item in faults]
        assert summary["left_out"][harm.reason]["fault"] is True
        assert summary["left_out"][harm.reason]["count"] == len(harm.ids)
        assert found(corpus) == meant([entry for entry in told if entry.id not in harm.lost])
        with pytest.raises(InputError) as caught:
            make_corpus(name, root, **choices, strict=True).load()
        message = str(caught.value)
        assert f"{len(harm.ids)} x {harm.reason}" in message
        assert faults[0].id in message
        assert faults[0].where in message

    return check


@pytest.fixture
def train(tmp_path: Path, composed: Compose) -> Train:
    """A run of one epoch of the smallest encoders, with a cache of its own; returns its metrics."""

    def train_once(*overrides: str) -> dict[str, Any]:
        small = ["encoder.text.architecture.hidden_size=16", "encoder.audio.hidden=8", "fusion.dim=8"]
        short = ["stage=transfer", "stage.transfer.epochs=1", "trainer=cpu", "trainer.precision=32-true"]
        rest = [f"cache={tmp_path}/cache", "data.workers=0", "encoder=tiny"]
        return run(composed(*overrides, *small, *short, *rest), tmp_path / "run")

    return train_once


@pytest.fixture
def shuffled(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From the call on, folders are listed in an order that depends on the given seed."""
    listdir, scandir = os.listdir, os.scandir

    def shuffle(seed: int) -> None:
        draw = random.Random(seed)

        def mixed_names(folder: Any = ".") -> list[Any]:
            names = listdir(folder)
            draw.shuffle(names)
            return names

        @contextmanager
        def mixed_entries(folder: Any = ".") -> Iterator[Iterator[os.DirEntry[Any]]]:
            with scandir(folder) as entries:
                listed = list(entries)
            draw.shuffle(listed)
            yield iter(listed)

        monkeypatch.setattr(os, "listdir", mixed_names)
        monkeypatch.setattr(os, "scandir", mixed_entries)

    return shuffle


def found(corpus: Corpus) -> list[Told]:
    """What a loaded corpus holds, in the order of ids."""
    told = [Told(*row) for row in corpus.frame[list(Told._fields)].itertuples(index=False, name=None)]
    return sorted(entry._replace(audio=Path(entry.audio).relative_to(corpus.audio_root).as_posix()) for entry in told)


def meant(
    told: Sequence[Told], emotions: Sequence[str] | None = None, label_map: Mapping[str, str] | None = None
) -> list[Told]:
    """What should be left of a release under a choice of emotions, in the order of ids."""
    mapped = [
        entry._replace(text=CLEANING(entry.text), emotion=(label_map or {}).get(entry.emotion, entry.emotion))
        for entry in told
    ]
    return sorted(entry for entry in mapped if emotions is None or entry.emotion in emotions)


def assert_folds(make: Callable[[int], Corpus], folds: int, apart: Sequence[str], tested: str) -> None:
    """Over the folds each utterance is tested once, each fold tests one value of `tested`, and `apart` never mix."""
    often: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for fold in range(folds):
        corpus = make(fold)
        corpus.setup()
        sides = {side: rows_of(corpus, rows) for side, rows in corpus.split._asdict().items()}
        assert sum(len(frame) for frame in sides.values()) == len(corpus.frame)
        for column in apart:
            on = {side: set(frame[column]) for side, frame in sides.items()}
            assert all(on.values())
            assert all(on[one].isdisjoint(on[other]) for one, other in combinations(on, 2))
        often.update(sides["test"]["id"])
        values.update(set(sides["test"][tested]))
    assert often == Counter(corpus.frame["id"])
    assert values == Counter(set(corpus.frame[tested]))
    with pytest.raises(InputError, match=f"the folds 0 to {folds - 1} "):
        make(folds).setup()


def rows_of(corpus: Corpus, rows: np.ndarray) -> pd.DataFrame:
    """The rows of a loaded corpus at some positions."""
    return corpus.frame.iloc[rows]


def sides_by_id(corpus: Corpus) -> dict[str, str]:
    """Which side each utterance is on."""
    corpus.setup()
    return {corpus.frame["id"].iloc[row]: side for side, rows in corpus.split._asdict().items() for row in rows}


def line_of(path: Path, start: str, encoding: str = "utf-8") -> int:
    """The number of the first line that holds `start`."""
    lines = path.read_text(encoding=encoding).split("\n")
    return next(number for number, line in enumerate(lines, 1) if start in line)


def rewrite(path: Path, change: Callable[[list[str]], Sequence[str]], encoding: str = "utf-8") -> None:
    """Change a text file's lines."""
    lines = path.read_bytes().decode(encoding).splitlines(keepends=True)
    path.write_bytes("".join(change(lines)).encode(encoding))


def without(*parts: str) -> Callable[[list[str]], list[str]]:
    """Drops the lines that hold one of the parts."""
    return lambda lines: [line for line in lines if not any(part in line for part in parts)]


def need_cases(folder: Path) -> None:
    """Skip a test where a.wav and a.WAV are one file."""
    mark = folder / "a"
    mark.touch()
    found = (folder / "A").exists()
    mark.unlink()
    if found:
        pytest.skip("the file system takes a.wav and a.WAV for one file")


def cut(path: Path) -> None:
    """Truncate a recording, so that its header promises more than is there."""
    data = path.read_bytes()
    path.unlink()  # it may be a hard link
    path.write_bytes(data[: len(data) // 2])


@st.composite
def edited(draw: st.DrawFn, valid: st.SearchStrategy[str]) -> str:
    """A valid text with parts deleted, doubled and inserted."""
    text = draw(valid)
    for _ in range(draw(st.integers(1, 4))):
        first, last = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        last = min(last, first + 30)
        part = draw(
            st.one_of(
                st.just(""), st.just(2 * text[first:last]), st.text(max_size=4), st.sampled_from('\t\n\r,"[]_ \0')
            )
        )
        text = text[:first] + part + text[last:]
    return text


def ambiguous(data: bytes, encoding: str) -> bool:
    """Whether bytes in an old encoding could as well be UTF-8, which nobody can tell apart."""
    if encoding.startswith("utf") or data.isascii():
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
