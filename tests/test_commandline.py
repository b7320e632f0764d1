"""Command lines: paths arrive as they were written, and what Hydra refuses is one line."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fourm_ser.commandline import FULL_ERROR, be_brief, explain, no_such_key, one_line, quoted, told_plainly
from fourm_ser.predict import LITERAL
from tests.conftest import CONF

CORPUS = [f"data.{key}" for key in ("root", "manifest", "audio_root", "split_file")]
CORPORA = [*CORPUS, *(key.replace(".", f".{side}.") for side in ("train", "test") for key in CORPUS)]
ENCODERS = [f"encoder.{half}.{key}" for half in ("text", "audio") for key in ("checkpoint", "tokenizer", "weights")]
KEYS = {
    "train": ["cache", *CORPORA, *ENCODERS, "encoder.audio.pca", "hydra.run.dir", "hydra.sweep.dir"],
    "prepare": ["cache", "write_split", *CORPORA, "hydra.run.dir"],
    "evaluate": ["run", "model", "output", "cache", *CORPORA],
    "analyze": ["run", "runs", "output", "cache"],
    "predict": ["model", "audio", "text", "manifest", "output", "embeddings", "asr", "cache"],
    "push": ["run"],
    "export": ["model", "output", "cache"],
}
NAMES = [
    "loss=ce,seed=0",
    "my run (1)",
    "a,b",
    "a=b",
    "it's",
    'the "best" run',
    "50% + more & others; #1!",
    "cost$",
    "$HOME",
    "Größe 你好",
    "~/runs (old)",
    "2026",
    "1e3",
    "  two  blanks ",
    "-m",
    "run(1)",
    "(",
    "a:b@c|d",
    "C:\\runs\\new",
]


def value_of(word: str) -> Any:
    """What a word of the command line is in the config."""
    (parsed,) = OverridesParser.create().parse_overrides([word])
    return OmegaConf.create({"key": parsed.value()}).key


@pytest.mark.slow(but=["train", "analyze", "predict", "push", "export"])
@pytest.mark.parametrize("command", KEYS)
def test_every_command_takes_paths_as_they_are(command: str) -> None:
    literal = LITERAL if command == "predict" else ()
    for name, key, plus in product(NAMES, KEYS[command], ("", "+", "++")):
        (word,) = quoted([f"{plus}{key}={name}"], literal)
        assert word.startswith(f"{plus}{key}=")
        assert value_of(word) == name, key


@pytest.mark.parametrize(
    ("command", "key", "words"),
    [
        ("train", "cache", []),
        ("train", "data.root", ["data=iemocap"]),
        ("train", "encoder.text.checkpoint", ["encoder=bert_hubert"]),
        ("prepare", "data.manifest", ["data=manifest"]),
        ("evaluate", "run", []),
        ("analyze", "output", []),
    ],
)
def test_a_composed_config_holds_the_path(command: str, key: str, words: list[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, quoted([*words, f"{key}=loss=ce, it's (1) $x"]))
    assert OmegaConf.select(config, key) == "loss=ce, it's (1) $x"


@given(
    st.text(
        st.sampled_from("ab=, :()~#$@+-/.01") | st.characters(codec="utf-8", exclude_characters="\0'\"[]{}\\"),
        min_size=1,
        max_size=12,
    )
)
def test_any_name_without_hydra_s_own_signs_arrives_as_it_is(name: str) -> None:
    word = quoted([f"run={name}"])[0]
    if value_of(word) != name:  # what Hydra has another use for
        assert word == f"run={name}"
        assert value_of(word) in (None, True, False) or "(" in name


def test_what_hydra_reads_rightly_or_is_meant_for_it_stays() -> None:
    for word in (
        "run=outputs/2026-01-31/12-00-00",
        "data.root=/corpora/IEMOCAP_full-release",
        "run=null",
        "run=",
        "data.root=???",
        "run='my run'",
        'run="my run"',
        "runs=[a,b]",
        "output=${run}/evaluation",
        "hydra.run.dir=outputs/${now:%Y-%m-%d}",
        "data.root=my\\ corpus",
        "encoder.audio.pca=true",
        "encoder.weights=random",
        "loss=ce,focal",
        "--help",
        "~data.root",
        "data.emotions=[anger, sadness]",
    ):
        assert quoted([word]) == [word]


@pytest.mark.parametrize("several", ["-m", "--multirun", "sweep=losses", "hydra.mode=MULTIRUN"])
def test_commas_of_a_multirun_are_a_sweep_unless_there_is_such_a_path(
    several: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def choices(word: str) -> list[str] | str:
        word = quoted([several, word])[1]
        (parsed,) = OverridesParser.create().parse_overrides([word])
        return (
            [str(value) for value in parsed.sweep_string_iterator()]
            if parsed.is_sweep_override()
            else str(parsed.value())
        )

    assert quoted([several, "data.audio_root=clean,noisy"]) == [several, "data.audio_root=clean,noisy"]
    assert quoted([several, "data.root=choice(a,b)"]) == [several, "data.root=choice(a,b)"]
    assert choices("data.audio_root=clean (1),noisy=2") == ["'clean (1)'", "'noisy=2'"]
    assert choices("data.audio_root='a,b',c") == ["'a,b'", "c"]
    assert choices("hydra.sweep.dir=multirun/a,b") == "multirun/a,b"
    assert choices("data.root=my corpus (1)") == "my corpus (1)"
    Path("clean,noisy").mkdir()
    Path("clean (1),noisy=2").mkdir()
    assert choices("data.audio_root=clean,noisy") == "clean,noisy"
    assert choices("data.audio_root=clean (1),noisy=2") == "clean (1),noisy=2"


def test_what_is_there_under_that_whole_name_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("[a]", "'a'", "{a: 1}", "${a}", "a\\ b", "choice(a)", "true"):
        Path(name).mkdir()
        assert value_of(quoted([f"run={name}"])[0]) == name


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lose=ce", "lose: no such key. Did you mean loss?"),
        ("fusion.dropuot=4", "fusion.dropuot: no such key. Did you mean fusion.dropout?"),
        ("stage.transfer.epoch=4", "stage.transfer.epoch: no such key. Did you mean stage.transfer.epochs?"),
        ("encoder.audio.mels=40", "encoder.audio.mels: no such key. Did you mean encoder.audio.frontend.mels?"),
        ("fusion=self_atention", "fusion=self_atention: no such option. Did you mean self_attention?"),
        ("encoder/text=brt", "encoder/text=brt: no such option. Did you mean bert?"),
        ("encoder/txt=bert", "encoder/txt: no such key. Did you mean encoder/text?"),
        ("hydra/lancher=joblib", "hydra/lancher: no such key. Did you mean hydra/launcher?"),
        ("hydra.sweep.dri=x", "hydra.sweep.dri: no such key. Did you mean hydra.sweep.dir?"),
        ("optimizr@stage.transfer.optimizer=sgd", "optimizr: no such key. Did you mean optimizer?"),
        ("optimizer@stage.transfr.optimizer=sgd", "Did you mean optimizer@stage.transfer.optimizer?"),
        ("+data=iemocap", "data: is chosen twice. Write data=..., without a + before it."),
        ("loss.weighting=sum", "loss.weighting: no such key. Expected one of class_weights, label_smoothing."),
        ("loss==ce", "loss==ce: Hydra cannot read it. Put quotes around the value: \"loss='...'\""),
        ("seed", "seed: expected key=value."),
        ("fusion=zzz", "fusion=zzz: no such option. Expected one of 3m_ser, 4m_ser, attentive_statistics,"),
        ("~lose", "lose: no such key. Did you mean loss?"),
        ("+head=mlp", "head appears more than once"),
    ],
)
def test_what_hydra_cannot_compose_is_one_line(word: str, said: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("train", [word])
    line = explain(caught.value)
    assert said in line
    assert "\n" not in line
    assert "append" not in line
    assert f"+{word}" not in line


@pytest.mark.parametrize(("command", "word"), [("predict", "encoder=tiny"), ("evaluate", "fusion=concat")])
def test_a_group_of_another_command_is_told_apart(command: str, word: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose(command, [word])
    line = explain(caught.value, command)
    assert line.startswith(f"{word.partition('=')[0]}: no such key. `fourm_ser {command}` has ")


def test_nothing_near_lists_what_is_known() -> None:
    assert no_such_key("head.zzz", ["layers", "dropout"]) == ("head.zzz: no such key. Expected one of dropout, layers.")
    assert no_such_key("logger.csv.path", []) == "logger.csv.path: no such key. Leave it out."


def test_other_errors_and_the_environment_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FULL_ERROR, raising=False)
    with pytest.raises(ZeroDivisionError), one_line():
        1 / (os.environ[FULL_ERROR] != "1")
    assert FULL_ERROR not in os.environ
    with pytest.raises(SystemExit, match="error: Ambiguous value for argument"), one_line():
        raise ConfigCompositionException("Ambiguous value\nfor argument")
    monkeypatch.setenv(FULL_ERROR, "1")  # who asks for everything gets it
    with pytest.raises(HydraException), one_line():
        raise ConfigCompositionException("Ambiguous value")


def test_a_command_that_is_told_to_end_leaves_no_temporary_files(tmp_path: Path) -> None:
    def command() -> None:
        with told_plainly(), tempfile.TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("said", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_threads_sleep_where_they_wait_unless_the_environment_says_how(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # which is put back
        monkeypatch.delenv(name)
    be_brief()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"

    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv(said, "ACTIVE")
    be_brief()
    assert os.environ.get("OMP_WAIT_POLICY") == ("ACTIVE" if said == "OMP_WAIT_POLICY" else None)


@pytest.mark.parametrize("has_triton", [False, True])
def test_a_command_ends_without_looking_for_garbage_but_where_bindings_would_call_it_leaked(has_triton: bool) -> None:
    code = (
        "import atexit, gc, sys; from fourm_ser.commandline import be_brief\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"  # what is registered first is called last
        f"be_brief(); sys.modules.update({{'triton': None}} if {has_triton} else {{}})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.strip() == str(not has_triton), ended.stderr
