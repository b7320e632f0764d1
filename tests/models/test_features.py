"""Filling the store: what is missing, once, and with the same bits however often a pass was interrupted."""

import errno
import re
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from operator import getitem
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from fourm_ser.data.batch import Raw
from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, length_mask, pad
from fourm_ser.encoders.frontends import LogMel
from fourm_ser.encoders.mel_lstm import MelLSTM
from fourm_ser.encoders.speech import SpeechEncoder
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.encoders.text import TextEncoder
from fourm_ser.errors import InputError
from fourm_ser.models import features as encoding
from fourm_ser.models.features import Encoding, fill_store, plan_shards
from tests.processes import context, started

CPU = torch.device("cpu")


class Columns:
    """Front end of `Tally`: a number -> as many frames of it."""

    def __call__(self, raw: int) -> Inputs:
        return {"rows": torch.full((raw, 2), float(raw))}

    def collate(self, items: Any) -> Inputs:
        rows = [item["rows"] for item in items]
        return {"rows": pad(rows), "lengths": torch.tensor([len(row) for row in rows])}

    def describe(self) -> dict[str, Any]:
        return {}


class Stem(nn.Module):
    """A stem that is a function of its encoder."""

    def __init__(self, encode: Callable[[Inputs], Features]) -> None:
        super().__init__()
        self.encode = encode

    def forward(self, inputs: Inputs) -> Features:
        return self.encode(inputs)


class Tally(Encoder):
    """An encoder that counts what it encodes, and takes its time."""

    modality: ClassVar[str] = "audio"

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.name, self.weights, self.frontend = "tally", "random", Columns()
        self.stem, self.top = Stem(self.encode), nn.Identity()
        self.stem_dim = self.dim = 2
        self.seconds = seconds
        self.seen = Counter[int]()
        self.modes: set[bool] = set()

    def encode(self, inputs: Inputs) -> Features:
        time.sleep(self.seconds)
        self.modes.add(self.training)
        self.seen.update(inputs["lengths"].tolist())
        rows = inputs["rows"]
        return Features(2 * rows, length_mask(inputs["lengths"], rows.shape[1]))

    def blocks(self) -> list[nn.Module]:
        return []


def noise(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, int(rng.integers(300, 9_000))).astype(np.float32) for _ in range(count)]


