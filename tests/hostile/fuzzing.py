"""Files of every kind that this package reads, mutated by a seed, and what reads them, in this process.

`python -m benchmarks.fuzz` does it tens of thousands of times; the suite a few hundred.
"""

import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fourm_ser.config import CONF, build
from fourm_ser.data.audio import check_recording, read_audio, stated_seconds
from fourm_ser.data.manifest import read_manifest
from fourm_ser.data.splits import read_split
from fourm_ser.errors import InputError, blamed
from fourm_ser.models.directory import load_model
from fourm_ser.prediction.listing import read_listing
from fourm_ser.report.__main__ import report
from fourm_ser.runs.collect import planned, read_run
from fourm_ser.runs.directory import RunDirectory, StageDirectory
from fourm_ser.training.experiment import Experiment
from fourm_ser.training.loggers import EpochTable
from tests import releases

HEARD = 30.0  # seconds of a recording
SOUNDS = {  # a format's suffix -> libsndfile's format and subtype
    ".wav": ("WAV", "PCM_16"),
    ".float.wav": ("WAV", "FLOAT"),
    ".ulaw.wav": ("WAV", "ULAW"),
    ".gsm.wav": ("WAV", "GSM610"),
    ".adpcm.wav": ("WAV", "MS_ADPCM"),
    ".24.wav": ("WAVEX", "PCM_24"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".aiff": ("AIFF", "PCM_16"),
    ".au": ("AU", "PCM_16"),
    ".caf": ("CAF", "PCM_16"),
    ".w64": ("W64", "PCM_16"),
    ".rf64": ("RF64", "PCM_16"),
}
FILMS = {".mp4": "aac", ".mkv": "flac", ".mka": "libopus", ".avi": "mp3", ".webm": "libvorbis", ".mov": "pcm_s16le"}
TEXTS = [
    *("nan", "inf", "-1", "1e999", "0", "9" * 40, "", "null", "true", "[]", "{}", '"', "'", "\\", ",", ";", "\t", "\n"),
    *("\x00", "\x1b[2J", "\u202e", "\ufeff", "é", "😀", "=1+1", "../../x", "/dev/zero", "${oc.env:HOME}", "???"),
    *(
        "!!python/object/apply:os.system [x]",
        "&a *a",
        "[" * 60,
        "a: &a [1]\nb: *a",
        "_target_: os.system",
        "- - - -",
        ": ",
    ),
]
DIGESTS = re.compile(rb"^digests:\n(  .*\n?)*", re.MULTILINE)
TOKEN = re.compile(r"[\w.+-]+")


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        name: what it is called.
        path: a sound file of it, as it is copied before it is mutated.
        look: what reads it: its path where it lies mutated.
        within: the folder that is copied with it; None for the file alone.
        is_text: whether words of it are put in the place of others.
        share: how often it is taken, of as often as others are.
    """

    name: str
    path: Path
    look: Callable[[Path], Any]
    within: Path | None = None
    is_text: bool = False
    share: float = 1.0


class Fault(NamedTuple):
    """What a case did that it should not have done."""

    number: int
    name: str
    said: str


def make_kinds(folder: Path, finished: Path) -> list[Kind]:
    """Sound files of all kinds, in a folder; those of runs are of a finished one of two stages."""
    kinds = [Kind(path.name, path, _hear) for path in _recordings(folder / "sound")]
    tables = folder / "tables"
    tables.mkdir()
    rows = [
        f"u{n},a{n}.wav,so it is {n},{('anger', 'neutral')[n % 2]},s{n % 3},s{n % 3},train,en,0,1.5,2"
        for n in range(12)
    ]
    header = "id,audio,text,emotion,speaker,session,split,language,start,end,duration"
    (tables / "manifest.csv").write_text("\n".join([header, *rows]))
    (tables / "split.csv").write_text(
        "\n".join(["id,split", *(f"u{n},{('train', 'val', 'test')[n % 3]}" for n in range(12))])
    )
    kinds += [
        Kind("manifest", tables / "manifest.csv", read_manifest, is_text=True),
        Kind(
            "table of recordings",
            tables / "manifest.csv",
            lambda path: read_listing(path, ["text", "audio"]),
            is_text=True,
        ),
        Kind("split", tables / "split.csv", read_split, is_text=True),
    ]
    for corpus, write, files in (
        ("iemocap", releases.iemocap, "Session1/dialog/*/Ses01F_impro01.txt"),
        ("esd", releases.esd, "0011/0011.txt"),
        ("meld", releases.meld, "*.csv"),
    ):
        root = folder / "releases" / corpus
        root.mkdir(parents=True)
        write(root)
        found = sorted(root.glob(files))
        kinds += [Kind(f"{corpus} {path.name}", path, _reads(corpus, root), root, True, 0.5) for path in found]
    return [*kinds, *_of_runs(finished)]


def _of_runs(run: Path) -> Iterator[Kind]:
    last = run / "stages" / "1-finetune"
    yield Kind("record, resumed", run / "config.yaml", _begin, run, is_text=True)
    for name in ("config.yaml", "metrics.json", "predictions.csv", "stages/1-finetune/metrics.csv"):
        yield Kind(f"report of {name}", run / name, lambda path: _report(path), run, True, 0.1)
    yield Kind("metrics", run / "metrics.json", lambda path: read_run(path.parent), run, is_text=True)
    yield Kind("corpus.csv", run / "corpus.csv", lambda path: RunDirectory(path.parent).read_corpus(), is_text=True)
    yield Kind("epochs", last / "metrics.csv", EpochTable, is_text=True)
    yield Kind(
        "finished", last / "finished.json", lambda path: StageDirectory(path.parent).read_seconds(), is_text=True
    )
    yield Kind("best", last / "checkpoints" / "best.ckpt", lambda path: _best(path), last)
    for name in (
        "config.yaml",
        "labels.json",
        "model.safetensors",
        "text/tokenizer.json",
        "text/tokenizer_config.json",
    ):
        yield Kind(f"model {name}", run / "model" / name, _load, run / "model", is_text=not name.endswith("tensors"))


def mutated(rng: np.random.Generator, content: bytes, is_text: bool) -> bytes:
    """A file's content, changed in one to four ways."""
    for _ in range(rng.integers(1, 5)):
        ways = (_flip, _overwrite, _cut, _drop, _double, _insert, *((_word,) * 4 if is_text else (_number,) * 2))
        content = ways[rng.integers(len(ways))](rng, content)
    return content


def _place(rng: np.random.Generator, content: bytes) -> int:
    """A place; every second time among the first bytes, where headers are."""
    return int(rng.integers(len(content) + 1) if rng.random() < 0.5 else rng.integers(min(len(content), 200) + 1))


def _flip(rng: np.random.Generator, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 9))):
        if changed:
            changed[min(_place(rng, content), len(changed) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwrite(rng: np.random.Generator, content: bytes) -> bytes:
    place, new = _place(rng, content), rng.bytes(int(rng.integers(1, 17)))
    return content[:place] + new + content[place + len(new) :]


def _number(rng: np.random.Generator, content: bytes) -> bytes:
    value = [0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 3, 255][rng.integers(9)]
    size, order = [2, 4, 8][rng.integers(3)], ("little", "big")[rng.integers(2)]
    place = _place(rng, content)
    new = (value % 2 ** (8 * size)).to_bytes(size, order)
    return content[:place] + new + content[place + size :]


def _cut(rng: np.random.Generator, content: bytes) -> bytes:
    return content[: int(rng.integers(len(content) + 1))]


def _drop(rng: np.random.Generator, content: bytes) -> bytes:
    place = _place(rng, content)
    return content[:place] + content[place + int(rng.integers(1, 64)) :]


def _double(rng: np.random.Generator, content: bytes) -> bytes:
    place, length = _place(rng, content), int(rng.integers(1, 400))
    return (
        content[: place + length]
        + content[place : place + length] * int(rng.integers(1, 4))
        + content[place + length :]
    )


def _insert(rng: np.random.Generator, content: bytes) -> bytes:
    place = _place(rng, content)
    return content[:place] + rng.bytes(int(rng.integers(1, 64))) + content[place:]


def _word(rng: np.random.Generator, content: bytes) -> bytes:
    text = content.decode("utf-8", "surrogateescape")
    words = list(TOKEN.finditer(text))
    if not words:
        return content
    word, other = words[rng.integers(len(words))], words[rng.integers(len(words))]
    new = other[0] if rng.random() < 0.3 else TEXTS[rng.integers(len(TEXTS))]
    return (text[: word.start()] + new + text[word.end() :]).encode("utf-8", "surrogateescape")


def try_case(kinds: list[Kind], seed: int, number: int, scratch: Path) -> Fault | None:
    """Mutate a file and have it read: what is wrong with that; None where it is read, or refused in one line."""
    rng = np.random.default_rng([seed, number])
    shares = np.cumsum([kind.share for kind in kinds])
    kind = kinds[int(np.searchsorted(shares, rng.random() * shares[-1]))]
    with tempfile.TemporaryDirectory(dir=scratch) as here, silent():
        place = Path(here, "so")
        if kind.within is not None:
            shutil.copytree(kind.within, place, copy_function=os.link, ignore=shutil.ignore_patterns(".*.xxh"))
            path = place / kind.path.relative_to(kind.within)
        else:
            place.mkdir()
            path = place / kind.path.name
        path.unlink(missing_ok=True)
        path.write_bytes(mutated(rng, kind.path.read_bytes(), kind.is_text))
        try:
            kind.look(path)
        except InputError as error:
            said = str(error)
            sound = len(said.splitlines()) == 1 and len(said) < 3_000 and "takes more memory" not in said
            return None if sound else Fault(number, kind.name, f"says {said[:300]!r}, {len(said)} characters")
        except Exception as error:
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            line = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else ""
            return Fault(number, kind.name, f"{type(error).__name__} in {line}: {str(error)[:300]!r}")
    return None


@contextmanager
def silent() -> Iterator[None]:
    """Show nothing meanwhile, of what Python prints."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _hear(path: Path) -> None:
    for read in (stated_seconds, check_recording, lambda given: read_audio(given, most=HEARD)):
        with suppress(InputError):
            read(path)
    read_audio(path, most=HEARD)


def _reads(corpus: str, root: Path) -> Callable[[Path], Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node: Any = OmegaConf.to_container(compose("train", [f"data={corpus}", f"data.root={root}"]).data)

    def read(path: Path) -> None:
        here = next(folder for folder in path.parents if folder.name == "so")
        build({**node, "root": str(here)}, cache=here / "cache").read()

    return read


def _begin(path: Path) -> None:
    """What resume builds of a record before anything is read or trained."""
    directory = RunDirectory(path.parent)
    config = directory.read_record()
    with blamed(path):
        Experiment(config, directory)


def _load(path: Path) -> None:
    folder = next(above for above in path.parents if above.name == "so")
    config = folder / "config.yaml"
    text = DIGESTS.sub(b"", config.read_bytes())  # who changes a model's files changes their digests, too
    config.unlink()
    config.write_bytes(text)
    load_model(folder, folder.parent / "cache")


def _best(path: Path) -> None:
    folder = StageDirectory(path.parent.parent)
    folder.read_score()
    folder.read_weights("loss")


def _report(path: Path) -> None:
    run = next(above for above in path.parents if above.name == "so")
    shutil.copytree(run, run.parent / "sound", copy_function=os.link)
    read_run(run)
    planned(path)
    report([run, run.parent / "sound"], run.parent / "report")


def _recordings(folder: Path) -> Iterator[Path]:
    """A short recording of each format that can be written here."""
    folder.mkdir()
    samples = np.random.default_rng(0).normal(0, 0.1, 4_000)
    for suffix, (name, subtype) in SOUNDS.items():
        path = folder / f"a{suffix}"
        with suppress(soundfile.LibsndfileError):
            soundfile.write(path, samples, 16_000, subtype, format=name)
            yield path
    for suffix, codec in FILMS.items():
        path = folder / f"film{suffix}"
        with suppress(av.error.FFmpegError, ValueError):
            with av.open(str(path), "w") as film:
                stream: Any = film.add_stream(codec, rate=48_000)
                film.metadata["title"] = "so it is"
                for part in np.split(np.tile(samples, 3), 12):
                    block = (part * 2**15).astype(np.int16)[None]
                    frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
                    frame.rate = 48_000
                    film.mux(stream.encode(frame))
                film.mux(stream.encode(None))
            yield path
