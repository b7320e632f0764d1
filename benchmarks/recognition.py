"""What the defaults recognise on real recordings, beside a linear probe.

python -m benchmarks.recognition WEIGHTS DATA OUT [--seeds 0 1 2] [--corpora ased emodb ravdess paired]

WEIGHTS holds the checkpoints `whisper-base` and `minilm` (all-MiniLM-L6-v2) as Hugging Face folders, DATA the corpora
`ased`, `emodb` and `ravdess`, each with a `manifest.csv`, ravdess also with a `manifest_paired.csv`: four of its
emotions, each recording with a sentence that somebody labelled with the same. Folds are of speakers: sorted by name,
every n-th is tested. Every network is trained on frozen features (stage=transfer) by the defaults of all other groups,
and with refit=true, the probe on the same sides. A score is the UA over all folds' predictions together, in percent,
with its mean and standard deviation over the seeds. OUT keeps the runs: started again, it does what is missing.

`--corpora` takes some of these, or others: NAME=MANIFEST.csv:FOLDS, with transcripts where `--arms` names text or both.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.metrics import recall_score

ARMS = {
    "audio": ["encoder=whisper_base", "fusion=audio_only"],
    "text": ["encoder=minilm_whisper_base", "fusion=text_only"],
    "both": ["encoder=minilm_whisper_base"],
}
PROBES = {"audio": ["baseline.C=0.01"], "text": ["baseline.C=0.1"], "both": ["baseline.C=0.01"]}
FOUR = "anger,happiness,sadness,neutral"


class Corpus(NamedTuple):
    """Recordings and how they are tested.

    Attributes:
        name: What the table calls them.
        manifest: Their manifest.
        folds: How many folds of speakers.
        arms: What of them is tried, of `ARMS`.
        emotions: The classes, by commas; empty for all.
    """

    name: str
    manifest: Path
    folds: int
    arms: Sequence[str]
    emotions: str = ""


def known(data: Path) -> dict[str, Corpus]:
    """The corpora of the table, by name."""
    found = [
        Corpus("ased", data / "ased" / "manifest.csv", 5, ["audio"]),
        Corpus("emodb", data / "emodb" / "manifest.csv", 5, ["audio", "both"], FOUR),
        Corpus("ravdess", data / "ravdess" / "manifest.csv", 4, ["audio", "both"]),
        Corpus("paired", data / "ravdess" / "manifest_paired.csv", 4, ["text", "audio", "both"]),
    ]
    return {corpus.name: corpus for corpus in found}


def with_folds(corpus: Corpus, out: Path) -> Path:
    """A copy of a corpus's manifest whose column `session` is the fold that tests the utterance's speaker."""
    table = pd.read_csv(corpus.manifest, dtype=str, keep_default_na=False)
    if corpus.emotions:
        table = table[table["emotion"].isin(corpus.emotions.split(","))]
    speakers = sorted(table["speaker"].unique())
    table["session"] = table["speaker"].map({name: f"{place % corpus.folds}" for place, name in enumerate(speakers)})
    path = out / f"{corpus.name}.csv"
    table.to_csv(path, index=False)
    return path


def sweep(corpus: Corpus, arm: str, folder: Path, manifest: Path, weights: Path, more: Sequence[str]) -> list[Path]:
    """Do the missing runs of one sweep over the folds; returns the run directories."""
    root = corpus.manifest.parent.resolve()
    command = [
        *(sys.executable, "-m", "fourm_ser.train", "-m", "data=manifest", f"data.manifest={manifest}"),
        *(f"data.audio_root={root}", "data.split=session", "data.validation=speakers"),
        f"data.fold={','.join(map(str, range(corpus.folds)))}",
        *ARMS[arm],
        "encoder.weights=pretrained",
        "stage=transfer",
        f"encoder.audio.checkpoint={weights / 'whisper-base'}",
        *([] if arm == "audio" else [f"encoder.text.checkpoint={weights / 'minilm'}"]),
        *(f"cache={folder.parent / 'cache'}", f"hydra.sweep.dir={folder}", *more),
    ]
    log = folder.with_suffix(".log")
    with log.open("w", encoding="utf-8") as written:
        done = subprocess.run(
            command, stdout=written, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    if done.returncode:
        sys.exit(f"error: {corpus.name}, {arm}: a run failed: see {log}")
    return sorted(path.parent for path in folder.glob("*/metrics.json"))


def score(runs: Sequence[Path]) -> float:
    """The UA in percent over all folds' predictions together."""
    table = pd.concat([pd.read_csv(run / "predictions.csv") for run in runs])
    return 100 * float(recall_score(table["emotion"], table["predicted"], average="macro"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpora", nargs="+")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="of all corpora; without, those that fit each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], help="keys of the config, such as stage.transfer.steps=600")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    corpora = known(given.data)
    if given.corpora:
        corpora = {word: _named(word, corpora) for word in given.corpora}
    table = Table("corpus", "reads", "folds", "probe", "package", "deviation", "s a run", title="UA in %")
    for corpus in corpora.values():
        manifest = with_folds(corpus, out)
        for arm in given.arms or corpus.arms:
            place = (corpus, arm, manifest, given.weights.resolve())
            probe = _scores_of(
                place, out / f"{corpus.name}-{arm}-probe", ["baseline=linear_probe", "refit=true", *PROBES[arm]], [0]
            )
            network = _scores_of(place, out / f"{corpus.name}-{arm}", ["refit=true", *given.set], given.seeds)
            mean, deviation = np.mean(network.scores), np.std(network.scores)
            numbers = f"{np.mean(probe.scores):.1f}", f"{mean:.1f}", f"{deviation:.1f}", f"{network.seconds:.0f}"
            table.add_row(corpus.name, arm, str(corpus.folds), *numbers)
            print(f"{corpus.name} {arm}: probe {numbers[0]}, package {numbers[1]} +- {numbers[2]}", flush=True)
    Console(width=100).print(table)


class _Found(NamedTuple):
    scores: list[float]
    seconds: float  # of training a run, on average


def _scores_of(
    place: tuple[Corpus, str, Path, Path], folder: Path, overrides: Sequence[str], seeds: Sequence[int]
) -> _Found:
    corpus, arm, manifest, weights = place
    found, seconds = list[float](), list[float]()
    for seed in seeds:
        more = [*overrides, f"seed={seed}"]
        runs = sweep(corpus, arm, folder.with_name(f"{folder.name}-{seed}"), manifest, weights, more)
        found.append(score(runs))
        for run in runs:
            values = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
            seconds.append(sum(value for name, value in values.items() if name.startswith("seconds/")))
    return _Found(found, float(np.mean(seconds)))


def _named(word: str, corpora: dict[str, Corpus]) -> Corpus:
    """A known corpus, or another as NAME=MANIFEST.csv:FOLDS."""
    if word in corpora:
        return corpora[word]
    name, _, rest = word.partition("=")
    path, _, folds = rest.rpartition(":")
    if not name or not path or not folds.isdigit():
        sys.exit(f"error: --corpora {word}: expected one of {', '.join(corpora)}, or NAME=MANIFEST.csv:FOLDS.")
    return Corpus(name, Path(path), int(folds), ["audio"])


if __name__ == "__main__":
    main()
