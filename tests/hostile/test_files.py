"""What a stranger's files may hold: values within limits, and nothing that is looked up, unpickled or led out."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from fourm_ser.plain import DEEPEST, LARGEST, MOST, read_config, read_yaml
from tests.hostile.conftest import SECRET, Payload, Refusal, Stranger, do

Change = Callable[[Stranger], Any]
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
YAML = {
    "a bomb of aliases": (BOMB, "alias"),
    "nested deep": ("a: " + "[" * 100_000 + "]" * 100_000, "within each other"),
    "nested a little too deep": ("a: " + "[" * DEEPEST + "]" * DEEPEST, "within each other"),
    "many values": ("a: [" + "1," * MOST + "1]", "values"),
    "large": ("a: " + "x" * LARGEST, "bytes"),
    "code": ("a: !!python/object/apply:os.mkdir [RAN]", "tag"),
    "a path": ("a: !!python/object/apply:pathlib.PosixPath [RAN]", "tag"),
    "bytes": ("a: !!binary aGVsbG8=", "tag"),
    "a key twice": ("a: 1\nb: 2\na: 3", "twice"),
    "no keys": ("- a\n- b", "expected keys and values"),
    "a text": ("so", "expected keys and values"),
    "no YAML": ("a: [", "no YAML"),
    "no text": ("\x00\x01\x02", "no YAML"),
    "a variable": ("a: {b: [1, '${oc.env:SECRET}']}", r"a.b[1] is ${oc.env:SECRET}"),
    "a variable in parts": ("a: '${fo${folder}lder}${oc.env:SECRET}'", "read elsewhere"),
    "a file": ("a: ${oc.create:${oc.env:SECRET}}", "read elsewhere"),
    "no reference": ("a: ${", "read elsewhere"),
    "nothing": ("a: ???", "a is nothing"),
    "an empty key": ("null: 1", "damaged"),
    "nothing at all": ("", "damaged"),
}


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("command", ["predict", "resume"])
def test_yaml_is_plain_values_within_limits(stranger: Stranger, refusal: Refusal, kind: str, command: str) -> None:
    file = (stranger.model if command == "predict" else stranger.run) / "config.yaml"
    text, expected = YAML[kind]
    file.write_text(text.replace("RAN", str(stranger.ran)))
    said = refusal(command)
    assert said.startswith(str(file)) or (not text and str(stranger.run) in said)
    assert (expected in said) or not text
    assert len(said) < 1_000


@pytest.mark.slow(but=["config.yaml-a bomb", "config.yaml-many values", "config.yaml-code", "multirun.yaml-code"])
@pytest.mark.parametrize("kind", ["a bomb of aliases", "nested deep", "many values", "large", "code", "a key twice"])
@pytest.mark.parametrize("file", ["config.yaml", "multirun.yaml", ".hydra/hydra.yaml"])
def test_a_report_reads_a_stranger_s_yaml_within_limits(
    stranger: Stranger, tmp_path: Path, cache: Path, kind: str, file: str
) -> None:
    shutil.copytree(stranger.run, stranger.run / "sound", ignore=shutil.ignore_patterns("sound"))
    (stranger.run / "damaged" / ".hydra").mkdir(parents=True)
    shutil.copy(stranger.run / "metrics.json", stranger.run / "damaged")
    for name in ("config.yaml", "metrics.json"):
        (stranger.run / name).unlink()
    (stranger.run / "damaged" / "config.yaml").write_text("data: {name: x}")
    where = stranger.run if file == "multirun.yaml" else stranger.run / "damaged"
    (where / file).write_text(YAML[kind][0].replace("RAN", str(stranger.ran)))
    lines = do("report", stranger, tmp_path)
    assert lines[0].startswith(("1 of 2", "2 of 2"))
    assert not stranger.ran.exists()
    assert all(len(line) < 1_000 for line in lines)


def test_a_sweep_of_a_billion_jobs_is_not_listed(stranger: Stranger, tmp_path: Path) -> None:
    from fourm_ser.runs.collect import MOST, planned

    file = stranger.run / "multirun.yaml"
    words = ["seed=range(1,1000000000)", "data.fold=range(1,1000000000)"]
    sweeper = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": None}
    file.write_text(json.dumps({"hydra": {"overrides": {"task": words}, "sweeper": sweeper}}))
    assert len(planned(file)) == MOST


@pytest.mark.slow(but=["predict-"])
@pytest.mark.parametrize(
    "names",
    [
        ["anger", "${oc.env:SECRET}", "sadness", "neutral"],
        ["anger", "anger", "sadness", "neutral"],
        ["anger", "so\n| x", "sadness", "neutral"],
        ["anger", "../../so", "sadness", "neutral"],
        ["anger", "\x1b[2J", "sadness", "neutral"],
        ["anger", "", "sadness", "neutral"],
        ["anger", 3, "sadness", "neutral"],
        ["anger", ["happiness"], "sadness", "neutral"],
        ["anger", "happiness"],
        ["anger"],
        {"anger": 0},
        "anger",
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["predict", "evaluate", "analyze"])
def test_labels_are_names(stranger: Stranger, refusal: Refusal, names: Any, command: str) -> None:
    (stranger.model / "labels.json").write_text(json.dumps(names))
    assert str(stranger.model) in refusal(command)


def unpickles(ran: Path) -> bytes:
    return pickle.dumps(Payload(ran))


def checkpoints(it: Stranger) -> None:
    for file in it.run.glob("stages/*/checkpoints/best.ckpt"):
        torch.save({"state_dict": Payload(it.ran), "callbacks": {}}, file)


def leads_out(it: Stranger) -> None:
    record = it.run / "config.yaml"
    it.change(record, "stage", {"../../../out": read_yaml(record)["stage"]["transfer"]})
    (it.run / "metrics.json").unlink()


FILES: dict[str, tuple[tuple[str, ...], Change]] = {
    "weights that unpickle": (
        ("predict", "evaluate", "analyze"),
        lambda it: (it.model / "model.safetensors").write_bytes(unpickles(it.ran)),
    ),
    "a checkpoint that unpickles": (("evaluate",), checkpoints),
    "labels nested deep": (
        ("predict",),
        lambda it: (it.model / "labels.json").write_text("[" * 100_000 + "]" * 100_000),
    ),
    "a name of an encoder that leads out": (
        ("predict", "evaluate", "analyze"),
        lambda it: it.change(it.model / "config.yaml", "encoder.audio.name", "../../../out"),
    ),
    "a name of a stage that leads out": (("resume",), leads_out),
    "keys of the model that are not there": (
        ("predict",),
        lambda it: (it.model / "config.yaml").write_text("use: {}\nencoder: {}"),
    ),
    "numbers where nodes are expected": (
        ("predict", "resume"),
        lambda it: [
            (folder / "config.yaml").write_text("use: 1\nencoder: 2\nfusion: 3\nhead: 4\nstage: 5\ndata: 6\ntrainer: 7")
            for folder in (it.run, it.model)
        ],
    ),
}


@pytest.mark.parametrize(("kind", "command"), [(kind, command) for kind in FILES for command in FILES[kind][0]])
def test_files_are_read_as_what_they_are(stranger: Stranger, refusal: Refusal, kind: str, command: str) -> None:
    FILES[kind][1](stranger)
    assert str(stranger.run) in refusal(command) or "out" in kind


def test_a_pipe_is_no_config(stranger: Stranger, refusal: Refusal) -> None:
    file = stranger.model / "config.yaml"
    file.unlink()
    os.mkfifo(file)
    assert refusal("predict")


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_tokenizer_s_own_code_is_not_run(
    stranger: Stranger, refusal: Refusal, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = {path.parent for path in stranger.model.rglob("tokenizer.json")}
    asked: list[str] = []

    def answer(question: str = "") -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    mapped = {"AutoTokenizer": ["stranger_code.Head", "stranger_code.Head"], "AutoConfig": "stranger_code.Head"}
    shutil.copy(stranger.home / "stranger_code.py", folder)
    before = json.loads((folder / file).read_text()) if (folder / file).is_file() else {"model_type": "unheard"}
    before.pop("tokenizer_class", None)
    (folder / file).write_text(json.dumps({**before, "auto_map": mapped, "tokenizer_class": "Head"}))
    said = refusal("predict")
    assert not asked
    assert "of its own" in said or "none.wav" in said


def test_attention_that_is_fetched_and_run_is_refused(stranger: Stranger, refusal: Refusal) -> None:
    stranger.change(stranger.model / "config.yaml", "encoder.text.architecture.attn_implementation", "evil/kernel")
    assert "evil/kernel" in refusal("predict")


def test_a_folder_s_name_is_no_reference(tmp_path: Path) -> None:
    folder = tmp_path / "${oc.env:HOME}"
    folder.mkdir()
    (folder / "config.yaml").write_text("a: {b: '${folder}/text', c: 1e-4, d: 2026-01-31, e: .5, f: '1e5'}")
    found = read_config(folder / "config.yaml", folder)
    assert OmegaConf.to_container(found.a, resolve=True) == {
        "b": f"{folder.resolve()}/text",
        "c": 1e-4,
        "d": "2026-01-31",
        "e": 0.5,
        "f": "1e5",
    }
    assert SECRET not in str(found)
