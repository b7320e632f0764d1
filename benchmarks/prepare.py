"""How long a corpus takes to prepare: python -m benchmarks.prepare [--quick].

Release trees of the true sizes are made in a temporary folder, every recording a file of its own (0.3 s of noise).
Compared, in one process: decoding every recording in a plain loop, as research code does at each start; preparing for
the first time; and preparing again, when nothing changed. Beside it, the whole command as a user starts it.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import soundfile
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from fourm_ser.commandline import tidily
from fourm_ser.config import CONF, build
from fourm_ser.data.corpus import Corpus
from tests import releases


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def plain_loop(root: Path) -> None:
    """Decode every recording below a folder, one after the other."""
    for path in sorted(root.rglob("*.wav")):
        soundfile.read(path, dtype="float32")


def prepare(overrides: list[str]) -> None:
    """Prepare a corpus in this process, anew: what is remembered is on disk alone."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("prepare", overrides)
    node = {key: value for key, value in config.data.items() if key != "show_split"}
    corpus: Corpus = build(node, cache=Path(config.cache))
    corpus.prepare()


def command(overrides: list[str]) -> None:
    """The same as a command of its own, Python's start included."""
    subprocess.run(
        [sys.executable, "-m", "fourm_ser.prepare", *overrides], check=True, stdout=subprocess.DEVNULL, timeout=600
    )


def main() -> None:
    """Make the trees, time, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="trees of a tenth of the size")
    few = parser.parse_args().quick
    labels = {label: -(-count // 10) if few else count for label, count in releases.IEMOCAP_LABELS.items()}
    table = Table(title="preparing a release: seconds (ratio to the plain loop)", title_justify="left")
    for name in ("corpus", "recordings", "plain loop", "first", "again", "command, first", "command, again"):
        table.add_column(name, justify="left" if name == "corpus" else "right")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        releases.iemocap(folder / "iemocap", labels)
        releases.esd(folder / "esd", releases.ESD_SPEAKERS, 35 if few else 350)
        for name, keys in (("iemocap", []), ("esd", ["data.language=all"])):
            root = folder / name
            overrides = [f"data={name}", f"data.root={root}", "data.emotions=null", "data.label_map=null", *keys]
            baseline = seconds(lambda root=root: plain_loop(root))  # type: ignore[misc]
            row = []
            for work in (prepare, command):
                cached = [*overrides, f"cache={folder / work.__name__}"]
                row += [seconds(lambda work=work, cached=cached: work(cached)) for _ in range(2)]  # type: ignore[misc]
            count = sum(1 for _ in root.rglob("*.wav"))
            timed = [f"{value:.1f} ({value / baseline:.2f})" for value in row]
            table.add_row(name, str(count), f"{baseline:.1f}", *timed)
    Console().print(table)


if __name__ == "__main__":
    with tidily():
        main()
