"""What reading stored features at random costs: python -m benchmarks.store [--utterances 50000].

Features of made-up utterances (768 wide, 4 to 40 tokens, float16) are written to a store in a temporary folder, about
1.7 GB for 50,000 of them. Compared, in one process and taking turns over the same keys in the same random order: the
store's positioned reads, and safetensors' own `safe_open`, kept open a shard. A ratio is that of utterances a second,
medians over the turns. Anonymous memory is what the process itself holds (RssAnon, Linux), after 500 reads of the store
and after all.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from safetensors import safe_open

from fourm_ser.commandline import tidily
from fourm_ser.encoders.store import FeatureStore

DIM = 768
SHARD = 256
FEW = 500


def fill(store: FeatureStore, count: int) -> list[str]:
    """Write `count` utterances in shards of 256; returns their keys."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(40, DIM)).astype(np.float16)
    keys = [f"utterance-{number:06d}" for number in range(count)]
    for start in range(0, count, SHARD):
        store.write({key: noise[: rng.integers(4, 41)] for key in keys[start : start + SHARD]})
    return keys


def anonymous() -> float:
    """Anonymous resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text().split("RssAnon:")[1]
    return int(status.split()[0]) / 1024


def read_mapped(folder: Path) -> dict[str, Any]:
    """The open shard of each key."""
    shards = [safe_open(path, framework="pt") for path in sorted(folder.glob("shard-*.safetensors"))]
    return {key: shard for shard in shards for key in list(shard.keys())}  # type: ignore[no-untyped-call]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=50_000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        store = FeatureStore(root=Path(scratch), name="made_up", fingerprint="benchmark", made_by={})
        keys = fill(store, options.utterances)
        started = time.perf_counter()
        store = FeatureStore(root=Path(scratch), name="made_up", fingerprint="benchmark", made_by={})
        console.print(f"{len(store)} keys indexed in {time.perf_counter() - started:.2f} s")
        order = [keys[place] for place in np.random.default_rng(1).permutation(len(keys))]
        for key in order[:FEW]:
            store.read(key)
        few = anonymous()
        for key in order:
            store.read(key)
        console.print(
            f"anonymous memory: {few:.1f} MiB after {FEW} reads, {anonymous():.1f} MiB after {len(order)} more"
        )
        mapped = read_mapped(store.folder)
        seconds: dict[str, list[float]] = {"store": [], "safe_open": []}
        for _ in range(options.turns):
            for name, read in (("store", store.read), ("safe_open", lambda key: mapped[key].get_tensor(key).float())):
                started = time.perf_counter()
                for key in order:
                    read(key)
                seconds[name].append(time.perf_counter() - started)
        ours, theirs = (len(order) / statistics.median(times) for times in seconds.values())
        console.print(f"store {ours:.0f}/s, safe_open {theirs:.0f}/s, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    with tidily():
        main()
