"""What may be built of what comes out of a folder: parts of this package's kinds, and no module is imported for more.

A run, a model directory or a checkpoint may come from anybody, and a `_target_` in it names what is called.
"""

import inspect
import re
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fourm_ser.errors import InputError, printable

# What a run is made of: classes that are these, or derived from them, wherever they stand.
KINDS = frozenset(
    {
        "fourm_ser.baselines.base.Baseline",
        "fourm_ser.baselines.support_vectors.SupportVectors",
        "fourm_ser.data.corpus.Corpus",
        "fourm_ser.data.waveforms.Transform",
        "fourm_ser.encoders.base.Encoder",
        "fourm_ser.encoders.base.Frontend",
        "fourm_ser.encoders.descriptors.DescriptorFrames",
        "fourm_ser.encoders.frontends.MelFrames",
        "fourm_ser.fusion.base.Fusion",
        "fourm_ser.losses.base.Loss",
        "fourm_ser.losses.margin.CosineClassifier",
        "fourm_ser.models.network.Head",
        "fourm_ser.training.loggers.RunLogger",
        "fourm_ser.training.masks.FeatureMasks",
        "torch.nn.modules.linear.Identity",
        "torch.optim.lr_scheduler.LRScheduler",
        "torch.optim.optimizer.Optimizer",
        "torch_audiomentations.core.transforms_interface.BaseWaveformTransform",
    }
)
SCHEDULES = "fourm_ser.training.schedules"  # a schedule may be a function: of this module, or of a trusted package
KNOWN = ("fourm_ser", "torch.optim", "torch.nn", "torch_audiomentations")  # what may be imported to look for a class
CACHE = "~/.cache/fourm_ser"  # as the commands have it
PARTS_OF_CACHES = ("embeddings", "recordings", "manifests", "tokenizers", "corpora", "weights", "padding", "decoded")
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def read_trust(given: Any) -> tuple[str, ...]:
    """The packages that a key `trust` names: one, or a list.

    Raises:
        InputError: no name of a package.
    """
    names = [given] if isinstance(given, str) else list(given or ())
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(f"trust={name}: expected the name of a package, such as trust=my_lab.")
    return tuple(names)


def named_packages(node: Any) -> list[str]:
    """The packages whose classes a config names, beside those that are known anyway."""
    found = {target.partition(".")[0] for _, target in _targets(node, "") if isinstance(target, str)}
    return sorted(name for name in found if NAME.fullmatch(name) and name not in ("fourm_ser", "torch"))


def refuse_strangers(node: Any, source: Path, trust: Sequence[str] = ()) -> None:
    """Refuse a config out of a folder that names anything but parts of a run, before anything of it is built.

    Args:
        node: the config, in plain values.
        source: the file that it was read from, for the error.
        trust: packages of the user's own whose parts it may name, too.

    Raises:
        InputError: the first key that does, and what to do.
    """
    for place, target in _targets(node, ""):
        said = f"{source}: {place}={target}"
        if not isinstance(target, str) or not NAME.fullmatch(target):
            raise InputError(f"{said}: expected the name of a class.")
        found = _find(target, trust, said)
        if not _is_part(found, target, place, trust):
            raise InputError(
                f"{said}: is no part of a run (a corpus, encoder, front end, fusion, head, loss, optimizer, ...), and "
                "nothing else is ever built from a folder. Do not use the folder, unless you know how that came there."
            )


def own_cache(cache: Any, record: Path) -> Path:
    """The cache that a record names, if nothing new has to be begun there.

    A command writes where a folder alone says only what belongs into a cache, and where one is already.

    Args:
        cache: what the record says.
        record: the record, for the error.

    Raises:
        InputError: there is no cache of anybody's.
    """
    path = Path(str(cache)).expanduser()
    if path == Path(CACHE).expanduser() or any((path / part).is_dir() for part in PARTS_OF_CACHES):
        return path
    begun = shlex.quote(printable(str(path / PARTS_OF_CACHES[0])))
    raise InputError(
        f"{record}: cache={printable(str(path))}: there is no cache, and none is begun where a folder alone says. Give "
        f"your own, cache=DIR; or, to go on as recorded, begin it: mkdir -p {begun}"
    )


def _targets(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every `_target_` of a tree with its full key."""
    below: Collection[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        below = [(f"{place}.{key}".lstrip("."), node[key]) for key in node]
    elif isinstance(node, Sequence) and not isinstance(node, str | bytes):
        below = [(f"{place}[{index}]", value) for index, value in enumerate(node)]
    for key, value in below:
        if key.rpartition(".")[2] == "_target_":
            yield key, value
        yield from _targets(value, key)


def _is_in(name: str, packages: Collection[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _find(target: str, trust: Sequence[str], said: str) -> Any:
    """What a dotted name stands for: in modules that may be imported, or that the user has imported already.

    Raises:
        InputError: neither, or it is not there.
    """
    may_import = _is_in(target, (*KNOWN, *trust))
    parts = target.split(".")
    for count in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:count])
        module = sys.modules.get(name)
        if module is None and may_import and _is_in(name, (*KNOWN, *trust)):
            try:
                module = import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not _is_in(name, (error.name,)):  # something that the module itself needs
                    raise InputError(f"{said}: cannot be imported: {error}. Install what it needs.") from error
        if module is None:
            continue
        found: Any = module
        for part in parts[count:]:
            found = getattr(found, part, None)
        if found is not None:
            return found
    package = parts[0]
    if not may_import:
        raise InputError(
            f"{said}: is of the package {package}, of which nothing is run unless you trust it. If it is yours, or you "
            f"know it: install it and add trust={package}."
        )
    raise InputError(f"{said}: there is no such class here. Install the version of {package} that has it.")


def _is_part(found: Any, target: str, place: str, trust: Sequence[str]) -> bool:
    """Whether something is of one of `KINDS`, or a schedule."""
    if inspect.isclass(found):
        return any(f"{base.__module__}.{base.__qualname__}" in KINDS for base in found.__mro__)
    is_schedule = place.split(".")[-2:-1] == ["scheduler"]
    return is_schedule and inspect.isfunction(found) and _is_in(found.__module__, (SCHEDULES, *trust))
