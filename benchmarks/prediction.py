"""How fast a loaded model predicts: python -m benchmarks.prediction [--encoder bert_wav2vec --recordings 24].

Compared, in one process and taking turns: a `Predictor` called a recording at a time, as a script would, and the same
one over all of the folder (`predict_many`): reading, front ends, network and results. Recordings are WAVs of noise of
IEMOCAP's lengths (0.58 s to 34.1 s, 4.55 s on average) with words to match; weights are random. The ratio is that of
the medians over the turns. Memory is what the process holds besides files (RssAnon), at most while it goes through the
folder once, and several times in one go.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import soundfile
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from benchmarks.encoding import RATE, Corpus, device_name
from fourm_ser.commandline import tidily
from fourm_ser.config import CONF
from fourm_ser.devices import find_device
from fourm_ser.encoders.base import Resources
from fourm_ser.errors import InputError
from fourm_ser.models.directory import Conditions, Model
from fourm_ser.models.network import build_network
from fourm_ser.prediction.items import Item
from fourm_ser.prediction.predictor import Prediction, Predictor

EMOTIONS = ["anger", "happiness", "sadness", "neutral"]
MAX_SECONDS = 30.0


def make_predictor(encoder: str, texts: list[str], cache: Path, device: torch.device) -> Predictor:
    """An untrained model, loaded, with the numbers of the command's config."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"encoder={encoder}", "encoder.weights=random"])
        command = compose("predict")
    network = build_network(config, len(EMOTIONS), Resources(cache, texts)).eval()
    model = Model(network, EMOTIONS, Conditions([], "32", "32-true", MAX_SECONDS))
    return Predictor(model, device, batch_size=command.batch_size, batch_seconds=command.batch_seconds)


def write_folder(folder: Path, corpus: Corpus) -> list[Item]:
    """The corpus as files with their texts."""
    items = []
    for place, (wave, text) in enumerate(zip(corpus.raw["audio"], corpus.raw["text"], strict=True)):
        path = folder / f"{place}.wav"
        soundfile.write(path, wave, RATE, subtype="PCM_16")
        items.append(Item(path, text))
    return items


def anonymous() -> float:
    """RssAnon of this process in MB (Linux)."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1e3


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of this process's processor time, that `run` takes."""
    started, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - used


def peak_over(results: Iterator[Prediction | InputError]) -> float:
    """The most memory in MB while results come."""
    peak = 0.0
    for place, result in enumerate(results):
        assert isinstance(result, Prediction), result
        if place % 50 == 0:
            peak = max(peak, anonymous())
    return peak


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--recordings", type=int, default=500)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--times", type=int, default=4, help="how often the folder is gone through for the memory")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, gpu, cuda, mps")
    options = parser.parse_args()
    device = find_device(options.device, "--device")
    corpus = Corpus(options.recordings)
    console = Console()
    console.print(f"device: {device_name(device)} ({device.type})")
    with tempfile.TemporaryDirectory() as scratch:
        predictor = make_predictor(options.encoder, corpus.raw["text"], Path(scratch), device)
        items = write_folder(Path(scratch), corpus)
        ways = ["one by one", *(f"{workers} workers" for workers in options.workers)]
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}

        def one_by_one() -> None:
            for item in items:
                predictor(item.audio, item.text)

        def all_at_once(workers: int) -> None:
            predictor.workers = workers
            for result in predictor.predict_many(items):
                assert isinstance(result, Prediction), result

        all_at_once(0)  # what the first pass alone has to do
        for _ in range(options.turns):
            times["one by one"].append(timed(one_by_one))
            for workers in options.workers:
                times[f"{workers} workers"].append(timed(lambda workers=workers: all_at_once(workers)))  # type: ignore[misc]
        table = Table(title=f"{options.encoder}: {len(items)} recordings, {torch.get_num_threads()} threads")
        for name in ("way", "seconds", "recordings/s", "ratio", "processor seconds"):
            table.add_column(name, justify="left" if name == "way" else "right")
        medians = {way: statistics.median(clock for clock, _ in taken) for way, taken in times.items()}
        for way, taken in times.items():
            ratio = medians["one by one"] / medians[way]
            used = statistics.median(processor for _, processor in taken)
            table.add_row(way, f"{medians[way]:.2f}", f"{len(items) / medians[way]:.0f}", f"{ratio:.2f}", f"{used:.2f}")
        console.print(table)
        predictor.workers = 0
        once = peak_over(predictor.predict_many(items))
        several = peak_over(predictor.predict_many(chain.from_iterable(repeat(items, options.times))))
        console.print(f"RssAnon at most: the folder once {once:.0f} MB, {options.times} times {several:.0f} MB")


if __name__ == "__main__":
    with tidily():
        main()
