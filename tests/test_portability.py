"""Other systems: Apple's GPU and C library, processors of other makers, and processes that start afresh.

Linux's own processes are copies of the one that starts them, before Python 3.14; macOS's and the later ones are handed
pickles.
"""

import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from benchmarks.encoding import device_name
from fourm_ser.data.audio import SAMPLE_RATE
from fourm_ser.data.batch import Batch, Raw, Source, Stored, Utterances, loader
from fourm_ser.data.readers import AudioReader
from fourm_ser.devices import (
    computes_in,
    copies_ahead,
    find_device,
    half_precision,
    resolve_accelerator,
    resolve_budget,
    resolve_devices,
    resolve_encode_precision,
    resolve_trainer_precision,
    resolve_workers,
    sent,
)
from fourm_ser.encoders.base import Encoder
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError
from fourm_ser.kernels.bf16 import LAYOUTS, runs
from fourm_ser.kernels.memory import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory
from fourm_ser.prediction.items import Item, Window
from fourm_ser.prediction.loading import WindowDataset, with_arrays, with_tensors
from tests.accelerator.networks import RAW, TEXTS, WAVES, alone, build
from tests.conftest import Compose
from tests.test_devices import see

CPU, CUDA, MPS, XPU = (torch.device(kind) for kind in ("cpu", "cuda", "mps", "xpu"))
HALVES = (torch.bfloat16, torch.float16)
AUDIO = ("tiny", "mel_cnn", "prosody_cnn", "descriptors", "vggish", "panns", "wav2vec")
FRONTENDS = ["text/tiny", *(f"audio/{name}" for name in AUDIO)]
"""An encoder option of every front end."""


@pytest.mark.parametrize(("platform", "library"), [("darwin", "glibc"), ("win32", "glibc"), ("linux", "another")])
def test_no_c_library_but_glibc_is_told_to_keep_memory(
    monkeypatch: pytest.MonkeyPatch, platform: str, library: str
) -> None:
    def load(name: str | None) -> object:
        assert library == "another", "a C library was asked for"
        return object()

    monkeypatch.setattr("ctypes.CDLL", load)
    monkeypatch.setattr("sys.platform", platform)
    keep_freed_memory()


def test_glibc_is_told_to_keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[int, int] = {}
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=told.__setitem__))
    monkeypatch.setattr("sys.platform", "linux")
    keep_freed_memory()
    assert told == {M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 2**31 - 1}


@pytest.mark.parametrize(
    ("bound", "machine", "limit", "workers"),
    [
        (3, 64, None, 3),  # this process may use three of 64
        (64, 64, None, 8),
        (64, 64, "2", 2),
        (2, 64, "16", 2),
        (3, 64, "0", 3),
        (3, 64, "", 3),
        (3, 64, "2,1", 3),  # of nested regions
        (None, 4, None, 4),  # a system that binds no process
        (None, 4, "1", 1),
        (None, 64, None, 8),
        (None, None, None, 1),
    ],
)
def test_workers_are_as_many_as_processors_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, bound: int | None, machine: int | None, limit: str | None, workers: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: machine)
    if bound is None:
        monkeypatch.delattr("os.sched_getaffinity", raising=False)
    else:
        monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(bound)), raising=False)
    if limit is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert resolve_workers("auto") == workers
    assert resolve_workers(5) == 5


