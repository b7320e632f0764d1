"""How fast frozen encoders fill the store: python -m benchmarks.encoding [--pairs bert_wav2vec bert_whisper_base ...].

Compared, in one process and taking turns: a plain loop over the utterances, one at a time in fp32, as the research code
runs (for Hugging Face models their own forward pass, Whisper's over 30 s; for VGGish torchvggish), and a pass that
fills the store from nothing, front end and disk included. Utterances are noise of IEMOCAP's lengths (0.58 s to 34.1 s,
4.55 s on average, 95% under 11.1 s) with words to match; weights are random. A ratio is that of utterances a second,
medians over the turns. `--set encoder.audio.context=own` measures Whisper on the utterances alone, without the silence
to 30 s; `encoder.audio.layer=last` with all of its layers, of which the default leaves out those above the third. Peak
is the device's matrix multiplication in the same precision, measured in the same run. Both ways run on `--device`;
memory is the process's on a processor, the device's on a GPU.
"""

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, WhisperFeatureExtractor

from fourm_ser.commandline import tidily
from fourm_ser.config import CONF, build
from fourm_ser.data.batch import Raw
from fourm_ser.devices import HALVES, computes_in, find_device, resolve_budget, resolve_workers
from fourm_ser.encoders.base import Encoder, Resources
from fourm_ser.encoders.speech import SpeechEncoder
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.encoders.text import TextEncoder
from fourm_ser.encoders.whisper import WhisperEncoder
from fourm_ser.models.features import Encoding, fill_store, plan_shards

RATE = 16_000
WORDS = [
    "the",
    "a",
    "I",
    "you",
    "we",
    "they",
    "was",
    "is",
    "not",
    "so",
    "happy",
    "angry",
    "calm",
    "home",
    "never",
    "why",
]


