"""Models on the hub: what is pushed is what is loaded, its card says what the run found, and what fails is one line."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import HfApi, ModelCard, constants
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fourm_ser.config import settle
from fourm_ser.errors import InputError
from fourm_ser.models.directory import model_files
from fourm_ser.models.shared import fetch_model, is_hub_id
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.push import run as push_command
from fourm_ser.runs import evaluation
from fourm_ser.runs.directory import RunDirectory, find_model
from fourm_ser.sharing.card import without_places
from fourm_ser.sharing.publish import Pushed, push
from tests.conftest import CONF, Compose
from tests.hub.server import Hub
from tests.prediction.predictors import EMOTIONS, TINY, model, noise

TEXT = "every green ball"
WAY: dict[str, Any] = {"private": True, "licence": None, "message": None, "card": True, "resamples": 50, "seed": 0}
Finished = Callable[..., Path]
Push = Callable[..., Pushed]


def finish(folder: Path, model_from: Path, composed: Compose, *overrides: str, **metrics: Any) -> Path:
    """A finished run with a model that is there already, of results that are drawn."""
    run = RunDirectory(folder)
    folder.mkdir(parents=True)
    shutil.copytree(model_from, run.model)
    record = OmegaConf.to_container(composed("encoder=tiny", *TINY, *overrides), resolve=True)
    assert isinstance(record, dict)
    settle(record)
    run.record.write_text(yaml.safe_dump(record))
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(len(EMOTIONS)), size=60)
    labels = [EMOTIONS[place % 4] for place in range(60)]
    speakers = [f"s{place % 6}" for place in range(60)]
    told = {"id": [f"u{place}" for place in range(60)], "speaker": speakers, "emotion": labels}
    table = pd.DataFrame({**told, "predicted": [EMOTIONS[place] for place in shares.argmax(1)]})
    pd.concat([table, pd.DataFrame(shares, columns=EMOTIONS)], axis=1).to_csv(run.predictions, index=False)
    right = table["emotion"] == table["predicted"]
    recalls = {f"test/recall/{emotion}": float(right[table["emotion"] == emotion].mean()) for emotion in EMOTIONS}
    scores = {"test/ua": float(np.mean(list(recalls.values()))), "test/wa": float(right.mean())}
    other = {"test/f1_macro": 0.25, "test/f1_weighted": 0.25, "test/ece": 0.25}
    about = {"corpus": "demo", "speaker_independent": True, "split": "session", "fold": 0, "validation": "speakers"}
    run.metrics.write_text(json.dumps({**scores, **recalls, **other, **about, "finished": True, **metrics}))
    return folder


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory, composed: Compose) -> Path:
    return model(tmp_path_factory.mktemp("pushed") / "model", composed)


@pytest.fixture
def finished(tmp_path: Path, saved_model: Path, composed: Compose) -> Finished:
    """Makes a finished run."""

    def make(name: str = "run", *overrides: str, **metrics: Any) -> Path:
        return finish(tmp_path / name, saved_model, composed, *overrides, **metrics)

    return make


@pytest.fixture
def pushed(hub: Hub, finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Push:
    """Pushes a finished run to `lab/model`, or another repository."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose storage the loopback hub is not

    def send(run: Path | None = None, repo: str = "lab/model", **others: Any) -> Pushed:
        return push(run or finished(), repo, **{**WAY, **others})

    return send