def test_apple_s_gpu_is_used_by_name_alone_and_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, "mps")
    assert [find_device(name, "device") for name in ("auto", "cpu", "gpu", "mps")] == [CPU, CPU, MPS, MPS]
    assert [resolve_accelerator(name) for name in ("auto", "mps")] == ["cpu", "mps"]
    with pytest.raises(InputError, match=r"=cuda: PyTorch sees mps alone here\. Expected one of auto, cpu, gpu, mps\."):
        find_device("cuda", "device")
    assert resolve_devices("auto", MPS) == 1
    assert half_precision(MPS) is None
    assert not any(computes_in(MPS, half) for half in HALVES)
    assert (resolve_trainer_precision("auto", MPS), resolve_encode_precision("auto", MPS)) == ("32-true", "32")
    assert (resolve_trainer_precision("16-mixed", MPS), resolve_encode_precision("16", MPS)) == ("16-mixed", "16")
    for key in ("max_seconds", "max_tokens"):
        assert resolve_budget(key, "auto", MPS) == resolve_budget(key, "auto", CUDA)
        assert resolve_budget(key, 3, MPS) == 3.0
    assert device_name(MPS) == "mps"


def test_copies_go_on_by_themselves_where_their_end_is_told() -> None:
    assert [copies_ahead(device) for device in (CPU, MPS, CUDA, XPU)] == [False, False, True, True]
    tensor = torch.randn(3)
    assert torch.equal(sent(tensor, CPU), tensor)


@pytest.mark.parametrize(
    ("capability", "native"), [((8, 0), HALVES), ((7, 5), HALVES[1:]), ((6, 1), ())], ids=["8.0", "7.5", "6.1"]
)
def test_what_a_card_computes_in_follows_its_age(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], native: tuple[torch.dtype, ...]
) -> None:
    see(monkeypatch, "cuda", capability=capability)
    assert tuple(half for half in HALVES if computes_in(CUDA, half)) == native


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_a_processor_computes_in_bf16_or_in_no_half_precision(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    assert [computes_in(CPU, half) for half in HALVES] == [avx512 or amx, False]


@pytest.mark.parametrize(
    ("module", "half"),
    [
        (SimpleNamespace(is_bf16_supported=lambda: True), torch.bfloat16),
        (SimpleNamespace(is_bf16_supported=lambda: False), None),
        (SimpleNamespace(), None),
    ],
)
def test_another_maker_s_gpu_is_asked_for_bf16(
    monkeypatch: pytest.MonkeyPatch, module: SimpleNamespace, half: torch.dtype | None
) -> None:
    monkeypatch.setattr("torch.get_device_module", lambda device: module)
    assert half_precision(XPU) == half


@pytest.mark.parametrize(
    ("about", "name"),
    [({"cpu_name": "Neoverse-N1"}, "Neoverse-N1"), ({"architecture": "aarch64"}, "cpu"), (None, "cpu")],
)
def test_a_processor_that_has_no_name_is_one(
    monkeypatch: pytest.MonkeyPatch, about: dict[str, str] | None, name: str
) -> None:
    if about is None:
        monkeypatch.delattr("torch.cpu.get_capabilities", raising=False)
    else:
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: about, raising=False)
    assert device_name(CPU) == name


