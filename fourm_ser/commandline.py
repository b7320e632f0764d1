"""Command lines: paths are taken as they are, and what Hydra cannot use is said in one line."""

import atexit
import gc
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import CompactHydraException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from fourm_ser import __version__
from fourm_ser.errors import InputError

PLACES = ("hydra.run.dir", "hydra.sweep.dir")  # where a command writes: one place, also for many runs
PATHS = re.compile(
    r"run|runs|model|output|cache|write_split|audio|text|manifest|asr"
    r"|data\.((train|test)\.)?(root|manifest|audio_root|split_file)"
    r"|encoder\.weights|encoder\.(text|audio)\.(checkpoint|tokenizer|weights|pca)"
    r"|hydra\.run\.dir|hydra\.sweep\.dir"
)
WORD = re.compile(r"(\+{0,2})([\w.]+)=(.*)", re.DOTALL)
SWEEP = re.compile(r"\+{0,2}(sweep=(?!null$).+|hydra\.mode=(RunMode\.)?MULTIRUN)")
CALL = re.compile(r"\w+\(.*\)", re.DOTALL)
INTERPOLATION = re.compile(r"(\\*)\$\{")
UNKNOWN = re.compile(r"is not in struct|^Key '.*' not in '")
REFUSED = re.compile(
    r"(Could not override|Could not delete from config\.|but config group) '(?P<key>[^']+)'", re.DOTALL
)
TWICE = re.compile(r"Multiple values for (\S+)\. To override")
HYDRA_S = ("hydra/launcher", "hydra/sweeper")  # groups of Hydra's that are chosen from
FULL_ERROR = "HYDRA_FULL_ERROR"


def start(command: Callable[[], Any], literal: Collection[str] = ()) -> None:
    """Call what `hydra.main` made, on this process's arguments; `literal` is that of `quoted`."""
    answer(command.__name__)
    be_brief()
    sys.argv[1:] = quoted(sys.argv[1:], literal)
    with one_line(command.__name__):
        try:
            command()
        except KeyboardInterrupt:
            sys.exit(130)  # as shells have it of SIGINT


def be_brief() -> None:
    """Set this process, a command's, to lose no time where others have the processors, and none in ending.

    Threads of OpenMP that wait for another one sleep, unless the environment says how they wait: where they spin, and
    the processors are busy, each of a small network's operations waits for the scheduler.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    atexit.register(_freeze)


def _freeze() -> None:
    """Let Python not look for garbage among a million objects as it ends, several times, for seconds.

    But for Triton, of which CUDA's PyTorch loads the bindings: they print what is left of them then, as leaks.
    """
    if "triton" not in sys.modules:
        gc.freeze()


def answer(command: str) -> None:
    """End here, before anything is loaded, where help or the version is asked for, or a word is no key=value."""
    words = sys.argv[1:]
    if "--version" in words:
        print(f"fourm_ser {__version__}")
        sys.exit(0)
    if {"-h", "--help"} & set(words):
        from fourm_ser.help import help_text

        print(help_text(command, words), end="")
        sys.exit(0)
    if any(word.startswith("-") or "=" not in word for word in words):
        from fourm_ser.mistakes import mistake

        wrong = mistake(command, words)
        if wrong:
            sys.exit(f"error: {wrong}")


@contextmanager
def tidily() -> Iterator[None]:
    """A SIGTERM, as `timeout` and clusters send it, ends the process as `sys.exit` does: temporary files go with it."""

    def end(number: int, frame: Any) -> None:
        sys.exit(128 + number)  # as shells have it of a signal

    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL or threading.current_thread() != threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def loading(what: str = "PyTorch") -> Iterator[None]:
    """Say at once that the command has begun, while what it computes with is imported: that takes seconds.

    Where there is a terminal, it shows that this goes on, and nothing stays of it. Stdout is for results.
    """
    from rich.console import Console

    from fourm_ser.terminal import busy

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"loading {what} ...", file=sys.stderr, flush=True)
    with busy(f"loading {what}", console):
        yield


@contextmanager
def told_plainly(level: int = logging.INFO) -> Iterator[None]:
    """Log this package's messages from a level on as they are, and end with one line where the input is bad."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("fourm_ser").setLevel(level)
    try:
        with tidily():
            yield
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def quoted(arguments: Sequence[str], literal: Collection[str] = ()) -> list[str]:
    """Command-line arguments of which Hydra takes paths as they are, whatever characters they hold.

    What Hydra reads as that same path stays as it is written, for the words of a run are recorded, and name the jobs
    of a sweep. What stands in quotes, lists, `null` and `${...}` stay Hydra's, and so do commas where there are many
    runs: unless something of that whole name exists. Behind the keys `literal` everything but `null` is a path or a
    text as it stands.
    """
    several = any(word in ("-m", "--multirun") or SWEEP.fullmatch(word) for word in arguments)
    result = []
    for argument in arguments:
        found = WORD.fullmatch(argument)
        if found is not None and found[2] in literal:
            argument = argument if found[3] == "null" else f"{found[1]}{found[2]}={_quote(found[3])}"
        elif found is not None and PATHS.fullmatch(found[2]):
            value = _as_path(found[3], several and found[2] not in PLACES)
            argument = f"{found[1]}{found[2]}={value}"
        result.append(argument)
    return result