def files(hub: Hub, repo: str = "lab/model") -> dict[str, bytes]:
    repository = hub.repositories[repo]
    return repository.commits[repository.refs["main"]]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(pushed: Push, *given: Any, **others: Any) -> str:
    """What is said of a push that fails, on one line."""
    with pytest.raises(InputError) as caught:
        pushed(*given, **others)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_a_model_is_pushed_as_it_is_in_one_commit_and_loads_in_a_fresh_process(
    hub: Hub, pushed: Push, finished: Finished, tmp_path: Path
) -> None:
    run = finished()
    found = pushed(run)
    there = files(hub)
    assert {name: there[name] for name in content(run / "model")} == content(run / "model")
    assert set(there) == {*content(run / "model"), "README.md", ".gitattributes"}
    assert len(hub.repositories["lab/model"].commits) == 2  # that of an empty repository, and this
    assert found == Pushed("lab/model", hub.repositories["lab/model"].refs["main"], found.url, True)
    assert found.url == f"{hub.url}/lab/model/tree/{found.commit}"

    hub.requests.clear()
    code = (
        "import sys, json; from fourm_ser.prediction.predictor import Predictor\n"
        "loaded = Predictor.load(sys.argv[1], device='cpu', cache=sys.argv[2])\n"
        "from tests.prediction.predictors import noise\n"
        f"print(json.dumps(loaded(noise(1.0), {TEXT!r}).probabilities))"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_TOKEN"},
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "fresh"),
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-c", code, f"lab/model@{found.commit}", str(tmp_path / "cache")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = Predictor.load(run, device="cpu")(noise(1.0), TEXT)
    assert isinstance(here, Prediction)
    assert json.loads(done.stdout) == pytest.approx(here.probabilities, abs=1e-6)
    assert set(hub.asked()) == {Path(name).name for name in content(run / "model")}  # and no README.md


def test_a_revision_stays_what_it_is_and_serves_without_a_network(
    hub: Hub, pushed: Push, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_run, second_run = finished("first"), finished("second")
    labels = json.dumps(["calm", *EMOTIONS[1:]])
    config = yaml.safe_load((second_run / "model" / "config.yaml").read_text())
    del config["digests"]
    (second_run / "model" / "config.yaml").write_text(yaml.safe_dump(config))
    (second_run / "model" / "labels.json").write_text(labels)
    first, second = pushed(first_run), pushed(second_run)
    names = ("lab/model", f"lab/model@{first.commit}", f"lab/model@{second.commit}", "lab/model@main")
    expected = ["calm", "anger", "calm", "calm"]
    assert [Predictor.load(name, device="cpu").emotions[0] for name in names] == expected
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.close()
    assert [Predictor.load(name, device="cpu").emotions[0] for name in names] == expected
    with pytest.raises(InputError, match=r"^lab/other: .*HF_HUB_OFFLINE forbids") as caught:
        Predictor.load("lab/other", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"push": ["401"] * 9}, "does not know the token: 401.*hf auth login"),
        ({"push": ["403"] * 9}, "may not write to lab: 403.*settings/tokens"),
        ({"push": ["404 RepoNotFound"] * 9}, "no such repository.*Is lab your name"),
        ({"push": ["404"] * 9}, "no such place: 404.*Is lab your name"),
        ({"push": ["429"] * 40}, "asked too often: 429"),
        ({"push": ["500"] * 40}, "answers 500.*start again"),
        ({"push": ["close"] * 40}, "connection to .* fails.*start again"),
        ({"upload": ["403"] * 9}, "403"),
        ({"upload": ["500"] * 40}, "answers 500.*start again"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_what_to_do(
    hub: Hub, pushed: Push, faults: dict[str, list[str]], words: str
) -> None:
    hub.faults = faults
    message = refused(pushed)
    assert message.startswith("repo=lab/model: the Hugging Face hub does not take the model")
    assert re.search(words, message), message


def test_without_a_token_or_a_network_nothing_is_asked(
    hub: Hub, pushed: Push, monkeypatch: pytest.MonkeyPatch, finished: Finished
) -> None:
    run = finished()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(run / "none"))
    assert "there is no token" in refused(pushed, run)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in refused(pushed, run)
    assert not hub.requests