@pytest.mark.parametrize("missing", ["operators", "layout"])
def test_a_build_without_the_operators_lays_nothing_out(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise RuntimeError("to_mkldnn: ATen not compiled with MKLDNN support")

    if missing == "operators":
        monkeypatch.setattr("torch.ops.mkldnn", SimpleNamespace())
        monkeypatch.delattr("torch._C._nn.mkldnn_reorder_conv2d_weight", raising=False)
        assert not any(map(runs, LAYOUTS))
    else:
        monkeypatch.setattr("torch.Tensor.to_mkldnn", refuse)
        assert not runs(LAYOUTS[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("portability")


@pytest.mark.slow(but=["audio/tiny", "mel_cnn", "descriptors", "panns"])
@pytest.mark.parametrize("option", FRONTENDS)
def test_a_front_end_that_was_pickled_gives_the_same(option: str, home: Path, composed: Compose) -> None:
    modality = option.split("/")[0]
    _, network = build(composed, home, alone(option))
    frontend = network.by_modality[modality].frontend
    again = pickle.loads(pickle.dumps(frontend))
    assert again.describe() == frontend.describe()
    raws = RAW[modality]
    batches = [end.collate([end(raw) for raw in raws]) for end in (frontend, again)]
    torch.testing.assert_close(batches[1], batches[0], rtol=0, atol=0)


@pytest.fixture(scope="module")
def encoders(home: Path, composed: Compose) -> dict[str, Encoder]:
    """Tiny encoders of both modalities."""
    _, network = build(composed, home, [])
    return dict(network.by_modality)


@pytest.fixture(scope="module")
def files(home: Path) -> list[str]:
    """The recordings as files, by number."""
    names = [str(home / f"{number}.wav") for number in range(len(WAVES))]
    for name, wave in zip(names, WAVES, strict=True):
        soundfile.write(name, wave, SAMPLE_RATE, subtype="FLOAT")
    return names


@pytest.fixture
def sources(encoders: dict[str, Encoder], files: list[str], tmp_path: Path) -> dict[str, Source]:
    """Raw texts, stored texts, and raw recordings."""
    store = FeatureStore(root=tmp_path, name="tiny", fingerprint="abc", made_by={})
    store.write({text: np.full((number + 1, 6), number, np.float16) for number, text in enumerate(TEXTS)})
    store.read(TEXTS[0])  # leaves its file open, by a number that means nothing to another process
    frame = pd.DataFrame({"text": TEXTS, "file": files, "start": np.nan, "end": np.nan})
    return {
        "text": Raw(frame["text"].tolist().__getitem__, encoders["text"].frontend),
        "stored text": Stored(store, TEXTS),
        "audio": Raw(AudioReader(frame, 1.0), encoders["audio"].frontend),
    }


@pytest.mark.parametrize("text", ["text", "stored text"])
def test_utterances_that_were_pickled_are_the_same(sources: dict[str, Source], text: str) -> None:
    dataset = Utterances(np.arange(4), {"text": sources[text], "audio": sources["audio"]})
    again = pickle.loads(pickle.dumps(dataset))
    batches = [one.collate([one[row] for row in (2, 0, 3)]) for one in (dataset, again)]
    torch.testing.assert_close(batches[1], batches[0], rtol=0, atol=0)


@pytest.fixture
def _afresh() -> Iterator[None]:
    """Processes start afresh, and know no more than they are handed."""
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(None, force=True)


@pytest.mark.slow
@pytest.mark.usefixtures("_afresh")
def test_a_loader_s_process_may_start_afresh(sources: dict[str, Source]) -> None:
    dataset = Utterances(np.arange(4), {"text": sources["stored text"], "audio": sources["audio"]})
    here, there = (list[Batch](loader(dataset, [[2, 0], [1, 3]], workers, False)) for workers in (0, 1))
    torch.testing.assert_close(there, here, rtol=0, atol=0)


def test_what_reads_to_predict_and_what_it_gives_and_lacks_can_be_pickled(
    encoders: dict[str, Encoder], files: list[str]
) -> None:
    reading = WindowDataset(encoders, 1.0, [])
    nothing = np.zeros(1_600, np.float32)
    items = [Item(files[2], TEXTS[2]), Item(WAVES[3], TEXTS[3]), Item(f"{files[0]}.gone", ""), Item(nothing, "calm")]
    plan = [Window(1.0, (place, 0), item) for place, item in enumerate(items)]
    there = pickle.loads(pickle.dumps(with_arrays(pickle.loads(pickle.dumps(reading)).__getitems__(plan))))
    found, expected = with_tensors(there), reading.__getitems__(plan)
    assert found.windows == expected.windows
    assert [window.key for window in found.windows] == [(0, 0), (1, 0)]
    torch.testing.assert_close(found.inputs, expected.inputs, rtol=0, atol=0)
    faults = [{key: (type(error), str(error)) for key, error in loaded.failed.items()} for loaded in (found, expected)]
    assert faults[0] == faults[1]
    assert sorted(faults[0]) == [(2, 0), (3, 0)]
