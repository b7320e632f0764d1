"""Which corpus each run saw, told by its content: copies of one are one whatever their paths.

Runs of a section are tested on the same utterances under the same labels. Where their recordings or transcripts differ
(clean and noisy ones), they are cells of it; where speakers or labels do, other sections.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from fourm_ser.config import OF_DATA
from fourm_ser.data.content import changes
from fourm_ser.errors import InputError
from fourm_ser.report.axes import flatten
from fourm_ser.runs.collect import Run

LABELS = ["id", "corpus", "speaker", "session", "emotion"]
VERSION = "data.recordings"


class Corpora:
    """The corpora of runs.

    Args:
        runs: finished or not; one that did not finish, or recorded no corpus, is known by its places alone.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self._places: dict[Path, dict[str, str]] = {}
        self._hash: dict[Path, str] = {}
        self._witness: dict[str, Run] = {}  # of each content, the first run that saw it
        at: dict[str, str] = {}
        for run in sorted(runs, key=lambda run: "corpus_hash" not in run.metrics):
            leaves = flatten({"data": run.config.get("data", {})})
            places = {name: text for name, text in leaves.items() if name.rpartition(".")[2] in OF_DATA}
            place = json.dumps(places, sort_keys=True)
            found = str(run.metrics.get("corpus_hash") or at.get(place) or place)
            at.setdefault(place, found)
            self._places[run.path], self._hash[run.path] = places, found
            self._witness.setdefault(found, run)
        self._several = len(self._witness) > 1
        self._labels: dict[str, str] = {}

    def labels(self, run: Run) -> str:
        """A word for the utterances and labels of a run's corpus: the same for those that can be one section."""
        found = self._hash[run.path]
        if not self._several:
            return found
        if found not in self._labels:
            table = _read(self._witness[found])
            self._labels[found] = found
            if table is not None:
                rows = table[LABELS].to_csv(index=False)
                self._labels[found] = hashlib.blake2b(rows.encode(), digest_size=8).hexdigest()
        return self._labels[found]

    def settings(self, runs: list[Run]) -> list[dict[str, str]]:
        """What tells the corpora of a section's runs apart, by run: nothing where they are one.

        The places of the first run that saw each, without the folders that they share; where they are the same, a hash.
        """
        hashes = [self._hash[run.path] for run in runs]
        if len(set(hashes)) == 1:
            return [{}] * len(runs)
        places = _shortened({found: self._places[self._witness[found].path] for found in hashes})
        distinct = len({json.dumps(place, sort_keys=True) for place in places.values()})
        if distinct == len(places):
            return [places[found] for found in hashes]
        return [{**places[found], VERSION: found[:8]} for found in hashes]

    def places(self, run: Run) -> dict[str, str]:
        """Where a run's corpus was, and a hash of it, by key."""
        return {**self._places[run.path], "corpus_hash": self._hash[run.path]}

    def differences(self, runs: list[Run]) -> list[str]:
        """What the corpora of runs differ in, in sentences."""
        witnesses = list({self._hash[run.path]: run for run in reversed(runs)}.values())[::-1]
        first, *others = witnesses
        before = _read(first)
        said = []
        for other in others:
            now = _read(other)
            if before is None or now is None:
                words = "which of its utterances differ is not recorded"
            else:
                words = changes(before, now, sides=False)
            said.append(f"{other.path}: its corpus is not that of {first.path}: {words}.")
        return said


def _shortened(places: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Places by content, each key's paths from the folder on in which they differ."""
    short = {found: dict(place) for found, place in places.items()}
    for name in {name for place in places.values() for name in place}:
        paths = {place.get(name, "") for place in places.values()}
        if len(paths) > 1 and all(map(os.path.isabs, paths)):
            shared = os.path.commonpath(paths)
            for place in short.values():
                place[name] = os.path.relpath(place[name], shared)
    return short


def _read(run: Run) -> pd.DataFrame | None:
    try:
        return run.directory.read_corpus()
    except InputError:
        return None
