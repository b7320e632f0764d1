"""All analyses of a run, one after the other, and the page that shows them."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fourm_ser.analysis.alignment import alignment
from fourm_ser.analysis.attention import attention
from fourm_ser.analysis.attribution import attribution
from fourm_ser.analysis.contribution import contribution
from fourm_ser.analysis.correlation import correlation
from fourm_ser.analysis.examples import Example, choose_examples
from fourm_ser.analysis.findings import Finding, Part, UnsuitedError, write_finding
from fourm_ser.analysis.gradcam import gradcam
from fourm_ser.analysis.page import write_page
from fourm_ser.analysis.projection import finished_runs, projection
from fourm_ser.analysis.questions import QUESTIONS, refuse_unknown
from fourm_ser.analysis.space import space
from fourm_ser.devices import find_device
from fourm_ser.errors import InputError
from fourm_ser.runs.collect import Run
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.runs.finished import OpenRun
from fourm_ser.runs.given import analyzed
from fourm_ser.terminal import busy
from fourm_ser.trust import read_trust

log = logging.getLogger(__name__)


def analyze(config: Mapping[str, Any]) -> list[Part]:
    """Do the analyses that a config as conf/analyze.yaml describes, resolved, and write them.

    Raises:
        InputError: no run, an unknown part, runs that cannot be opened, or no analysis that the run could have.
    """
    refuse_unknown(config["parts"])
    with busy("opening the runs"):
        runs = open_runs(config)
    first = runs[0]
    own = RunDirectory(first.run_dir).analysis(config["side"])
    folder = own if config["output"] is None else Path(config["output"]).expanduser()
    if (folder / "analysis.html").is_file():
        log.warning("%s: replaces the page of earlier analyses, and those of the same names", folder)
    parts = []
    for name in config["parts"]:
        log.info("%s: %s", name, QUESTIONS[name])
        with busy(name):
            parts.append(_do(name, runs, config, folder / name))
        if parts[-1].left_out:
            log.warning("%s is left out: %s", name, parts[-1].left_out)
    if not any(part.findings for part in parts):
        raise InputError(f"{first.run_dir}: none of the analyses could be done; the reasons are above.")
    with busy("writing the page"):
        write_page(parts, runs, config["side"], folder)
    print(f"written to {folder}: {folder / 'analysis.html'}")
    return parts


def open_runs(config: Mapping[str, Any]) -> list[OpenRun]:
    """The run that is looked into first, then those it is compared with, each once.

    Raises:
        InputError: none is given, one has not finished, or cannot be opened.
    """
    given = analyzed([config["run"], *config["runs"]])
    by_path = {found.path.resolve(): found for found in finished_runs(given)}
    first = given[0].resolve()
    ordered = sorted(by_path.values(), key=lambda found: found.path.resolve() != first)
    device = find_device(config["device"], "device")
    cache = None if config["cache"] is None else Path(config["cache"]).expanduser()
    names, trust = name_runs(ordered), read_trust(config.get("trust"))
    return [
        OpenRun(found.path, cache=cache, device=device, name=name, trust=trust)
        for found, name in zip(ordered, names, strict=True)
    ]


def name_runs(runs: Sequence[Run]) -> list[str]:
    """What runs are called: by the options, keys and seeds in which they differ, else by their folders."""
    chosen = [_chosen(run) for run in runs]
    keys = list(dict.fromkeys(key for choices in chosen for key in choices))
    differ = [key for key in keys if len({choices.get(key) for choices in chosen}) > 1]
    names = [", ".join(choices.get(key, "-") for key in differ) for choices in chosen]
    if len(runs) == 1 or len(set(names)) < len(runs):
        return [run.path.resolve().name for run in runs]
    return names


def _chosen(run: Run) -> dict[str, str]:
    """What was chosen for a run, by key, as its name shows it: options alone, other keys with theirs; the seed last."""
    words = dict(word.lstrip("+~").split("=", 1) for word in run.overrides if "=" in word)
    others = {key: f"{key}={value}" for key, value in words.items() if key not in {*run.options, "seed", "cache"}}
    options = {key: str(value) for key, value in run.options.items()}
    return {**options, **others, "seed": f"seed={run.config.get('seed')}"}


def _do(name: str, runs: list[OpenRun], config: Mapping[str, Any], folder: Path) -> Part:
    """Do one analysis and write its findings; what becomes of it touches no other."""
    first, side, seed = runs[0], config["side"], config["seed"]

    def examples() -> list[Example]:
        return choose_examples(first, side, **config["examples"])

    analyses: dict[str, Callable[[], list[Finding]]] = {
        "alignment": lambda: alignment(runs, side),
        "projection": lambda: projection(runs, side, seed),
        "correlation": lambda: correlation(first, side, seed, **config["correlation"]),
        "space": lambda: space(first, side, seed),
        "contribution": lambda: contribution(first, side, seed, **config["contribution"]),
        "attention": lambda: attention(first, examples(), side),
        "attribution": lambda: attribution(first, examples(), side, **config["attribution"]),
        "gradcam": lambda: gradcam(first, examples(), side),
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers")
            findings = analyses[name]()
        for finding in findings:
            write_finding(finding, folder)
        return Part(name, QUESTIONS[name], findings, "")
    except (UnsuitedError, InputError) as reason:
        return Part(name, QUESTIONS[name], [], str(reason))
    except Exception as error:  # whatever it is, the other analyses are worth having
        log.error("%s failed", name, exc_info=error)
        said = " ".join(str(error).split()) or "no message"
        return Part(name, QUESTIONS[name], [], f"It failed ({type(error).__name__}: {said}).")
