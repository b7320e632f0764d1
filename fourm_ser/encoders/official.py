"""Official weights that are one file behind a url: fetched once, checked against a hash, loaded strictly."""

import codecs
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pooch
import torch
from torch import Tensor, nn

from fourm_ser.errors import InputError
from fourm_ser.files import made_once, whole

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes: pooch's own of 1 kB flushes 300,000 times for one file
TIMEOUT = 60.0  # seconds without a byte, as a busy archive needs them

WEIGHTS = "encoder.audio.weights"
RANDOM = "encoder.weights=random"

# Official files of that time hold NumPy arrays beside their tensors (PANNs the sampler's state, the PCA of VGGish
# nothing else), under the module names of NumPy 1 or 2. To rebuild an array runs none of the file's code.
NUMPY_DATA: list[Any] = [
    np.ndarray,
    np.dtype,
    codecs.encode,
    *(
        (getattr(np._core.multiarray, name), f"numpy.{core}.multiarray.{name}")  # type: ignore[attr-defined]
        for name in ("_reconstruct", "scalar")
        for core in ("core", "_core")
    ),
    *{type(np.dtype(code)) for code in np.typecodes["All"]},
]


def fetch_file(url: str, *, digest: str | None, cache: Path, key: str = WEIGHTS, instead: str = RANDOM) -> Path:
    """Download a file once and keep it in `<cache>/weights`, under its name in the url.

    Raises:
        InputError: the file cannot be had (then the config's `key` takes one, and `instead` does without), it comes
            incomplete, or its sha256 does not begin with `digest`, where that is known.
    """
    path = cache / "weights" / file_name(url)
    with nullcontext() if path.is_file() else made_once(path.with_name(f"{path.name}.lock"), path.name):
        if path.is_file():
            _check(path, digest, str(path), "Delete it to download it again.")
            return path
        log.info("downloading %s to %s", url, path)
        with whole(path) as temporary:
            try:
                headers = {"User-Agent": "fourm_ser"}
                download = pooch.HTTPDownloader(progressbar=True, chunk_size=CHUNK, timeout=TIMEOUT, headers=headers)
                download(url, str(temporary), None)
            except (OSError, ValueError) as error:
                reason = str(error) or type(error).__name__
                raise InputError(
                    f"{url}: cannot be downloaded ({reason.rstrip('.')}). Where there is no network, give the file, "
                    f"or the folder that holds it, as {key}=PATH, or use {instead}."
                ) from error
            _check(temporary, digest, f"{path.name} from {url}", "It was not kept. Is it the official url?")
    return path


def official_file(
    source: str, *, url: str, digest: str | None, cache: Path, key: str = WEIGHTS, instead: str = RANDOM
) -> Path:
    """The official file that a config's key names: `pretrained`, the file, or a folder that holds it by its name.

    Raises:
        InputError: there is no such file, or it cannot be downloaded, see `fetch_file`.
    """
    if source == "pretrained":
        return fetch_file(url, digest=digest, cache=cache, key=key, instead=instead)
    path = Path(source).expanduser()
    path = path / file_name(url) if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"{key}={source}: no such file: {path}. Expected {file_name(url)}, or the folder that holds it. Without "
            f"it: {instead}."
        )
    return path


def file_name(url: str) -> str:
    """The name of the file behind a url.

    Raises:
        InputError: it has none.
    """
    try:
        name = PurePosixPath(unquote(urlsplit(url).path)).name
    except ValueError as error:
        raise InputError(f"{url}: no url: {error}.") from error
    if name in ("", ".."):
        raise InputError(f"{url}: the url ends in no file name.")
    return name


def read_tensors(path: Path, inside: str | None = None) -> dict[str, Tensor]:
    """A file written by torch.save: tensors, or NumPy arrays, by name; no code of the file is run.

    They lie under the key `inside`, where the file has it.

    Raises:
        InputError: no such file, no file of tensors, or one with pickled objects.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        with torch.serialization.safe_globals(NUMPY_DATA):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch.load stumbles over in a foreign file
        _, _, objects = str(error).partition("Unsupported global: GLOBAL ")
        # torch's own message advises to run the file's code.
        reason = f"pickled {objects.split()[0]}, which is not opened" if objects else type(error).__name__
        raise InputError(f"{path}: no file of tensors written by torch.save ({reason}).") from error
    if inside is not None and isinstance(content, Mapping) and inside in content:
        content = content[inside]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path}: holds no tensors by name. Expected a state dict written by torch.save.")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor | np.ndarray)]
    if others:
        raise InputError(
            f"{path}: holds more than tensors by name ({_first(others)}). Expected a state dict written by torch.save."
        )
    return {str(name): torch.as_tensor(value) for name, value in content.items()}


def load_official(
    module: nn.Module,
    path: Path,
    inside: str | None = None,
    ignore: Sequence[str] = (),
    constants: Mapping[str, Tensor] | None = None,
) -> None:
    """Load an official state dict into a module of the same names, strictly.

    Args:
        module: the module; all its parameters and buffers have to be in the file.
        path: a file written by torch.save.
        inside: the key under which the state dict lies, where the file has it.
        ignore: what the names begin with that the file may have beyond the module: parts that are not used.
        constants: tensors that the file, where it has them, has to hold with these values: they tell what input the
            weights were trained on.

    Raises:
        InputError: the file cannot be read; names are missing or unexpected, or tensors are of another shape; a
            constant has other values.
    """
    found, expected = read_tensors(path, inside), module.state_dict()
    known = {name for name in found if name.startswith(tuple(ignore))}
    shapes = {name: (tuple(found[name].shape), tuple(expected[name].shape)) for name in expected if name in found}
    wrong = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected and name not in known],
        "of another shape": [f"{name} {own} for {needed}" for name, (own, needed) in shapes.items() if own != needed],
    }
    if any(wrong.values()):
        said = "; ".join(f"{len(names)} {how}: {_first(names)}" for how, names in wrong.items() if names)
        raise InputError(
            f"{path}: does not fit {type(module).__name__}: {said}. Is it a checkpoint of another architecture, or of "
            "one with another number of classes?"
        )
    for name, value in (constants or {}).items():
        own = found.get(name, value)
        if own.shape != value.shape or not torch.allclose(own.float(), value.float(), rtol=0, atol=1e-5):
            raise InputError(
                f"{path}: its {name} {tuple(own.shape)} is not the front end's {tuple(value.shape)}: it was trained "
                "on another sample rate, window or mel scale."
            )
    module.load_state_dict({name: found[name] for name in expected})


def _check(path: Path, digest: str | None, what: str, advice: str) -> None:
    """Compare a file's sha256 with what it should begin with."""
    if digest is None:
        return
    found = pooch.file_hash(str(path))
    # Digits alone come as a number from a command line.
    if not found.startswith(str(digest).lower()):
        raise InputError(f"{what}: its sha256 is {found}, expected one that begins with {digest}. {advice}")


def _first(names: Sequence[str]) -> str:
    """The first three names of a list."""
    return ", ".join([*names[:3], "..."] if len(names) > 3 else names)
