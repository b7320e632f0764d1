"""Checkpoints of the hub from end to end: the first time, again, without a network, at a revision."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download
from omegaconf import OmegaConf

from fourm_ser.encoders.checkpoints import checkpoint_folder, fetch_weights, pin
from fourm_ser.errors import InputError
from tests.conftest import Compose
from tests.hub.conftest import KINDS
from tests.hub.server import Hub

Saved = Callable[[str], Path]
Put = Callable[..., str]

FIRST, SECOND = b"first", b"second, and longer"


@pytest.mark.slow(but=["speech", "whisper"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_the_hub_is_the_saved_one_now_again_and_without_a_network(
    kind: str, hub: Hub, saved: Saved, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = KINDS[kind].use
    expected = use(composed, str(saved(kind)))
    commit = hub.commit("lab/model", saved(kind))
    assert use(composed, "lab/model") == expected
    assert "model.safetensors" in hub.asked("GET")
    hub.requests.clear()
    assert use(composed, "lab/model") == expected
    assert not hub.asked()  # it was asked what `main` is, and no file
    hub.requests.clear()
    assert use(composed, f"lab/model@{commit}") == expected
    assert not hub.requests
    hub.close()
    assert use(composed, "lab/model") == expected
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert use(composed, f"lab/model@{commit}") == expected


def test_a_revision_is_a_branch_a_tag_or_a_commit(repository: Put, hub: Hub) -> None:
    first = repository({"model.safetensors": FIRST}, "main", "v1.0")
    second = repository({"model.safetensors": SECOND}, "main", "next/try")
    for revision, content, commit in (
        ("", SECOND, second),
        ("@main", SECOND, second),
        ("@next/try", SECOND, second),
        ("@v1.0", FIRST, first),
        (f"@{first}", FIRST, first),
    ):
        folder = fetch_weights(f"lab/files{revision}", (), "asr")
        assert (folder / "model.safetensors").read_bytes() == content
        assert folder.name == commit
    assert hub.asked("GET").count("model.safetensors") == 2


def test_what_serves_a_run_is_pinned_and_nothing_else(
    repository: Put, hub: Hub, composed: Compose, tmp_path: Path
) -> None:
    first = repository({}, "main", "v1")
    second = repository({"vocab.txt": b"word"})

    config = composed("encoder=bert_hubert", "encoder.weights=pretrained", "fusion=text_only")
    OmegaConf.resolve(config.encoder)

    def pinned(checkpoint: str, tokenizer: str, weights: str = "pretrained") -> tuple[str, str, str]:
        node = config.encoder.text
        node.checkpoint, node.tokenizer, node.weights = checkpoint, tokenizer, weights
        pin(config)
        return node.checkpoint, node.tokenizer, node.weights

    now, other = f"lab/files@{second}", f"lab/files@{first}"
    name = "lab/files"
    assert pinned(name, name) == (now, now, "pretrained")  # of HuBERT, which no fusion reads, nothing is asked
    assert pinned(name, "lab/files@v1") == (now, other, "pretrained")
    assert pinned(name, name, "lab/files@v1") == (name, name, other)  # and brings its own tokenizer
    hub.requests.clear()
    for kept in ((other, other, "pretrained"), (name, name, str(tmp_path)), (name, name, "random")):
        assert pinned(*kept) == kept
    assert not hub.requests


def test_a_folder_whose_name_holds_an_at_sign_is_a_folder(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "model@main"
    folder.mkdir()
    assert checkpoint_folder(str(folder), (), "asr") == folder
    with pytest.raises(InputError, match="no such folder"):
        checkpoint_folder(f"{folder}@v1.0", (), "asr")
    assert not hub.requests


def test_only_what_is_needed_is_fetched(repository: Put, hub: Hub) -> None:
    files = dict.fromkeys(
        (
            *("model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.fp16.safetensors"),
            *("tokenizer.json", "vocab.txt", "README.md", "modeling_own.py"),
            *("onnx/model.onnx", "onnx/config.json", "openvino/model.bin", "1_Pooling/config.json"),
        ),
        b"content",
    )
    repository(files)
    checkpoint_folder("lab/files", ("vocab*",), "asr")
    assert hub.asked("GET") == ["config.json", "vocab.txt"]
    hub.requests.clear()
    fetch_weights("lab/files", ("tokenizer*",), "asr")
    assert sorted(set(hub.asked())) == ["model.safetensors", "tokenizer.json"]


def test_shards_come_with_their_index(hub: Hub, saved: Saved, composed: Compose, tmp_path: Path) -> None:
    from transformers import AutoModel

    for source in saved("text").iterdir():
        if source.suffix != ".safetensors":
            (tmp_path / "shards").mkdir(exist_ok=True)
            shutil.copy(source, tmp_path / "shards")
    AutoModel.from_pretrained(saved("text")).save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    hub.commit("lab/shards", tmp_path / "shards")
    use = KINDS["text"].use
    assert use(composed, "lab/shards") == use(composed, str(saved("text")))

    next((tmp_path / "shards").glob("model-00002-*")).unlink()
    hub.commit("lab/lost", tmp_path / "shards")
    with pytest.raises(InputError, match=r"lab/lost.*model-00002-of") as caught:
        use(composed, "lab/lost")
    assert "\n" not in str(caught.value)


def test_what_other_programs_fetched_serves_without_a_network(
    repository: Put, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository({"model.safetensors": FIRST, "tokenizer.json": b"{}"})
    snapshot_download("lab/files")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = fetch_weights("lab/files", ("tokenizer*",), "asr")
    assert folder.name == commit
    assert (folder / "model.safetensors").read_bytes() == FIRST


def test_the_library_finds_what_was_fetched_here(repository: Put, hub: Hub) -> None:
    repository({"model.safetensors": FIRST})
    fetch_weights("lab/files", (), "asr")
    hub.requests.clear()
    folder = Path(snapshot_download("lab/files"))
    assert (folder / "model.safetensors").read_bytes() == FIRST
    assert not hub.asked()
