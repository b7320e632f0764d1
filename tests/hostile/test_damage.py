"""Each file of a run, a model and a store, damaged in each way: it is named in one line, or nothing changes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fourm_ser.errors import InputError
from tests.hostile.conftest import Stranger, do

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "its end lost": lambda content: content[:-3],
    "garbage": lambda content: bytes(range(256)) * 4,
    "zeros": lambda content: bytes(len(content)),
    "another type": lambda content: b"[1]",
    "a bit flipped": lambda content: flipped(content, len(content) // 2),
    "a bit flipped near its end": lambda content: flipped(content, len(content) - 2),
}
FILES = (
    "config.yaml",
    "corpus.csv",
    "metrics.json",
    "model/config.yaml",
    "model/labels.json",
    "model/model.safetensors",
    "model/text/tokenizer.json",
    "stages/1-finetune/checkpoints/best.ckpt",
    "store",
)
COMPUTED = ("/ua", "/wa", "/loss", "/ece", "/f1_macro", "/recall/anger")


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


# A record is a text that people may change: a letter in it that is another may be meant.
CASES = [(file, damage) for file in FILES for damage in DAMAGES if (file, damage[:5]) != ("config.yaml", "a bit")]


@pytest.mark.parametrize(("file", "damage"), CASES)
def test_what_is_damaged_is_named_or_changes_nothing(
    stranger: Stranger, tmp_path: Path, cache: Path, two_stage_run: Path, file: str, damage: str
) -> None:
    given = [f"cache={cache}"]
    if file == "store":
        shutil.copytree(cache, tmp_path / "cache")
        given = [f"cache={tmp_path / 'cache'}"]
        paths = sorted((tmp_path / "cache" / "embeddings").glob("*/shard-*"))
    else:
        paths = [stranger.run / file] if (stranger.run / file).is_file() else sorted(stranger.run.glob(file))
    assert paths
    for path in paths:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    recorded = json.loads((two_stage_run / "metrics.json").read_text())
    found: dict[str, Any] = {}
    for _ in range(2 if file == "store" else 1):
        try:
            found = do("evaluate", stranger, tmp_path, *given)
        except (InputError, OSError) as error:
            said = str(error)
            assert len(said.splitlines()) == 1
            assert len(said) < 2_000
            assert str(tmp_path) in said
    if found:
        assert {f"test{name}": found[f"test{name}"] for name in COMPUTED} == {
            f"test{name}": recorded[f"test{name}"] for name in COMPUTED
        }
    else:
        assert file != "store"  # it is healed