class Corpus:
    """Made-up utterances of IEMOCAP's lengths.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        seconds = np.exp(rng.normal(1.28, 0.685, count)).clip(0.58, 34.1)
        waves = [rng.normal(0, 0.1, round(length * RATE)).astype(np.float32) for length in seconds]
        texts = [" ".join(rng.choice(WORDS, max(1, round(2.5 * length)))) for length in seconds]
        self.raw: dict[str, list[Any]] = {"audio": waves, "text": texts}
        characters = np.array([len(text) + 2.0 for text in texts])
        self.lengths = {"audio": seconds, "text": characters}


def plain(encoder: Encoder, device: torch.device) -> Callable[[Any], torch.Tensor]:
    """The research code's way to encode one utterance: raw -> features, on the host in the end."""
    if isinstance(encoder, WhisperEncoder):
        extractor = WhisperFeatureExtractor(feature_size=encoder.stem.model.config.num_mel_bins)
        whole = encoder.stem.model.__class__(encoder.stem.model.config).eval().to(device)

        def whisper(wave: np.ndarray) -> torch.Tensor:
            frames = extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features
            return whole(frames.to(device)).last_hidden_state[:, : -(-len(wave) // 320)].cpu()

        return whisper
    if isinstance(encoder, TextEncoder | SpeechEncoder):
        config = encoder.stem.model.config
        model = AutoModel.from_config(config).eval().to(device)
        if isinstance(encoder, TextEncoder):
            tokenizer = encoder.frontend.tokenizer  # type: ignore[attr-defined]
            return lambda text: model(
                **tokenizer(text, return_tensors="pt", truncation=True).to(device)
            ).last_hidden_state.cpu()

        def speech(wave: np.ndarray) -> torch.Tensor:
            samples = torch.from_numpy((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))
            return model(samples[None].to(device)).last_hidden_state.cpu()

        return speech
    from torchvggish.torchvggish import VGG, make_layers
    from torchvggish.vggish_input import waveform_to_examples

    network = VGG(make_layers(), False).eval().to(device)
    return lambda wave: network(
        waveform_to_examples(np.pad(wave, (0, max(0, 15_600 - len(wave)))), RATE).to(device)
    ).cpu()


def work(encoder: Encoder, corpus: Corpus) -> float:
    """Floating-point operations of all utterances, each alone: a parabola through the counts of a few short ones."""
    run, raw = plain(encoder, torch.device("cpu")), corpus.raw[encoder.modality]
    if isinstance(encoder, WhisperEncoder):  # in its own context it does less

        def run(wave: np.ndarray) -> torch.Tensor:
            return encoder.stem(encoder.collate([encoder.frontend(wave)])).features

    lengths = corpus.lengths[encoder.modality]
    picked = np.argsort(lengths)[np.linspace(0, len(lengths) // 2, 4).astype(int)]
    counts = []
    for place in picked:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(raw[place])
        counts.append(counter.get_total_flops())
    return float(np.polyval(np.polyfit(lengths[picked], counts, 2), lengths).sum())


def device_name(device: torch.device) -> str:
    """What a device is called: the card's name, or the kind of processor."""
    module: Any = torch.get_device_module(device)
    if hasattr(module, "get_device_name"):
        return str(module.get_device_name(device))
    about: Any = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return str(about.get("cpu_name", device.type))


def synchronize(device: torch.device) -> None:
    """Wait for what a device was told to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large matrix multiplication."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    times = []
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes, whose results are on the host."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def peak_memory(run: Callable[[], float], device: torch.device) -> tuple[float, float]:
    """What `run` returns, and the most memory meanwhile, in GB: resident (Linux), or the device's."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        return run(), torch.accelerator.max_memory_allocated(device) / 1e9
    # What earlier turns left behind would be copied page by page once workers are forked.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    result = run()
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return result, int(status.split()[0]) / 1e6


class Turns(NamedTuple):
    """What one encoder's turns gave: medians in seconds and memory in GB by way (`plain`, `32`, `bf16`), stores."""

    seconds: dict[str, float]
    memory: dict[str, float]
    stores: dict[str, FeatureStore]


def take_turns(
    encoder: Encoder,
    corpus: Corpus,
    precisions: list[str],
    turns: int,
    budget: float,
    workers: int,
    folder: Path,
    device: torch.device,
) -> Turns:
    """Encode the corpus by the plain loop and into empty stores, in turns."""
    run, raw = plain(encoder, device), corpus.raw[encoder.modality]
    lengths = encoder.lengths(raw.__getitem__, corpus.lengths[encoder.modality])
    source = Raw(lambda index: raw[index], encoder.frontend)
    keys = [str(place) for place in range(len(raw))]
    seconds: dict[str, list[float]] = {way: [] for way in ("plain", *precisions)}
    memory: dict[str, float] = {}
    stores: dict[str, FeatureStore] = {}

    @torch.inference_mode()
    def loop() -> None:
        for item in raw:
            run(item)

    for turn in range(turns):
        took, memory["plain"] = peak_memory(partial(timed, loop), device)
        seconds["plain"].append(took)
        for precision in precisions:
            store = stores[precision] = FeatureStore(
                root=folder, name=encoder.name, fingerprint=f"{precision}-{turn}", made_by={}
            )
            how = Encoding(folder, precision, budget, budget, device)
            fill = partial(
                fill_store, store, encoder, source, keys=keys, lengths=lengths, encoding=how, workers=workers
            )
            took, memory[precision] = peak_memory(partial(timed, fill), device)
            seconds[precision].append(took)
    return Turns({way: statistics.median(times) for way, times in seconds.items()}, memory, stores)


def main() -> None:
    """Measure each encoder of the pairs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=["bert_wav2vec", "bert_vggish"])
    parser.add_argument("--utterances", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, gpu, cuda, mps")
    parser.add_argument("--precisions", nargs="+", help="32, bf16, 16; without, 32 and what the device computes in")
    parser.add_argument("--set", nargs="+", default=[], help="keys of the config, such as encoder.audio.context=full")
    options = parser.parse_args()
    device = find_device(options.device, "--device")
    corpus = Corpus(options.utterances)
    native = [name for name, dtype in HALVES.items() if computes_in(device, dtype)]
    precisions: list[str] = options.precisions or ["32", *native]
    peaks = {name: matmul_peak(HALVES.get(name, torch.float32), device) for name in precisions}
    console = Console(width=120)
    console.print(f"device: {device_name(device)} ({device.type})")
    console.print(f"{options.utterances} utterances, {corpus.lengths['audio'].sum():.0f} s of audio")
    for precision, peak in peaks.items():
        console.print(f"matrix multiplication in {precision}: {peak / 1e9:.0f} GFLOP/s")
    table = Table(title="filling the store, against a plain loop in fp32", title_justify="left")
    for name in ("encoder", "precision", "plain/s", "store/s", "ratio", "of peak", "padding", "memory GB", "cosine"):
        table.add_column(name, justify="left" if name == "encoder" else "right")
    for pair in options.pairs:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [f"encoder={pair}", "encoder.weights=random", *options.set])
        budgets = {
            modality: resolve_budget(key, config.encode[key], device)
            for modality, key in (("text", "max_tokens"), ("audio", "max_seconds"))
        }
        total = dict.fromkeys(("plain", *precisions), 0.0)
        with tempfile.TemporaryDirectory() as scratch:
            for modality, budget in budgets.items():
                encoder: Encoder = build(
                    config.encoder[modality], resources=Resources(Path(scratch), corpus.raw["text"])
                )
                encoder.unfreeze("none")
                encoder.eval()
                workers = resolve_workers(config.data.workers)
                took = take_turns(encoder, corpus, precisions, options.turns, budget, workers, Path(scratch), device)
                lengths = encoder.lengths(corpus.raw[modality].__getitem__, corpus.lengths[modality])
                operations = work(encoder, corpus)
                shards = plan_shards([str(place) for place in range(len(lengths))], lengths, budget)
                padded = sum(len(batch) * lengths[batch].max() for shard in shards for batch in shard)
                for precision, store in took.stores.items():
                    cosine = min(
                        _cosine(store, took.stores[precisions[0]], key)
                        for key in (str(place) for place in range(len(lengths)))
                    )
                    table.add_row(
                        encoder.name,
                        precision,
                        f"{len(lengths) / took.seconds['plain']:.1f}",
                        f"{len(lengths) / took.seconds[precision]:.1f}",
                        f"{took.seconds['plain'] / took.seconds[precision]:.2f}",
                        f"{100 * operations / took.seconds[precision] / peaks[precision]:.0f}%",
                        f"{100 * (1 - lengths.sum() / padded):.1f}%",
                        f"{took.memory[precision]:.1f} (plain {took.memory['plain']:.1f})",
                        f"{cosine:.4f}",
                    )
                for way, median in took.seconds.items():
                    total[way] += median
        for precision in precisions:
            rates = [f"{options.utterances / total[way]:.1f}" for way in ("plain", precision)]
            table.add_row(pair, precision, *rates, f"{total['plain'] / total[precision]:.2f}", "", "", "", "")
        table.add_section()
    console.print(table)


def _cosine(one: FeatureStore, other: FeatureStore, key: str) -> float:
    """The smallest cosine between two stores' frames of an utterance."""
    return float(torch.nn.functional.cosine_similarity(one.read(key), other.read(key), dim=-1).min())


if __name__ == "__main__":
    with tidily():
        main()