def sentences(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    words = ["calm", "door", "every", "fire", "green", "happy"]
    return [" ".join(rng.choice(words, int(rng.integers(0, 30)))) for _ in range(count)]


def mel_lstm(tmp_path: Path) -> MelLSTM:
    frontend = LogMel(mels=20, window=400, hop=320, low=50.0, high=8000.0, mean=-5.5, std=4.5)
    sizes = {"channels": [16, 24], "hidden": 8, "layers": 1}
    about: dict[str, Any] = {"name": "tiny_lstm", "weights": "random", "init_seed": 0, **sizes}
    return MelLSTM(**about, frontend=frontend, resources=Resources(tmp_path))


ARCHITECTURE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def wav2vec(tmp_path: Path) -> SpeechEncoder:
    architecture = {"model_type": "wav2vec2", "conv_dim": [8] * 7, "feat_extract_norm": "group", **ARCHITECTURE}
    return SpeechEncoder(
        name="tiny_wav2vec2",
        checkpoint=None,
        weights="random",
        architecture=architecture,
        init_seed=0,
        normalize=True,
        layer="last",
        spec_augment=0.05,
        layerdrop=0.1,
        train_convolutions=False,
        gradient_checkpointing=False,
        resources=Resources(tmp_path),
    )


def bert(tmp_path: Path) -> TextEncoder:
    architecture = {"model_type": "bert", "vocab_size": 100, "max_position_embeddings": 64, **ARCHITECTURE}
    resources = Resources(tmp_path / "cache", sentences(20))
    return TextEncoder(
        name="tiny_bert",
        checkpoint=None,
        tokenizer="wordpiece",
        weights="random",
        architecture=architecture,
        init_seed=0,
        max_tokens=64,
        vocabulary=100,
        layer="last",
        gradient_checkpointing=False,
        resources=resources,
    )


ENCODERS: dict[str, tuple[Callable[[Path], Encoder], Callable[[int], list[Any]], float]] = {
    "mel_lstm": (mel_lstm, noise, 30_000.0),
    "wav2vec": (wav2vec, noise, 30_000.0),
    "bert": (bert, sentences, 500.0),
}


def store(root: Path, name: str = "tiny") -> FeatureStore:
    return FeatureStore(root=root, name=name, fingerprint="abc", made_by={})


class Work:
    """An encoder and a small manifest for it."""

    def __init__(self, encoder: Encoder, raws: list[Any], batch_length: float) -> None:
        self.encoder, self.raws, self.batch_length = encoder, raws, batch_length
        self.keys = [f"key-{number:03d}" for number in range(len(raws))]
        self.lengths = np.array([raw if isinstance(raw, int) else len(raw) for raw in raws], dtype=float)

    def fill(
        self,
        into: FeatureStore,
        encoder: Encoder | None = None,
        workers: int = 0,
        precision: str = "32",
        rows: np.ndarray | None = None,
        tf32: bool = False,
    ) -> int:
        encoder = encoder or self.encoder
        source = Raw(partial(getitem, self.raws), encoder.frontend)
        how = Encoding(Path(), precision, self.batch_length, self.batch_length, CPU, tf32)
        return fill_store(
            into, encoder, source, keys=self.keys, lengths=self.lengths, encoding=how, workers=workers, rows=rows
        )

    def part(self, rows: np.ndarray) -> "Work":
        """These utterances as a manifest of their own."""
        part = Work(self.encoder, [self.raws[row] for row in rows], self.batch_length)
        part.keys = [self.keys[row] for row in rows]
        return part


@pytest.fixture(params=ENCODERS)
def work(request: pytest.FixtureRequest, tmp_path: Path) -> Work:
    build, draw, batch_length = ENCODERS[request.param]
    return Work(build(tmp_path), draw(30), batch_length)


def read_all(filled: FeatureStore, keys: list[str]) -> dict[str, np.ndarray]:
    return {key: filled.read(key).numpy() for key in keys}


def test_features_are_those_of_the_stem_alone(work: Work, tmp_path: Path) -> None:
    filled = store(tmp_path)
    assert work.fill(filled) == len(filled) == 30
    work.encoder.eval()
    for key, raw in zip(work.keys, work.raws, strict=True):
        with torch.no_grad():
            alone = work.encoder.stem_features(work.encoder.collate([work.encoder.frontend(raw)]))
        torch.testing.assert_close(filled.read(key), alone.features[0], rtol=0, atol=1e-5)


def test_only_what_is_missing_is_encoded(tmp_path: Path) -> None:
    work, filled = Work(Tally(), list(range(1, 41)), 60.0), store(tmp_path)
    half = Work(work.encoder, work.raws[:25], 60.0)
    assert half.fill(filled) == 25
    shards = set(filled.folder.glob("shard-*"))
    assert work.fill(filled) == 15
    assert len(filled) == 40
    (new,) = set(filled.folder.glob("shard-*")) - shards
    assert len(store(tmp_path)) == 40
    for shard in shards:
        shard.unlink()
    assert len(store(tmp_path)) == 15  # the second pass wrote nothing that the first had written
    assert new.exists()


def test_a_second_pass_has_nothing_to_do(tmp_path: Path) -> None:
    encoder = Tally()
    work, filled = Work(encoder, list(range(1, 11)), 20.0), store(tmp_path)
    assert work.fill(filled) == 10
    assert encoder.seen == dict.fromkeys(range(1, 11), 1)
    assert work.fill(filled) == 0
    assert work.fill(store(tmp_path)) == 0
    assert encoder.seen == dict.fromkeys(range(1, 11), 1)
    assert len(list(filled.folder.glob("shard-*"))) == 1


def test_the_same_content_is_encoded_once(tmp_path: Path) -> None:
    encoder = Tally()
    work, filled = Work(encoder, [3, 5, 3, 7, 5, 3], 20.0), store(tmp_path)
    work.keys = ["three", "five", "three", "seven", "five", "three"]
    assert work.fill(filled) == 3
    assert encoder.seen == {3: 1, 5: 1, 7: 1}
    assert len(filled) == 3
    assert filled.read("five").tolist() == [[10.0, 10.0]] * 5


def test_the_stem_runs_in_evaluation_mode(work: Work, tmp_path: Path) -> None:
    encoder = Tally()
    encoder.train()
    Work(encoder, [1, 2], 20.0).fill(store(tmp_path, "tally"))
    assert encoder.modes == {False}
    assert encoder.training
    # Were dropout on, two passes would differ.
    passes = []
    for name in ("one", "two"):
        work.encoder.unfreeze("all")
        work.encoder.train()
        work.fill(store(tmp_path, name))
        passes.append(read_all(store(tmp_path, name), work.keys))
    assert all(np.array_equal(passes[0][key], passes[1][key]) for key in work.keys)


def test_workers_read_the_same(work: Work, tmp_path: Path) -> None:
    here, there = store(tmp_path, "here"), store(tmp_path, "there")
    work.fill(here)
    work.fill(there, workers=1)
    assert all(torch.equal(here.read(key), there.read(key)) for key in work.keys)


@pytest.mark.slow(but=["wav2vec-", "bert-threads"])
@pytest.mark.parametrize("change", ["the same again", "budget", "threads"])
def test_what_changes_last_digits_alone(work: Work, tmp_path: Path, change: str) -> None:
    here, there = store(tmp_path, "here"), store(tmp_path, "there")
    work.fill(here)
    threads = torch.get_num_threads()
    try:
        if change == "budget":
            work.batch_length *= 3
        elif change == "threads":
            torch.set_num_threads(3 - min(threads, 2))
        work.fill(there)
    finally:
        torch.set_num_threads(threads)
    for key in work.keys:
        one, other = here.read(key), there.read(key)
        if change == "the same again":
            assert torch.equal(one, other)
        assert other.shape == one.shape
        assert (one - other).abs().max() <= 1e-4 * max(1.0, float(one.abs().max()))


class InterruptionError(Exception):
    pass


@pytest.mark.slow(but=["wav2vec-5", "bert-1-"])
@pytest.mark.parametrize("where", ["stem", "source"])
@pytest.mark.parametrize("after", [1, 5, 20])
def test_an_interrupted_pass_goes_on_with_the_same_bits(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, after: int
) -> None:
    monkeypatch.setattr(encoding, "SHARD", 6)
    whole, broken = store(tmp_path, "whole"), store(tmp_path, "broken")
    assert work.fill(whole) == 30
    assert len(list(whole.folder.glob("shard-*"))) > 3
    expected = read_all(whole, work.keys)

    with monkeypatch.context() as interrupted:
        calls = 0
        stem, raws = work.encoder.stem.forward, work.raws

        def counted(inputs: Inputs) -> Features:
            nonlocal calls
            calls += len(next(iter(inputs.values())))
            if calls > after:
                raise InterruptionError
            return stem(inputs)

        class Reader(list[Any]):
            def __getitem__(self, index: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > after:
                    raise InterruptionError
                return raws[index]

        if where == "stem":
            interrupted.setattr(work.encoder.stem, "forward", counted)
        else:
            interrupted.setattr(work, "raws", Reader())
        with pytest.raises(InterruptionError):
            work.fill(broken)

    reader = store(tmp_path, "broken")
    assert len(reader) == len(broken) < 30
    assert (len(reader) > 0) == (after == 20)
    for key in set(work.keys) - set(reader.missing(work.keys)):
        np.testing.assert_array_equal(reader.read(key).numpy(), expected[key])
    assert not list(reader.folder.glob(".*safetensors"))

    assert work.fill(reader) == 30 - len(broken)
    found = read_all(store(tmp_path, "broken"), work.keys)
    for key in work.keys:
        assert found[key].tobytes() == expected[key].tobytes()


def test_a_pass_that_lacks_some_of_a_batch_makes_the_same_bits(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "SHARD", 6)
    whole, part = store(tmp_path, "whole"), store(tmp_path, "part")
    work.fill(whole)
    part.write({key: whole.read(key).numpy() for key in work.keys[::3]})
    assert work.fill(part) == 20
    for key in work.keys:
        assert torch.equal(part.read(key), whole.read(key))


def fill_there(root: Path, pipe: Connection) -> None:
    """What the other process does."""
    encoder = Tally(seconds=0.05)
    work, filled = Work(encoder, list(range(1, 41)), 60.0), store(root)
    pipe.send("ready")
    pipe.recv()
    count = work.fill(filled)
    pipe.send((count, dict(encoder.seen)))


@pytest.mark.slow
def test_two_processes_at_once_encode_each_utterance_once(tmp_path: Path) -> None:
    here, there = context().Pipe()
    process = started(fill_there, tmp_path, there)
    try:
        assert here.poll(600)
        assert here.recv() == "ready"
        encoder = Tally(seconds=0.05)
        work, filled = Work(encoder, list(range(1, 41)), 60.0), store(tmp_path)
        here.send("go")
        own = work.fill(filled)
        assert here.poll(600)
        other, seen = here.recv()
    finally:
        process.join(600)
        process.kill()
    assert own + other == 40
    assert encoder.seen + Counter(seen) == dict.fromkeys(range(1, 41), 1)
    for reader in (filled, store(tmp_path)):
        assert all(
            reader.read(key).tolist() == [[2.0 * raw] * 2] * raw for key, raw in zip(work.keys, work.raws, strict=True)
        )


def test_the_plan_covers_every_key_once_and_keeps_to_the_batch_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SHARD", 20)
    lengths = np.random.default_rng(0).integers(1, 60, 200).astype(float)
    lengths[7] = 500.0
    keys = [f"key-{number % 180:03d}" for number in range(200)]
    shards = plan_shards(keys, lengths, 100.0)
    batches = [batch for shard in shards for batch in shard]
    assert sorted(position for batch in batches for position in batch) == list(range(180))
    for batch in batches:
        padded = len(batch) * lengths[batch].max()
        assert padded <= 100 or len(batch) == 1
        assert padded - lengths[batch].sum() <= 0.05 * padded
    assert max(map(len, batches)) > 3
    assert [7] in batches
    sizes = [sum(map(len, shard)) for shard in shards]
    assert all(size >= 20 for size in sizes[:-1])
    assert max(sizes) < 2 * 100
    ends = [float(lengths[batch].max()) for batch in batches]
    assert ends == sorted(ends)


def test_the_plan_does_not_depend_on_the_order_of_the_manifest() -> None:
    lengths = np.random.default_rng(0).integers(1, 9, 50).astype(float)
    keys = [f"key-{number:03d}" for number in range(50)]
    order = np.random.default_rng(1).permutation(50)

    def planned(keys: list[str], lengths: np.ndarray) -> list[list[list[str]]]:
        shards = plan_shards(keys, lengths, 40.0)
        return [[[keys[position] for position in batch] for batch in shard] for shard in shards]

    assert planned([keys[place] for place in order], lengths[order]) == planned(keys, lengths)


PARTS = [np.arange(0, 30, 3), np.setdiff1d(np.arange(30), np.arange(0, 30, 3))]


def test_only_the_rows_of_a_part_are_encoded(tmp_path: Path) -> None:
    encoder = Tally()
    work, filled = Work(encoder, list(range(1, 31)), 60.0), store(tmp_path)
    assert work.fill(filled, rows=PARTS[0]) == 10
    assert set(filled.missing(work.keys)) == {work.keys[row] for row in PARTS[1]}
    assert encoder.seen == dict.fromkeys((PARTS[0] + 1).tolist(), 1)
    assert work.fill(filled, rows=PARTS[0]) == 0
    assert work.fill(filled, rows=PARTS[1]) == 20
    assert work.fill(filled) == work.fill(filled, rows=np.array([], dtype=int)) == 0
    assert encoder.seen == dict.fromkeys(range(1, 31), 1)
    for key, raw in zip(work.keys, work.raws, strict=True):
        assert filled.read(key).tolist() == [[2.0 * raw] * 2] * raw


def test_a_part_is_encoded_with_the_bits_of_a_pass_over_it_alone(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "SHARD", 6)
    together = store(tmp_path, "together")
    for place, rows in enumerate(PARTS):
        alone = store(tmp_path, f"alone-{place}")
        part = work.part(rows)
        assert part.fill(alone) == work.fill(together, rows=rows) == len(rows)
        assert len(list(together.folder.glob("shard-*"))) > 2 * place + 1
        for key in part.keys:
            assert together.read(key).numpy().tobytes() == alone.read(key).numpy().tobytes()


def test_a_part_is_planned_by_itself(tmp_path: Path) -> None:
    class Grouped(Tally):
        """Writes down who is encoded together."""

        def __init__(self) -> None:
            super().__init__()
            self.groups: list[list[int]] = []

        def encode(self, inputs: Inputs) -> Features:
            self.groups.append(sorted(inputs["lengths"].tolist()))
            return super().encode(inputs)

    encoder = Grouped()
    work = Work(encoder, [131 - number for number in range(30)], 400.0)
    for rows in PARTS:
        encoder.groups.clear()
        work.part(rows).fill(store(tmp_path, f"alone-{len(rows)}"))
        alone = list(encoder.groups)
        encoder.groups.clear()
        work.fill(store(tmp_path, f"part-{len(rows)}"), rows=rows)
        assert encoder.groups == alone
        assert max(map(len, alone)) > 1


def test_what_two_parts_share_is_stored_once(tmp_path: Path) -> None:
    work, filled = Work(Tally(), [3, 5, 3, 7], 20.0), store(tmp_path)
    work.keys = ["three", "five", "three", "seven"]
    assert work.fill(filled, rows=np.array([0, 1])) == 2
    (first,) = filled.folder.glob("shard-*")
    assert work.fill(filled, rows=np.array([2, 3])) == 1
    assert not filled.missing(work.keys)
    first.unlink()
    assert set(store(tmp_path).missing(work.keys)) == {"three", "five"}


def stored_types(filled: FeatureStore) -> dict[str, str]:
    """The type that each key is stored in, as its shard's header says."""
    types: dict[str, str] = {}
    for shard in filled.folder.glob("shard-*"):
        with safe_open(shard, "numpy") as file:
            types |= {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    return types


@pytest.mark.usefixtures("kernels")
def test_bf16_stores_half_of_the_bytes_and_nearly_the_same_features(work: Work, tmp_path: Path) -> None:
    exact, rough = store(tmp_path, "exact"), store(tmp_path, "rough")
    assert work.fill(exact) == work.fill(rough, precision="bf16") == 30
    assert stored_types(exact) == dict.fromkeys(work.keys, "F32")
    assert stored_types(rough) == dict.fromkeys(work.keys, "F16")
    for key in work.keys:
        one, other = exact.read(key), rough.read(key)
        assert other.shape == one.shape
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) >= 0.999
    assert any(not torch.equal(exact.read(key).half().float(), rough.read(key)) for key in work.keys)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_stem_computes_in_the_precision_that_is_asked_for(tmp_path: Path, precision: str) -> None:
    class Product(Tally):
        """Writes down the type of its products."""

        def encode(self, inputs: Inputs) -> Features:
            dtypes.add((inputs["rows"] @ torch.eye(2)).dtype)
            return super().encode(inputs)

    dtypes: set[torch.dtype] = set()
    Work(Product(), [1, 2, 3], 20.0).fill(store(tmp_path), precision=precision)
    assert dtypes == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_features_beyond_the_range_of_float16_are_stored_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Tally()
    work, filled = Work(encoder, list(range(1, 31)), 60.0), store(tmp_path)

    def scaled(inputs: Inputs) -> Features:
        features, mask = encoder.encode(inputs)
        return Features(torch.where(features > 40, 1e6, 1.0) * features, mask)

    monkeypatch.setattr(encoder.stem, "encode", scaled)
    assert work.fill(filled, precision="bf16") == 30
    types = stored_types(filled)
    assert set(types.values()) == {"F16", "F32"}
    for key, raw in zip(work.keys, work.raws, strict=True):
        value = 2.0 * raw * (1e6 if raw > 20 else 1.0)
        assert filled.read(key).tolist() == [[value] * 2] * raw
        assert raw <= 20 or types[key] == "F32"


class Small(Tally):
    """As `Tally`, on a device that holds so many frames at a time, padding included."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames, self.batches, self.refused = frames, list[int](), 0

    def encode(self, inputs: Inputs) -> Features:
        size = inputs["rows"].shape[0] * inputs["rows"].shape[1]
        if size > self.frames:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.batches.append(size)
        return super().encode(inputs)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_pass_that_runs_out_of_memory_goes_on_in_halves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, precision: str
) -> None:
    raws = [4 + number % 5 for number in range(60)]
    usual, halves = store(tmp_path, "usual"), store(tmp_path, "halves")
    Work(Tally(), raws, 160.0).fill(usual, precision=precision)
    encoder = Small(45)
    with caplog.at_level("WARNING", "fourm_ser"):
        assert Work(encoder, raws, 160.0).fill(halves, precision=precision) == 60
    assert encoder.seen == Counter(raws)
    assert 1 <= encoder.refused <= 3  # what was learned holds for the batches that follow
    assert max(encoder.batches) <= 45
    assert re.search(r"encoding audio with tally: cpu ran out of memory .*\(48 s .*going on in halves", caplog.text)
    for key in Work(encoder, raws, 160.0).keys:
        assert torch.equal(usual.read(key), halves.read(key))


def test_an_utterance_that_there_is_no_memory_for_is_one_line(tmp_path: Path) -> None:
    filled = store(tmp_path)
    with pytest.raises(
        InputError, match=r"ran out of memory over a batch of 1 utterances \(50 s .*encode\.max_seconds"
    ):
        Work(Small(45), [3, 4, 50], 60.0).fill(filled)


@pytest.mark.parametrize(("precision", "advice"), [("32", "weights damaged"), ("bf16", r"encode\.precision=32")])
@pytest.mark.parametrize("writer", ["", "quick"])
def test_features_that_are_no_numbers_are_refused(
    tmp_path: Path, precision: str, advice: str, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(pending: "deque[Future[None]]", left: int) -> None:
        futures.wait(pending)
        waiting(pending, left)

    waiting = encoding._wait
    if writer:  # the shard is to be written once a batch of it has failed, and before anybody looks
        monkeypatch.setattr(encoding, "_wait", slowly)

    class Broken(Tally):
        def encode(self, inputs: Inputs) -> Features:
            features, mask = super().encode(inputs)
            return Features(torch.where(features == 14, torch.nan, features), mask)

    filled = store(tmp_path)
    with pytest.raises(InputError, match=rf"number 3 of .* are not finite in precision {precision}.*{advice}"):
        Work(Broken(), [3, 5, 7, 9], 20.0).fill(filled, precision=precision)
    assert not list(filled.folder.glob("shard-*"))


def test_a_pass_rounds_to_tf32_only_where_it_may(tmp_path: Path) -> None:
    class Watching(Tally):
        def encode(self, inputs: Inputs) -> Features:
            seen.add((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
            return super().encode(inputs)

    for allowed in (False, True):
        seen: set[tuple[bool, bool]] = set()
        Work(Watching(), [1, 2], 20.0).fill(store(tmp_path, str(allowed)), tf32=allowed)
        assert seen == {(allowed, allowed)}


class Wide(Tally):
    """As `Tally`, with so many features that a small manifest fills a disk."""

    def encode(self, inputs: Inputs) -> Features:
        features, mask = super().encode(inputs)
        return Features(features[..., :1].expand(-1, -1, 40_000), mask)


@pytest.mark.parametrize(("precision", "size"), [("32", 4), ("bf16", 2)])
def test_a_pass_that_the_disk_has_no_room_for_is_refused_after_its_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, size: int
) -> None:
    encoder = Wide()
    work, filled = Work(encoder, [2, 3, 40, 45, 50, 55], 60.0), store(tmp_path)
    monkeypatch.setattr(encoding, "SHARD", 2)
    assert work.fill(filled, rows=np.array([0, 1])) == 2
    before = sorted(filled.folder.iterdir())
    encoder.seen.clear()
    need = (40 + 45 + 50 + 55) * 40_000 * size  # bytes
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=need - 1_000_000))
        with pytest.raises(InputError) as refused:
            work.fill(filled, precision=precision, rows=np.arange(2, 6))
    free = f"{(need - 1_000_000) / 1e9:.2f} GB"
    assert re.search(rf"{filled.folder}: encoding needs about {need / 1e9:.2f} GB, {free} are free", str(refused.value))
    assert encoder.seen == {40: 1}
    assert sorted(filled.folder.iterdir()) == before
    assert store(tmp_path).missing(work.keys) == work.keys[2:]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=need + 1_000_000))
    assert work.fill(filled, precision=precision, rows=np.arange(2, 6)) == 4


def test_an_utterance_without_length_needs_no_room_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    # An empty transcript has no characters and two tokens; alone in the first batch it says nothing of the others.
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1e9))
    for lengths in ([0.0, 50.0], [0.0, 0.0]):
        work, filled = Work(Tally(), [2, 50], 60.0), store(tmp_path, f"store-{lengths[1]}")
        work.lengths = np.array(lengths)
        assert work.fill(filled) == 2
    assert not [str(warning.message) for warning in recwarn if "divide" in str(warning.message)]


def test_a_pass_that_fills_the_disk_goes_on_where_it_stopped(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "SHARD", 6)
    whole, broken = store(tmp_path, "whole"), store(tmp_path, "broken")
    work.fill(whole)
    written = 0

    def save(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
        nonlocal written
        written += 1
        if written > 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, metadata)

    with monkeypatch.context() as full:
        full.setattr("fourm_ser.encoders.store.save_file", save)
        with pytest.raises(InputError, match="the disk is full"):
            work.fill(broken)
    reader = store(tmp_path, "broken")
    kept = 30 - len(reader.missing(work.keys))
    assert len(list(reader.folder.glob("shard-*"))) == 2
    assert 0 < kept < 30
    assert not list(reader.folder.glob(".shard-*"))
    assert work.fill(reader) == 30 - kept
    for key in work.keys:
        assert torch.equal(reader.read(key), whole.read(key))
