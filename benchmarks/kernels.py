"""What each speed hack gains: python -m benchmarks.kernels [chunks pooling ...] [--threads 1] [--turns 5].

A hack is switched off by a patch, in the pass that it belongs to: an encoding pass of a frozen base-sized encoder, an
epoch of the default fusion over stored features, a step of fine-tuning; weights and utterances are random. Both ways
take turns in one process; what the C library keeps is a process's, so that there each turn is a process of its own.
A gain is the share of the pass's time without the hack that the hack saves, by medians over the turns: of processor
seconds, which other processes on the machine hardly move, and of seconds by the clock.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.encoding import device_name
from fourm_ser.commandline import tidily
from fourm_ser.config import CONF, build
from fourm_ser.data.batch import Stored, Utterances
from fourm_ser.devices import computes_in
from fourm_ser.encoders.base import Encoder, Features, Resources
from fourm_ser.encoders.convolutions import OwnConvolutions
from fourm_ser.encoders.mel_lstm import BidirectionalLSTM
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.kernels import attention
from fourm_ser.kernels.bf16 import in_half_precision
from fourm_ser.kernels.memory import keep_freed_memory

CPU = torch.device("cpu")
RATE = 16_000
LENGTHS = (4.4, 4.6)  # seconds of the utterances of an encoding pass: IEMOCAP's mean

Pass = Callable[[], object]


def encoding(modality: str, option: str, half: bool = False) -> Pass:
    """A batch of an encoding pass."""
    encoder, inputs = _encoder(modality, option)

    @torch.no_grad()
    def encode() -> None:
        with in_half_precision(encoder, CPU, torch.bfloat16) if half else nullcontext():
            encoder.stem(inputs)

    return encode


def fine_tuning(modality: str, option: str) -> Pass:
    """A batch forwards and backwards through an encoder that trains."""
    encoder, inputs = _encoder(modality, option)
    encoder.unfreeze("all")
    encoder.train()
    return lambda: encoder(inputs).features.square().mean().backward()


def _encoder(modality: str, option: str) -> tuple[Encoder, Any]:
    """A frozen encoder and a batch for it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"encoder/{modality}={option}", "encoder.weights=random"])
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        encoder: Encoder = build(config.encoder[modality], resources=Resources(Path(scratch), ["some words"]))
    encoder.unfreeze("none")
    waves = [rng.normal(0, 0.1, round(seconds * RATE)).astype(np.float32) for seconds in LENGTHS]
    raws = [" ".join(["some words"] * 10)] * 32 if modality == "text" else waves
    return encoder.eval(), encoder.collate([encoder.frontend(raw) for raw in raws])


def training(frames: float, width: int, count: int = 64) -> Pass:
    """A step of the default fusion and head over stored features of text and of so many frames a second."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [])
    rng, scratch = np.random.default_rng(0), tempfile.TemporaryDirectory()
    seconds = rng.uniform(3.5, 5, count)
    keys, sources = [str(place) for place in range(count)], dict[str, Any]()
    for modality, sizes, dim in (("text", 2 + 3.2 * seconds, 768), ("audio", np.ceil(frames * seconds), width)):
        store = FeatureStore(root=Path(scratch.name), name=modality, fingerprint="benchmark", made_by={})
        store.write({key: rng.normal(size=(int(n), dim)).astype("f4") for key, n in zip(keys, sizes, strict=True)})
        sources[modality] = Stored(store, keys)
    data = Utterances(rng.integers(4, size=count), sources)
    fusion = build(config.fusion, dims={"text": 768, "audio": width})
    head = build(config.head, dim=fusion.dim, classes=4)
    optimizer = torch.optim.AdamW(nn.ModuleList([fusion, head]).train().parameters(), 1e-4, fused=True)

    def step(scratch: Any = scratch) -> None:  # the folder lives as long as this function
        batch = data.collate([data[place] for place in range(count)]).to(CPU)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(fusion(batch.text, batch.audio).embedding), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def lstm() -> Pass:
    """The LSTM of lstm_mel, forwards and backwards."""
    layer, mask = BidirectionalLSTM(128, 128), torch.arange(60) < torch.linspace(20, 60, 32).long()[:, None]
    sequence = Features(torch.randn(32, 60, 128), mask)
    return lambda: layer(sequence).features.square().mean().backward()


def packed(self: BidirectionalLSTM, sequence: Features) -> Features:
    """The same LSTM, by torch's packed sequences."""
    features, mask = sequence
    both = nn.LSTM(features.shape[2], self.forwards.hidden_size, batch_first=True, bidirectional=True)
    for way, suffix in ((self.forwards, ""), (self.backwards, "_reverse")):
        for name, parameter in way.named_parameters():
            setattr(both, name + suffix, parameter)
    given = pack_padded_sequence(features, mask.sum(1), batch_first=True, enforce_sorted=False)
    return Features(pad_packed_sequence(both(given)[0], batch_first=True)[0], mask)


def torch_attention(
    projected: Any, heads: int, mask: Tensor | None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """In place of `attend`: torch's own, whatever the precision and the dropout."""
    query, key, value = (tensor.transpose(1, 2) for tensor in attention._split(projected, heads))
    return nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale).transpose(1, 2)


def whole(self: OwnConvolutions, samples: Tensor) -> Tensor:
    """In place of pieces: the model's layers over an utterance."""
    for layer in self.conv_layers:
        samples = layer(samples)
    return samples