def test_a_push_to_what_others_changed_meanwhile_is_refused(
    hub: Hub, pushed: Push, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished()
    pushed(run)
    original = HfApi.create_commit

    def create(self: HfApi, *positional: Any, **named: Any) -> Any:
        hub.add("lab/model", {**files(hub), "LICENSE": b"MIT"}, "main")
        return original(self, *positional, **named)

    (run / "model" / "text" / "vocab.txt").write_text("new")
    monkeypatch.setattr(HfApi, "create_commit", create)
    assert "somebody else changed the repository meanwhile: 412" in refused(pushed, run)
    assert "text/vocab.txt" not in files(hub)


@pytest.mark.slow(but=["True-True", "None-False"])
@pytest.mark.parametrize(("private", "expected"), [(True, True), (False, False), (None, False)])
def test_a_new_repository_is_as_private_as_it_is_said(
    hub: Hub, pushed: Push, finished: Finished, private: bool | None, expected: bool
) -> None:
    run = finished()
    assert pushed(run, private=private).private is expected
    assert hub.repositories["lab/model"].private is expected
    assert pushed(run, private=not expected).private is expected  # of one that is there, nothing changes


def test_what_stands_there_beside_the_model_stays(hub: Hub, pushed: Push, finished: Finished) -> None:
    run = finished()
    own = {".gitattributes": b"", "README.md": b"mine", "LICENSE": b"MIT"}
    hub.add("lab/model", own, "main")
    pushed(run, card=False)
    assert {name: files(hub)[name] for name in own} == own
    hub.add("lab/model", {**files(hub), "text/vocab.txt": b"of an earlier tokenizer", "notes.txt": b"mine"}, "main")
    pushed(run)
    assert "text/vocab.txt" not in files(hub)
    assert files(hub)["notes.txt"] == b"mine"
    assert files(hub)["README.md"] != b"mine"

    hub.add("lab/bert", {"config.json": b"{}", "model.safetensors": b"another"}, "main")
    assert "holds something else than a model of this package (config.json" in refused(pushed, run, "lab/bert")
    assert files(hub, "lab/bert")["model.safetensors"] == b"another"


def test_the_card_says_what_the_run_found(hub: Hub, pushed: Push, finished: Finished) -> None:
    run = finished("run", "data=manifest", "data.manifest=/home/somebody/secret.csv", speaker_independent=False)
    metrics = RunDirectory(run).read_results()
    pushed(run, licence="cc-by-nc-4.0")
    card = ModelCard(files(hub)["README.md"].decode())
    data, text = yaml.safe_load(card.data.to_yaml()), card.text
    assert (data["license"], data["pipeline_tag"]) == ("cc-by-nc-4.0", "audio-classification")
    (entry,) = data["model-index"]
    scores = {metric["name"]: metric["value"] for metric in entry["results"][0]["metrics"]}
    assert scores == {"UA": metrics["test/ua"], "WA": metrics["test/wa"], "macro F1": metrics["test/f1_macro"]}
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    table = {row[0]: row[1:] for row in rows}
    assert table["WA, accuracy"][0] == f"{100 * metrics['test/wa']:.1f}"
    low, high = map(float, table["WA, accuracy"][1].split(" to "))
    assert low < 100 * metrics["test/wa"] < high
    predictions = pd.read_csv(RunDirectory(run).predictions)
    for emotion in EMOTIONS:
        recall, _, count = next(row[1:] for row in rows if row[0] == emotion and len(row) == 4)
        assert float(recall) == pytest.approx(100 * metrics[f"test/recall/{emotion}"], abs=0.05)
        assert int(count) == (predictions["emotion"] == emotion).sum()
        taken = next(row[1:] for row in rows if row[0] == emotion and len(row) == 5)
        own = predictions[predictions["emotion"] == emotion]["predicted"]
        assert [int(value) for value in taken] == [(own == other).sum() for other in EMOTIONS]
    sure = [row for row in rows if re.fullmatch(r"0\.\d\d to [01]\.\d\d", row[0])]
    assert sum(int(row[1]) for row in sure) == len(predictions)
    right = sum(int(row[1]) * float(row[3]) for row in sure) / len(predictions)
    assert right == pytest.approx(100 * metrics["test/wa"], abs=0.1)
    assert "some who are tested were trained on" in text
    assert "secret" not in text
    assert "somebody" not in text
    assert yaml.safe_load(text.partition("````yaml\n")[2].partition("````")[0])["fusion"]["heads"] == 4


def test_the_weights_licence_is_what_the_hub_says(
    hub: Hub, pushed: Push, saved: Callable[[str], Path], tmp_path: Path, composed: Compose
) -> None:
    commit = hub.commit("lab/text", saved("text"))
    hub.repositories["lab/text"].licence = "apache-2.0"
    words = ["encoder/text=bert", "encoder.text.weights=pretrained", f"encoder.text.checkpoint=lab/text@{commit}"]
    kept = [word for word in TINY if "encoder.text" not in word]
    own = model(tmp_path / "own", composed, *words, *kept)
    pushed(finish(tmp_path / "run", own, composed, *words))
    said = files(hub)["README.md"].decode()
    assert f"weights of [lab/text@{commit}](https://huggingface.co/lab/text), licence: apache-2.0" in said
    assert "trained from random weights" in said
    assert yaml.safe_load(ModelCard(said).data.to_yaml())["base_model"] == ["lab/text"]


@pytest.mark.slow(but=["<b>x</b>", "[x]"])
@pytest.mark.parametrize("emotion", ["a|b", "<b>x</b>", "[x](http://y)", "`z`"])
def test_texts_of_the_data_are_no_markup_in_the_card(hub: Hub, pushed: Push, finished: Finished, emotion: str) -> None:
    run = finished()
    directory = RunDirectory(run)
    table = pd.read_csv(directory.predictions).replace("anger", emotion).rename(columns={"anger": emotion})
    table.to_csv(directory.predictions, index=False)
    pushed(run, resamples=2)
    said = files(hub)["README.md"].decode().partition("## Config")[0]
    assert emotion not in said
    assert emotion in html.unescape(said)


def test_weights_of_this_machine_are_refused_before_anything_is_sent(
    hub: Hub, pushed: Push, finished: Finished, caplog: pytest.LogCaptureFixture
) -> None:
    run = finished()
    path = run / "model" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["encoder"]["audio"]["weights"] = "/home/somebody/weights"
    del config["digests"]["config.yaml"]  # as of a model that was written so
    path.write_text(yaml.safe_dump(config))
    pushed(run)
    assert "names a place of this machine: encoder.audio.weights=/home/somebody/weights" in caplog.text
    hub.requests.clear()
    config["fingerprints"] = {"audio": "0"}
    path.write_text(yaml.safe_dump(config))
    message = refused(pushed, run)
    assert "encoder.audio.weights=/home/somebody/weights" in message
    assert "export.include_encoders=true" in message
    assert not hub.requests


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: (run / "metrics.json").unlink(), "no card can be made.*card=false"),
        (lambda run: (run / "predictions.csv").write_text("id,speaker"), "no card can be made"),
        (lambda run: (run / "model" / "labels.json").write_text('["a", "b"]'), "is not what was written there"),
        (lambda run: (run / "model" / "code.py").write_text(""), "holds code.py, which is no part of a model"),
        (lambda run: shutil.rmtree(run / "model"), "no model/ there"),
        (lambda run: (run / "config.yaml").unlink(), "no config.yaml there"),
    ],
)
def test_a_run_that_cannot_be_shared_is_one_line(
    hub: Hub, pushed: Push, finished: Finished, change: Callable[[Path], Any], words: str
) -> None:
    run = finished()
    change(run)
    assert re.search(words, refused(pushed, run))
    assert not hub.requests


