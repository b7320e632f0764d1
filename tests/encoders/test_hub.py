"""Where weights and tokenizers come from, and what is refused."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from fourm_ser.encoders import checkpoints
from fourm_ser.encoders import hub as weights
from fourm_ser.encoders.base import Encoder, Resources
from fourm_ser.encoders.hub import train_wordpiece
from fourm_ser.encoders.speech import SpeechEncoder
from fourm_ser.encoders.text import TextEncoder
from fourm_ser.errors import InputError

BuildText = Callable[..., TextEncoder]
BuildSpeech = Callable[..., SpeechEncoder]


def saved(encoder: TextEncoder | SpeechEncoder, folder: Path) -> str:
    """The encoder's model, and tokenizer if it has one, as a checkpoint in `folder`."""
    encoder.stem.model.save_pretrained(folder)
    if isinstance(encoder, TextEncoder):
        encoder.frontend.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return str(folder)


def features(encoder: Encoder, raw: Any) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval()(encoder.collate([encoder.frontend(raw)])).features


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine without a network and without a cached checkpoint; returns what was asked of the hub."""
    asked: list[str] = []

    def refuse(repo: str, revision: str) -> NoReturn:
        asked.append(repo)
        raise OSError("no route to host")

    monkeypatch.setattr(checkpoints, "look_up", refuse)
    monkeypatch.setattr(checkpoints, "at_hand", lambda repo, revision: None)
    return asked


@pytest.mark.parametrize("how", ["path", "checkpoint"])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_a_saved_text_checkpoint_is_the_saved_model(
    text_encoder: BuildText, tmp_path: Path, no_hub: list[str], model_type: str, how: str
) -> None:
    encoder = text_encoder(model_type, init_seed=3)
    before = features(encoder, "calm door fire")
    folder = saved(encoder, tmp_path / "weights")
    where = {"weights": folder} if how == "path" else {"weights": "pretrained", "checkpoint": folder}
    found = text_encoder(model_type, init_seed=0, tokenizer=folder, architecture={"hidden_size": 64}, **where)
    assert torch.equal(features(found, "calm door fire"), before)
    assert (found.dim, found.weights) == (32, where["weights"])
    assert not no_hub


@pytest.mark.parametrize("how", ["path", "checkpoint"])
@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_saved_speech_checkpoint_is_the_saved_model(
    speech_encoder: BuildSpeech,
    tmp_path: Path,
    no_hub: list[str],
    waveforms: list[np.ndarray],
    model_type: str,
    norm: str,
    how: str,
) -> None:
    encoder = speech_encoder(model_type, norm, init_seed=3)
    folder = saved(encoder, tmp_path / "weights")
    where = {"weights": folder} if how == "path" else {"weights": "pretrained", "checkpoint": folder}
    found = speech_encoder(model_type, norm, init_seed=0, architecture={"hidden_size": 64}, **where)
    assert torch.equal(features(found, waveforms[2]), features(encoder, waveforms[2]))
    assert found.fingerprint() == encoder.fingerprint()
    assert not no_hub


def test_weights_in_half_precision_are_read_as_float32(speech_encoder: BuildSpeech, tmp_path: Path) -> None:
    encoder = speech_encoder()
    encoder.stem.model.half()
    found = speech_encoder(weights=saved(encoder, tmp_path / "weights"))
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}


def test_a_checkpoint_brings_its_own_tokenizer(text_encoder: BuildText, tmp_path: Path) -> None:
    other = Resources(tmp_path / "cache", ["quite other words than elsewhere"])
    encoder = text_encoder(resources=other)
    folder = saved(encoder, tmp_path / "weights")
    found = text_encoder(checkpoint="bert-base-uncased", tokenizer="bert-base-uncased", weights=folder)
    for text in ("quite other words", "calm", ""):
        assert torch.equal(found.frontend(text)["ids"], encoder.frontend(text)["ids"])


def test_the_fingerprint_of_a_checkpoint_without_a_mask_vector_is_always_the_same(
    speech_encoder: BuildSpeech, tmp_path: Path
) -> None:
    folder = saved(speech_encoder(spec_augment=0.0), tmp_path / "weights")
    fingerprints = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        fingerprints.add(speech_encoder(weights=folder, spec_augment=0.05).fingerprint())
    assert len(fingerprints) == 1


def test_pretrained_without_a_checkpoint_is_refused(text_encoder: BuildText, speech_encoder: BuildSpeech) -> None:
    with pytest.raises(InputError, match=r"encoder\.text\.weights=pretrained.*encoder\.weights=random"):
        text_encoder(weights="pretrained")
    with pytest.raises(InputError, match=r"encoder\.audio\.weights=pretrained.*encoder\.weights=random"):
        speech_encoder(weights="pretrained")


def test_a_folder_that_does_not_exist_is_refused(
    text_encoder: BuildText, speech_encoder: BuildSpeech, tmp_path: Path, no_hub: list[str]
) -> None:
    for source in (str(tmp_path / "nowhere"), "./nowhere", "~/no/such/folder"):
        for build in (text_encoder, speech_encoder):
            with pytest.raises(InputError, match=f"{source}: no such folder"):
                build(weights=source)
            with pytest.raises(InputError, match=f"{source}: no such folder"):
                build(weights="pretrained", checkpoint=source)
    assert not no_hub


def test_an_empty_folder_is_refused(text_encoder: BuildText, speech_encoder: BuildSpeech, tmp_path: Path) -> None:
    for build in (text_encoder, speech_encoder):
        with pytest.raises(InputError, match=str(tmp_path)):
            build(weights=str(tmp_path))


def test_a_checkpoint_without_its_weights_is_refused(speech_encoder: BuildSpeech, tmp_path: Path) -> None:
    folder = saved(speech_encoder(), tmp_path / "weights")
    (tmp_path / "weights" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=folder):
        speech_encoder(weights=folder)


def test_a_damaged_checkpoint_is_refused(speech_encoder: BuildSpeech, tmp_path: Path) -> None:
    folder = saved(speech_encoder(), tmp_path / "weights")
    file = tmp_path / "weights" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1_000])
    with pytest.raises(InputError, match=folder):
        speech_encoder(weights=folder)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"intermediate_size": 96}])
def test_weights_that_are_missing_or_of_another_shape_are_refused(
    speech_encoder: BuildSpeech, text_encoder: BuildText, tmp_path: Path, change: dict[str, int]
) -> None:
    for name, encoder, build in (
        ("speech", speech_encoder(), speech_encoder),
        ("text", text_encoder(), text_encoder),
    ):
        folder = saved(encoder, tmp_path / name)
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
        with pytest.raises(InputError, match=rf"{folder}: \d+ weights of .* missing or of another shape"):
            build(weights=folder)


@pytest.mark.parametrize("value", ["abc", None, [1], -1])
def test_fields_that_no_model_can_be_made_of_are_refused_in_one_line(
    speech_encoder: BuildSpeech, text_encoder: BuildText, tmp_path: Path, value: Any
) -> None:
    for name, encoder, build in (("speech", speech_encoder(), speech_encoder), ("text", text_encoder(), text_encoder)):
        folder = saved(encoder, tmp_path / name)
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": value}))
        with pytest.raises(InputError, match=folder) as caught:
            build(weights=folder)
        assert len(str(caught.value).splitlines()) == 1


def test_weights_of_another_architecture_are_refused(
    speech_encoder: BuildSpeech, text_encoder: BuildText, tmp_path: Path
) -> None:
    folder = saved(text_encoder("bert"), tmp_path / "weights")
    config = tmp_path / "weights" / "config.json"
    config.write_text(speech_encoder().stem.model.config.to_json_string())
    with pytest.raises(InputError, match=f"{folder}.*another architecture"):
        speech_encoder(weights=folder)


def test_a_checkpoint_of_the_other_modality_is_refused(
    speech_encoder: BuildSpeech, text_encoder: BuildText, tmp_path: Path
) -> None:
    text, speech = saved(text_encoder(), tmp_path / "text"), saved(speech_encoder(), tmp_path / "speech")
    with pytest.raises(InputError, match=text):
        speech_encoder(weights=text)
    with pytest.raises(InputError, match=speech):
        text_encoder(weights=speech)


def test_a_checkpoint_without_a_tokenizer_is_refused(text_encoder: BuildText, tmp_path: Path) -> None:
    text_encoder().stem.model.save_pretrained(tmp_path / "weights")
    with pytest.raises(InputError, match=r"weights.*tokenizer"):
        text_encoder(checkpoint="bert-base-uncased", tokenizer="bert-base-uncased", weights=str(tmp_path / "weights"))


@pytest.mark.parametrize(
    ("model_type", "files", "message"),
    [
        ("ctrl", {"vocab.json": '{"a": 0}', "merges.txt": "#version"}, "its tokenizer CTRLTokenizer is written in"),
        ("deberta-v2", {"spm.model": "pieces"}, r"its tokenizer is spm\.model alone.*pip install .*sentencepiece"),
        (
            "bert",
            {
                "vocab.txt": "[UNK]",
                "tokenizer_config.json": '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}',
            },
            r"its tokenizer_config\.json asks for code of its own",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(
    text_encoder: BuildText,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    files: dict[str, str],
    message: str,
) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    for name, content in {"config.json": json.dumps({"model_type": model_type}), **files}.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"^{tmp_path}: {message}"):
        text_encoder(tokenizer=str(tmp_path))


def test_a_tokenizer_that_knows_more_tokens_than_the_model_is_refused(text_encoder: BuildText, tmp_path: Path) -> None:
    # Its last ids would have no embedding, and a run would end at the first utterance that holds one.
    with pytest.raises(InputError, match=r"vocab|tokens"):
        text_encoder(architecture={"vocab_size": 20})
    folder = saved(text_encoder(), tmp_path / "weights")
    with pytest.raises(InputError, match=r"vocab|tokens"):
        text_encoder(weights=folder, vocabulary=400, resources=_many_words(tmp_path))


def _many_words(tmp_path: Path) -> Resources:
    rng = np.random.default_rng(0)
    alphabet = list("abcdefghijklmnopqrstuvwxyz")
    return Resources(tmp_path / "cache", ["".join(rng.choice(alphabet, 6)) for _ in range(300)])


def test_a_hub_id_without_a_network_names_both_ways_on(
    text_encoder: BuildText, speech_encoder: BuildSpeech, no_hub: list[str]
) -> None:
    with pytest.raises(InputError) as text:
        text_encoder(weights="pretrained", checkpoint="somebody/a-bert", tokenizer="somebody/a-bert")
    with pytest.raises(InputError) as audio:
        speech_encoder(weights="pretrained", checkpoint="somebody/a-wav2vec")
    for modality, name, error in (("text", "somebody/a-bert", text), ("audio", "somebody/a-wav2vec", audio)):
        message = str(error.value)
        assert name in message
        assert "no route to host" in message
        assert f"encoder.{modality}.checkpoint=PATH" in message
        assert "encoder.weights=random" in message
        assert "\n" not in message
    assert no_hub == ["somebody/a-bert", "somebody/a-wav2vec"]


def test_random_weights_do_not_ask_the_hub(
    text_encoder: BuildText, resources: Resources, no_hub: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fourm_ser.encoders.hub"):
        encoder = text_encoder(tokenizer="bert-base-uncased", weights="random")
    assert not no_hub
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "bert-base-uncased" in warnings[0]
    assert "WordPiece" in warnings[0]
    own = train_wordpiece(resources, 120)
    assert encoder.frontend("calm door")["ids"].tolist() == own("calm door")["input_ids"]


def test_random_weights_use_a_tokenizer_that_is_at_hand(
    text_encoder: BuildText,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = text_encoder(resources=Resources(tmp_path / "cache", ["quite other words than elsewhere"]))
    folder = saved(encoder, tmp_path / "weights")
    monkeypatch.setattr(weights, "cached_folder", lambda checkpoint, patterns: Path(folder))
    with caplog.at_level(logging.WARNING, "fourm_ser.encoders.hub"):
        found = text_encoder(tokenizer="bert-base-uncased", weights="random")
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    assert found.frontend("quite other")["ids"].tolist() == encoder.frontend("quite other")["ids"].tolist()


def definition(cache: Path) -> str:
    """The one trained tokenizer in a cache."""
    (path,) = (cache / "tokenizers").glob("wordpiece-*.json")
    return path.name + path.read_text(encoding="utf-8")


def test_a_trained_tokenizer_is_a_function_of_the_set_of_texts(tmp_path: Path) -> None:
    texts = list(_many_words(tmp_path).texts)
    found = set()
    for number, given in enumerate((texts, texts, texts[::-1], [*texts, *texts[:7]], texts)):
        train_wordpiece(Resources(tmp_path / str(number), given), 200)
        found.add(definition(tmp_path / str(number)))
    assert len(found) == 1


@pytest.mark.slow
def test_a_fresh_process_trains_the_same_tokenizer(tmp_path: Path) -> None:
    texts = list(_many_words(tmp_path).texts)
    train_wordpiece(Resources(tmp_path / "here", texts), 200)
    code = (
        "import json, pathlib, sys; from fourm_ser.encoders.base import Resources; "
        "from fourm_ser.encoders.hub import train_wordpiece; "
        "train_wordpiece(Resources(pathlib.Path(sys.argv[1]), json.load(sys.stdin)), 200)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "there")]
    subprocess.run(command, input=json.dumps(texts), text=True, check=True, env=environment)
    assert definition(tmp_path / "there") == definition(tmp_path / "here")


def test_a_trained_tokenizer_is_trained_once(tmp_path: Path, texts: list[str]) -> None:
    resources = Resources(tmp_path, texts)
    train_wordpiece(resources, 60)
    (path,) = (tmp_path / "tokenizers").glob("wordpiece-*.json")
    before = path.stat()
    again = train_wordpiece(resources, 60)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert len(again) <= 60
    assert again("CALM door")["input_ids"] == again("calm door")["input_ids"]
    ids = again("calm door")["input_ids"]
    assert (ids[0], ids[-1]) == (again.cls_token_id, again.sep_token_id)
    assert again.unk_token_id not in ids
    assert again.unk_token_id in again("漢")["input_ids"]
    train_wordpiece(resources, 50)
    train_wordpiece(Resources(tmp_path, [*texts, "more"]), 60)
    assert len(list((tmp_path / "tokenizers").glob("wordpiece-*.json"))) == 3


@pytest.mark.parametrize("texts", [[], ["", "  ", "\n"]])
def test_a_corpus_without_transcripts_is_refused(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(InputError, match=r"no transcripts.*audio_only"):
        train_wordpiece(Resources(tmp_path, texts), 60)


@pytest.mark.parametrize("stated", [True, False])
def test_waveforms_are_scaled_as_in_training_or_as_is_said(
    speech_encoder: BuildSpeech, tmp_path: Path, caplog: pytest.LogCaptureFixture, stated: bool
) -> None:
    folder = saved(speech_encoder(), tmp_path / "weights")
    (tmp_path / "weights" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": stated}))
    for source in ({"weights": folder}, {"weights": "pretrained", "checkpoint": folder}):
        for normalize in ("checkpoint", stated):
            encoder = speech_encoder(**source, normalize=normalize)
            assert encoder.frontend.describe()["normalize"] is stated
            assert encoder.save(tmp_path)["normalize"] is stated
        assert "do_normalize" not in caplog.text
        other = speech_encoder(**source, normalize=not stated)
        assert other.frontend.describe()["normalize"] is not stated
        assert other.save(tmp_path)["normalize"] is not stated
        told = [str(value).lower() for value in (stated, not stated)]
        assert f"do_normalize={told[0]} and is used with encoder.audio.normalize={told[1]}" in caplog.text
        caplog.clear()


def test_nothing_else_says_whether_waveforms_are_scaled(speech_encoder: BuildSpeech) -> None:
    assert speech_encoder(normalize="checkpoint").frontend.describe()["normalize"] is True
    for value in ("yes", None, 1):
        with pytest.raises(
            InputError, match=rf"^encoder\.audio\.normalize={value}: expected checkpoint, true or false"
        ):
            speech_encoder(normalize=value)


def test_a_checkpoint_that_says_nothing_of_scaling_takes_either(speech_encoder: BuildSpeech, tmp_path: Path) -> None:
    folder = saved(speech_encoder(), tmp_path / "weights")
    preprocessor = tmp_path / "weights" / "preprocessor_config.json"
    preprocessor.write_text(json.dumps({"sampling_rate": 16_000}))
    for normalize in (True, False):
        assert speech_encoder(weights=folder, normalize=normalize).frontend.describe()["normalize"] == normalize
    preprocessor.unlink()
    assert speech_encoder(weights=folder, normalize=False).frontend.describe()["normalize"] is False
    assert speech_encoder(weights=folder, normalize="checkpoint").frontend.describe()["normalize"] is True
