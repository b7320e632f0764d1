"""The embedding store: what was written comes back, from any process, and damage is named."""

import errno
import json
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError


def features(count: int, width: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Features of `count` utterances, from one frame on."""
    rng = np.random.default_rng(seed)
    return {
        f"{seed}-{number:04d}": rng.normal(size=(1 + number % 7, width)).astype(np.float32) for number in range(count)
    }


def opened(root: Path) -> FeatureStore:
    return FeatureStore(root=root, name="tiny", fingerprint="abc", made_by={"weights": "random"})


def shards(store: FeatureStore) -> list[Path]:
    return sorted(store.folder.glob("shard-*.safetensors"))


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    store = opened(tmp_path)
    one, two = features(20), features(5, seed=1)
    store.write(one)
    store.write(two)
    for reader in (store, opened(tmp_path)):
        assert len(reader) == 25
        for key, array in {**one, **two}.items():
            assert key in reader
            found = reader.read(key)
            assert found.dtype == torch.float32
            np.testing.assert_array_equal(found.numpy(), array)
        reader.close()
        np.testing.assert_array_equal(reader.read("0-0003").numpy(), one["0-0003"])


def test_what_is_read_is_the_caller_s_own(tmp_path: Path) -> None:
    store = opened(tmp_path)
    written = features(2)
    store.write(written)
    store.read("0-0001").zero_()
    np.testing.assert_array_equal(store.read("0-0001").numpy(), written["0-0001"])


def test_half_precision_comes_back_as_float32(tmp_path: Path) -> None:
    store = opened(tmp_path)
    half = {key: array.astype(np.float16) for key, array in features(4).items()}
    store.write(half)
    for key, array in half.items():
        assert store.read(key).dtype == torch.float32
        np.testing.assert_array_equal(store.read(key).numpy(), array.astype(np.float32))


@pytest.mark.parametrize("kinds", [("f4",), ("f2",), ("f2", "f4")])
def test_a_batch_is_what_each_utterance_is_and_zeros_behind(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    store = opened(tmp_path)
    for seed, kind in enumerate(kinds):
        store.write({key: array.astype(kind) for key, array in features(9, seed=seed).items()})
    keys = ["0-0004", "0-0000", f"{len(kinds) - 1}-0006", "0-0004"]
    found, mask = store.read_batch(keys).padded(torch.device("cpu"))
    assert found.shape == (4, 7, 6)
    assert found.dtype == torch.float32
    for row, key in enumerate(keys):
        alone = store.read(key)
        assert mask[row].tolist() == [True] * len(alone) + [False] * (7 - len(alone))
        assert torch.equal(found[row, : len(alone)], alone)
        assert not found[row, len(alone) :].any()
    found.zero_()
    assert torch.equal(store.read("0-0004"), store.read_batch(keys).values[:5].float())
    with pytest.raises(KeyError):
        store.read_batch(["0-0000", "z"])


def test_extreme_values_come_back_bit_by_bit(tmp_path: Path) -> None:
    store = opened(tmp_path)
    extreme = np.array([[0.0, -0.0, 1e-42, np.finfo(np.float32).max, np.inf, np.nan]], dtype=np.float32)
    store.write({"extreme": extreme})
    assert store.read("extreme").numpy().tobytes() == extreme.tobytes()


def test_missing_keys_are_distinct_and_in_their_order(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.missing([]) == []
    assert store.missing(["b", "a", "b"]) == ["b", "a"]
    store.write(features(3))
    assert store.missing(["z", "0-0001", "a", "z", "0-0002"]) == ["z", "a"]
    assert "z" not in store
    with pytest.raises(KeyError):
        store.read("z")


def test_stores_of_different_encoders_are_apart(tmp_path: Path) -> None:
    one = FeatureStore(root=tmp_path, name="tiny", fingerprint="abc", made_by={})
    one.write(features(3))
    assert len(FeatureStore(root=tmp_path, name="tiny", fingerprint="abd", made_by={})) == 0
    assert len(FeatureStore(root=tmp_path, name="other", fingerprint="abc", made_by={})) == 0
    assert len(FeatureStore(root=tmp_path, name="tiny", fingerprint="abc", made_by={})) == 3


def test_store_json_says_what_made_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    about = json.loads((store.folder / "store.json").read_text())
    assert about["encoder"] == "tiny"
    assert about["fingerprint"] == "abc"
    assert about["weights"] == "random"
    before = (store.folder / "store.json").read_bytes()
    FeatureStore(root=tmp_path, name="tiny", fingerprint="abc", made_by={"weights": "elsewhere"})
    assert (store.folder / "store.json").read_bytes() == before


def test_another_reader_sees_new_shards_after_a_refresh(tmp_path: Path) -> None:
    writer, reader = opened(tmp_path), opened(tmp_path)
    writer.write(features(3))
    assert len(reader) == 0
    reader.refresh()
    assert len(reader) == 3
    np.testing.assert_array_equal(reader.read("0-0002").numpy(), features(3)["0-0002"])


def test_another_process_writes_and_is_read(tmp_path: Path) -> None:
    reader = opened(tmp_path)
    code = (
        "import sys, pathlib, numpy; from fourm_ser.encoders.store import FeatureStore; "
        "store = FeatureStore(root=pathlib.Path(sys.argv[1]), name='tiny', fingerprint='abc', made_by={}); "
        "store.write({'there': numpy.arange(6, dtype=numpy.float32).reshape(2, 3)})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    assert reader.missing(["there"]) == ["there"]
    reader.refresh()
    assert reader.read("there").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_every_reader_takes_the_same_of_two_shards_with_a_key(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write({"key": np.zeros((1, 2), dtype=np.float32)})
    store.write({"key": np.ones((1, 2), dtype=np.float32)})
    first = {path: opened(tmp_path).read("key").tolist() for path in shards(store)}
    assert len(first) == 2
    assert len({str(value) for value in first.values()}) == 1
    assert len(opened(tmp_path)) == 1


def test_an_open_store_travels_to_workers(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write(features(3))
    store.read("0-0001")
    copy = pickle.loads(pickle.dumps(store))
    store.close()
    np.testing.assert_array_equal(copy.read("0-0001").numpy(), features(3)["0-0001"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05",
        bytes(64),
        b"this is no shard at all",
        b"\xff" * 64,
        (10).to_bytes(8, "little") + b"{not json}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"17",
        (14).to_bytes(8, "little") + b'{"key": [1,2]}',
        (16).to_bytes(8, "little") + b'{"key": {"a":1}}',
    ],
    ids=["empty", "cut", "zeros", "text", "ones", "no_json", "list", "number", "no_entry", "bare_entry"],
)
def test_a_shard_that_cannot_be_read_is_set_aside_and_its_keys_are_missing(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path)
    store.write(features(3))
    (shard,) = shards(store)
    shard.write_bytes(content)
    again = opened(tmp_path)
    assert len(again) == 0
    assert not shards(again)
    assert shard.with_name(f"damaged-{shard.name}").read_bytes() == content
    assert shard.name in caplog.text
    again.write(features(3))
    assert len(opened(tmp_path)) == 3


def test_a_shard_whose_end_is_missing_is_set_aside(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write(features(10))
    (shard,) = shards(store)
    shard.write_bytes(shard.read_bytes()[:-40])
    assert opened(tmp_path).missing(features(10)) == list(features(10))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.sampled_from([np.float32, np.float16]))
def test_a_flipped_bit_of_features_is_found_and_its_shard_set_aside(
    tmp_path: Path, place: float, bit: int, dtype: type
) -> None:
    root = tmp_path / uuid.uuid4().hex
    store = opened(root)
    written: dict[str, np.ndarray] = {key: array.astype(dtype) for key, array in features(5).items()}
    store.write(written)
    (shard,) = shards(store)
    content = bytearray(shard.read_bytes())
    size = sum(array.nbytes for array in written.values())
    content[len(content) - size + int(place * size)] ^= 1 << bit
    shard.write_bytes(content)
    reader = opened(root)
    with pytest.raises(InputError, match=r"damaged.*set aside.*encodes its utterances anew"):  # noqa: PT012
        for key in written:
            reader.read(key)
    again = opened(root)
    assert again.missing(written) == list(written)
    again.write(written)
    assert all(np.array_equal(again.read(key).numpy(), array.astype(np.float32)) for key, array in written.items())


def spoil(shard: Path) -> None:
    """Flip a bit of a shard's last utterance."""
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize("damage", ["a flipped bit", "cut", "gone", "a bad sector", "none"])
def test_what_is_damaged_is_missing_before_it_is_read(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path)
    one, two = features(4), features(4, seed=1)
    store.write(one)
    (shard,) = shards(store)
    store.write(two)
    reader = opened(tmp_path)
    if damage == "a flipped bit":
        spoil(shard)
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-4])
    elif damage == "gone":
        shard.unlink()
    elif damage == "a bad sector":
        own = os.open

        def fails(path: Path, *given: int) -> int:
            if path == shard:
                raise OSError(errno.EIO, "Input/output error")
            return own(path, *given)

        monkeypatch.setattr(os, "open", fails)
    reader.verify([*two, *one, "another"])
    assert reader.missing([*one, *two]) == ([] if damage == "none" else list(one))
    assert len(caplog.messages) == (damage != "none")
    assert all(str(shard) in line and "encoded anew" in line for line in caplog.messages)
    for key in two:
        np.testing.assert_array_equal(reader.read(key).numpy(), two[key])
    if damage != "none":
        assert shard not in shards(store)
        monkeypatch.undo()
        reader.write(one)
        reader.verify(one)
        assert not reader.missing(one)