def _as_path(value: str, several: bool) -> str:
    """A value in Hydra's writing, of a key that takes a path; `several`: commas and choices make many runs."""
    parsed = _parse(value)
    read = None if parsed is None else parsed.value()
    if read == value and isinstance(read, str) and "${" not in value:
        return value
    if _exists(value):
        return _quote(value)
    if parsed is None:
        return _quote_parts(value) if several and "," in value else _quote(value)
    if parsed.value_type == ValueType.SIMPLE_CHOICE_SWEEP:
        return _quote_parts(value) if several else _quote(value)
    if isinstance(read, bool) or not isinstance(read, str | int | float):  # null, lists, choice(...)
        return value
    is_hydra_s = value[:1] in ("'", '"') or "${" in value or "\\" in value or CALL.fullmatch(value)
    return value if is_hydra_s else _quote(value)


def _parse(value: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return None


def _exists(value: str) -> bool:
    try:
        return value != "" and Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # a name that no file can have
        return False


def _quote(value: str) -> str:
    # OmegaConf would put another value in the place of ${...}; backslashes before it are its escapes.
    escaped = INTERPOLATION.sub(lambda match: 2 * match[1] + r"\${", value)
    return QuotedString(escaped, Quote.single).with_quotes()


def _quote_parts(value: str) -> str:
    if any(sign in value for sign in "'\"[]{}"):
        return value
    return ",".join(_as_path(part, several=False) for part in value.split(","))


@contextmanager
def one_line(command: str = "train") -> Iterator[None]:
    """End with one line where Hydra cannot compose what the command line says; the rest ends as it does.

    With HYDRA_FULL_ERROR=1 in the environment, everything is raised.
    """
    if os.environ.get(FULL_ERROR) == "1":
        yield
        return
    os.environ[FULL_ERROR] = "1"  # Hydra raises, instead of printing and exiting
    try:
        yield
    except (CompactHydraException, InterpolationResolutionError) as error:
        sys.exit(f"error: {explain(error, command)}")
    finally:
        os.environ.pop(FULL_ERROR, None)


def explain(error: Exception, command: str = "train") -> str:
    """What Hydra refuses, in one line of the user's words; never the advice to add a key that nothing knows."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        near = get_close_matches(option, error.options, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        return f"{group}={option}: no such option. {hint}Expected one of {', '.join(error.options)}."
    if isinstance(cause, OmegaConfBaseException) and cause.full_key and UNKNOWN.search(str(cause)):
        if "/" in cause.full_key or "@" in cause.full_key:
            return _no_such_choice(str(cause.full_key), command)
        parent = cause.parent_node
        node: Any = OmegaConf.to_container(parent) if isinstance(parent, DictConfig) else {}
        return no_such_key(str(cause.full_key), [str(name) for name in node if name != "hydra"], node)
    if isinstance(error, OverrideParseException):
        key, sign, _ = error.override.partition("=")
        if not sign:
            return f"{key}: expected key=value."
        return f"{error.override}: Hydra cannot read it. Put quotes around the value: \"{key}='...'\""
    refused = REFUSED.search(str(error))
    if refused is not None:
        return _no_such_choice(refused["key"], command)
    twice = TWICE.search(str(error))
    if twice is not None:
        return f"{twice[1]}: is chosen twice. Write {twice[1]}=..., without a + before it."
    said = [line.strip() for text in (error, cause) if text is not None for line in str(text).splitlines()]
    return " ".join(line for line in said if line and not line.startswith(("object_type=", "See https://hydra")))


def _no_such_choice(key: str, command: str) -> str:
    """That a command has no such group, or key to take away, with the nearest that it has."""
    from fourm_ser.options import describe

    described = describe(command)
    groups = [group.name for group in described.groups]
    keys = described.leaves()
    nodes = {".".join(path.split(".")[:depth]) for path in keys for depth in range(1, path.count(".") + 1)}
    known = [*groups, *HYDRA_S, *keys, *nodes]
    near = get_close_matches(key, [*groups, *HYDRA_S], n=1, cutoff=0.7) or get_close_matches(key, known, n=1)
    if near:
        return f"{key}: no such key. Did you mean {near[0]}?"
    has = f"has the groups {', '.join(name for name in groups if '@' not in name)}" if groups else "has no groups"
    return f"{key}: no such key. `fourm_ser {command}` {has}; its --help has the keys."


def no_such_key(key: str, known: Collection[str], node: Mapping[Any, Any] | None = None) -> str:
    """That nothing reads a full key, `fusion.hedas`, with the nearest of the names known in its place, `heads`.

    Of what stands in its place, a node that has a key of just that name comes first.
    """
    known = [name for name in known if not name.startswith("_")]
    place, dot, name = key.rpartition(".")
    nodes = (node or {}).items() if dot else ()
    inner = [f"{other}.{name}" for other, below in nodes if isinstance(below, dict) and name in below]
    near = inner or get_close_matches(name, known, n=1)
    if near:
        return f"{key}: no such key. Did you mean {place}{dot}{near[0]}?"
    return f"{key}: no such key. " + (f"Expected one of {', '.join(sorted(known))}." if known else "Leave it out.")