class Hack(NamedTuple):
    """A hack.

    Attributes:
        run: Makes the pass that the hack belongs to.
        off: What stands in whose place while it is switched off and the pass is made; None where a process is told.
        half: Whether the hack is for bf16, which not every processor computes in.
    """

    run: Callable[[], Pass]
    off: dict[str, Any] | None
    half: bool = False


WAV2VEC, WAVLM, VGGISH = (partial(encoding, "audio", option) for option in ("wav2vec", "wavlm", "vggish"))
FEW, MANY = partial(training, 1 / 0.96, 128), partial(training, 50, 768)  # frames a second: of VGGish, of wav2vec 2.0
OWN_CONVOLUTIONS = "fourm_ser.encoders.convolutions.OwnConvolutions"
HACKS = {
    "kept memory, VGGish": Hack(FEW, None),
    "kept memory, wav2vec": Hack(MANY, None),
    "kept memory, encoding": Hack(WAV2VEC, None),
    "dropout, VGGish": Hack(FEW, {"fourm_ser.fusion.base.attend": torch_attention}),
    "dropout, wav2vec": Hack(MANY, {"fourm_ser.fusion.base.attend": torch_attention}),
    "dropout, BERT": Hack(
        partial(fine_tuning, "text", "bert"), {"fourm_ser.encoders.attention.attend": torch_attention}
    ),
    "pieces of scores": Hack(MANY, {"fourm_ser.kernels.attention.SCORES": 10**12}),
    "one layer for two": Hack(
        MANY, {"fourm_ser.fusion.base.in_turn": lambda first, second, features: second(first(features))}
    ),
    "one by one": Hack(WAV2VEC, {f"{OWN_CONVOLUTIONS}.forward": OwnConvolutions.at_once}),
    "pieces of samples": Hack(WAV2VEC, {f"{OWN_CONVOLUTIONS}._in_pieces": whole}),
    "WavLM": Hack(WAVLM, {"fourm_ser.encoders.speech.replace_attention": lambda model: model}),
    "WavLM, training": Hack(
        partial(fine_tuning, "audio", "wavlm"), {"fourm_ser.encoders.speech.replace_attention": lambda model: model}
    ),
    "chunks": Hack(VGGISH, {"fourm_ser.encoders.vggish.TOGETHER": 10**6}),
    "pooling": Hack(VGGISH, {"fourm_ser.encoders.vggish._largest": partial(nn.functional.max_pool2d, kernel_size=2)}),
    "two LSTMs": Hack(lstm, {"fourm_ser.encoders.mel_lstm.BidirectionalLSTM.forward": packed}),
    "layouts": Hack(partial(WAV2VEC, half=True), {"fourm_ser.kernels.bf16.runs": lambda kind: False}, half=True),
    "attention in bf16": Hack(
        partial(WAV2VEC, half=True), {"fourm_ser.encoders.attention.attend": torch_attention}, half=True
    ),
}


def timed(run: Pass) -> tuple[float, float]:
    """Processor seconds and seconds by the clock that a pass takes."""
    started = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - started[0], time.perf_counter() - started[1]


def in_turns(hack: Hack, turns: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """What the pass takes with the hack and without, turn for turn."""

    def off() -> AbstractContextManager[Any]:
        stack = ExitStack()
        for target, instead in (hack.off or {}).items():
            stack.enter_context(patch(target, instead))
        return stack

    made = hack.run()
    with off():
        unmade = hack.run()
    ways: tuple[list[tuple[float, float]], list[tuple[float, float]]] = [], []
    for turn in range(turns + 1):  # the first warms up
        took = timed(made)
        with off():
            took_without = timed(unmade)
        if turn:
            ways[0].append(took)
            ways[1].append(took_without)
    return ways


def alone(name: str, keep: bool, turns: int, threads: int) -> list[tuple[float, float]]:
    """The same where memory is kept, or not: in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.kernels", name, "--threads", str(threads), "--turns", str(turns)]
    done = subprocess.run([*command, "--child", *["--keep"][: int(keep)]], capture_output=True, text=True, check=True)
    return [tuple(map(float, line.split())) for line in done.stdout.splitlines()]  # type: ignore[misc]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hacks", nargs="*", metavar="HACK", help=f"of: {'; '.join(HACKS)}")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        if options.keep:
            keep_freed_memory()
        run = HACKS[options.hacks[0]].run()
        for _ in range(options.turns + 1):
            print(*timed(run))
        return
    console = Console(width=120)
    console.print(f"{device_name(CPU)}, {options.threads} threads")
    table = Table("hack", "with: processor s", "without", "gain", "with: s by the clock", "without", "gain")
    for name in options.hacks or HACKS:
        hack = HACKS[name]
        if hack.half and not computes_in(CPU, torch.bfloat16):
            table.add_row(name, "this processor does not compute in bf16")
            continue
        if hack.off is None:
            ways: Any = [], []
            for _ in range(3):
                for way, keep in zip(ways, (True, False), strict=True):
                    way += alone(name, keep, options.turns, options.threads)[1:]
        else:
            ways = in_turns(hack, options.turns)
        cells = list[str]()
        for on, off in zip(*(np.median(way, axis=0) for way in ways), strict=True):
            cells += [f"{on:.3f}", f"{off:.3f}", f"{100 * (1 - on / off):.0f}%"]
        table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    with tidily():
        main()