def test_another_process_s_reader_forgets_what_was_set_aside(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write(features(4))
    other = opened(tmp_path)
    spoil(*shards(store))
    store.verify(features(4))
    other.refresh()
    assert other.missing(features(4)) == list(features(4))


def test_a_damaged_shard_in_a_folder_that_is_only_read_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path).write(features(4))
    store = opened(tmp_path)
    spoil(*shards(store))

    def refused(*given: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refused)
    store.verify(features(4))
    store.refresh()
    assert len(store) == 0
    assert "cannot be set aside (Read-only file system): delete it" in caplog.text


def test_shards_of_earlier_versions_without_checksums_are_read(tmp_path: Path) -> None:
    store = opened(tmp_path)
    save_file(features(3), store.folder / "shard-0.safetensors")
    found = opened(tmp_path)
    assert all(np.array_equal(found.read(key).numpy(), array) for key, array in features(3).items())


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"format": "x"}', "[" * 9_999])
def test_a_damaged_store_json_is_written_anew(tmp_path: Path, content: str) -> None:
    store = opened(tmp_path)
    store.write(features(3))
    about = store.folder / "store.json"
    before = about.read_text()
    about.write_text(content)
    assert len(opened(tmp_path)) == 3
    assert about.read_text() == before


def test_temporary_files_of_a_killed_writer_are_ignored(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write(features(3))
    (shard,) = shards(store)
    (store.folder / f".{shard.name}").write_bytes(shard.read_bytes()[:50])
    (store.folder / ".shard-0.123.safetensors").write_bytes(b"half")
    assert len(opened(tmp_path)) == 3


def test_a_writer_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    store.write(features(3))
    before = sorted(store.folder.iterdir())

    def half(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("fourm_ser.encoders.store.save_file", half)
    with pytest.raises(KeyboardInterrupt):
        store.write(features(3, seed=1))
    assert sorted(store.folder.iterdir()) == before
    assert len(opened(tmp_path)) == 3


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "safetensors"],
)
def test_a_disk_that_fills_up_is_named_and_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = opened(tmp_path)
    first, second = features(3), {"key": np.zeros((1000, 300), dtype=np.float32)}
    store.write(first)
    before = sorted(store.folder.iterdir())

    def half(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as full:
        full.setattr("fourm_ser.encoders.store.save_file", half)
        with pytest.raises(InputError, match=rf"{store.folder}/shard-.*: the disk is full.*Make room"):
            store.write(second)
    assert sorted(store.folder.iterdir()) == before
    for reader in (store, opened(tmp_path)):
        assert reader.missing([*first, *second]) == ["key"]
        for key, array in first.items():
            np.testing.assert_array_equal(reader.read(key).numpy(), array)
    store.write(second)
    assert not opened(tmp_path).missing([*first, *second])


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "not yours"), SafetensorError("something else")])
def test_another_error_of_a_write_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = opened(tmp_path)

    def fail(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
        raise error

    monkeypatch.setattr("fourm_ser.encoders.store.save_file", fail)
    with pytest.raises(type(error)):
        store.write(features(3))


@pytest.mark.parametrize("about", [{"format": 2}, {"format": 0}])
def test_another_format_is_refused(tmp_path: Path, about: dict[str, int]) -> None:
    store = opened(tmp_path)
    (store.folder / "store.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"store\.json.*format"):
        opened(tmp_path)


ROLLUP = Path("/proc/self/smaps_rollup")
needs_rollup = pytest.mark.skipif(not ROLLUP.exists(), reason="Linux tells what memory a process has")


def held(kind: str) -> int:
    """Bytes of memory of a kind that this process has; counted page by page, as statm and status are not."""
    return int(ROLLUP.read_text().split(f"\n{kind}:")[1].split()[0]) * 1024


@needs_rollup
def test_reading_does_not_hold_the_store_in_memory(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for shard in range(4):
        rng = np.random.default_rng(shard)
        store.write({f"{shard}-{number}": rng.random((256, 64), dtype=np.float32) for number in range(256)})
    assert sum(path.stat().st_size for path in shards(store)) > 60e6
    reader = opened(tmp_path)
    total = reader.read("0-0").sum()
    before = held("Rss")
    for shard in range(4):
        for number in range(256):
            total += reader.read(f"{shard}-{number}").sum()
    assert total > 0
    assert held("Rss") - before < 20e6


@needs_rollup
def test_reading_at_random_does_not_hold_what_was_read(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 768)).astype(np.float16)
    store = opened(tmp_path)
    keys = [f"{number:04d}" for number in range(1_000)]
    for start in range(0, len(keys), 250):
        store.write(dict.fromkeys(keys[start : start + 250], rows))
    store = opened(tmp_path)
    order = np.random.default_rng(1).permutation(keys).tolist()
    for key in order[:50]:
        store.read(key)
    before = held("Anonymous")
    for key in order:
        store.read(key)
    size = sum(shard.stat().st_size for shard in shards(store))
    assert size > 60e6
    assert held("Anonymous") - before < size / 4


def test_without_vectored_reads_the_features_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    store.write(features(4))
    before = store.read_batch(["0-0002", "0-0000"])
    monkeypatch.delattr("os.preadv")
    after = store.read_batch(["0-0002", "0-0000"])
    assert torch.equal(before.values, after.values)
    assert before.longest == after.longest