@pytest.mark.parametrize("repo", ["model", "a/b/c", "a b/c", "a/b@main", "/b", "a/", "a/b--c", "../b", "a/..b"])
def test_a_repository_is_a_user_and_a_name(hub: Hub, pushed: Push, repo: str) -> None:
    assert f"repo={repo}: expected <user>/<name>" in refused(pushed, None, repo)
    assert not hub.requests


def test_of_a_repository_nothing_but_a_model_is_fetched_and_nothing_of_it_trusted(
    hub: Hub, saved_model: Path, tmp_path: Path
) -> None:
    strange = [
        "own.py",
        "pytorch_model.bin",
        "README.md",
        "text/own.py",
        "../../planted",
        "audio/../../x.json",
        "text/.x",
    ]
    assert model_files(strange) == []
    folder = tmp_path / "hostile"
    shutil.copytree(saved_model, folder)
    for name in strange[:4]:
        (folder / name).write_bytes(b"raise SystemExit")
    hub.commit("lab/hostile", folder)
    fetched = fetch_model("lab/hostile")
    assert content(fetched) == content(saved_model)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["head"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'ran'}"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    hub.commit("lab/hostile", folder)
    with pytest.raises(InputError, match=r"head\._target_=os\.system") as caught:
        Predictor.load("lab/hostile", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_name_is_a_folder_where_there_is_one_and_else_a_repository_of_the_hub(
    hub: Hub, saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lab/model", "lab/model@v1", "l.a-b/m_1"):
        assert is_hub_id(name)
    for name in ("model", "./lab/model", "/lab/model", "~/model", "outputs/2026-01-31/12-00-00", "", "lab/", "C:\\a/b"):
        assert not is_hub_id(name)
    shutil.copytree(saved_model, tmp_path / "lab" / "model")
    assert find_model("lab/model") == Path("lab/model")
    assert not hub.requests
    with pytest.raises(InputError, match=r"lab/other: no such folder here, and .*no such repository.*folder model/"):
        find_model("lab/other")
    with pytest.raises(InputError, match="no revision behind the @"):
        find_model("lab/other@")
    hub.add("lab/bert", {"config.json": b"{}"}, "main")
    with pytest.raises(InputError, match=r"lab/bert: the repository of the hub holds no model\.safetensors"):
        find_model("lab/bert")


def test_the_command_says_where_the_model_is(
    hub: Hub, pushed: Push, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        push_command(compose("push", [f"run='{run}'", "repo=lab/model", "resamples=20"]))
        with pytest.raises(InputError, match=r"^repo: nothing is given. Add repo=<user>/<name>\.$"):
            push_command(compose("push", ["run=x"]))
        with pytest.raises(InputError, match=r"^run: nothing is given"):
            push_command(compose("push", []))
    commit = hub.repositories["lab/model"].refs["main"]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"pushed: {hub.url}/lab/model/tree/{commit} (private)",
        f"fourm_ser predict model=lab/model@{commit} audio=FILE",
    ]


def test_a_record_without_places_keeps_what_is_no_path() -> None:
    record = {"a": ["/x", "~/y", "C:\\z", "./q", "n/a", 1, None], "cache": "z", "b": {"c": "bert-base"}}
    assert without_places(record) == {"a": [*["(a path)"] * 4, "n/a", 1, None], "b": {"c": "bert-base"}}


def test_a_model_of_the_hub_is_evaluated_from_where_it_was_fetched(
    hub: Hub, pushed: Push, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pushed(finished())
    opened = Mock(side_effect=InputError("far enough"))
    monkeypatch.setattr(evaluation, "load_model", opened)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", [f"model='lab/model@{found.commit}'", "data=demo"])
        with pytest.raises(InputError, match="far enough"):
            evaluation.evaluate(config, None)
        assert content(opened.call_args.args[0]).keys() == content(fetch_model("lab/model")).keys()
        config.model = "lab/other"
        with pytest.raises(InputError, match=r"^lab/other: no such folder here, and the Hugging Face hub"):
            evaluation.evaluate(config, None)
