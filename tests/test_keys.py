"""Keys: what nothing reads is refused with the nearest name, whatever way it came into the config."""

from collections.abc import Callable
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from fourm_ser.encoders.mel_lstm import MelLSTM
from fourm_ser.errors import InputError
from fourm_ser.keys import check_config, check_weights
from tests.conftest import CONF, Compose

Changed = Callable[..., DictConfig]
CROSS = ["data=cross_corpus", "data@data.train=iemocap", "data@data.test=esd"]


class Own:
    """What a user's class may look like."""

    def __init__(self, width: int, *, depth: int = 1) -> None: ...


class Derived(Own):
    def __init__(self, height: int, **rest: Any) -> None:
        super().__init__(**rest)


class Anything:
    def __init__(self, **rest: Any) -> None: ...


@pytest.fixture(scope="module")
def base(composed: Compose) -> DictConfig:
    return composed("loss=ce_center", "encoder=bert_hubert", "encoder.weights=random", "trainer=cpu")


@pytest.fixture
def changed(base: DictConfig) -> Changed:
    """The config with a key more."""

    def change(key: str, value: Any = 1, config: DictConfig = base) -> DictConfig:
        config = config.copy()
        OmegaConf.set_struct(config, False)
        OmegaConf.update(config, key, value, merge=False)
        return config

    return change


def refusal(config: DictConfig) -> str:
    with pytest.raises(InputError) as caught:
        check_config("train", config)
    return str(caught.value)


def test_a_key_that_nothing_reads_is_refused_with_the_nearest_name(changed: Changed) -> None:
    for key, nearest in (
        ("lose", "loss"),
        ("sed", "seed"),
        ("encode.max_second", "encode.max_seconds"),
        ("export.include_encoder", "export.include_encoders"),
        ("sweep.dryrun", "sweep.dry_run"),
        ("encoder.wieghts", "encoder.weights"),
        ("encoder.txt", "encoder.text"),
        ("encoder.text.chekpoint", "encoder.text.checkpoint"),
        ("encoder.audio.layer_drop", "encoder.audio.layerdrop"),
        ("encoder.text.architecture.hiden_size", "encoder.text.architecture.hidden_size"),
        ("encoder.audio.architecture.conv_dims", "encoder.audio.architecture.conv_dim"),
        ("fusion.dropuot", "fusion.dropout"),
        ("head.dropuot", "head.dropout"),
        ("loss.aplha", "loss.alpha"),
        ("loss.terms.center.from", "loss.terms.center.form"),
        ("optimizer.weight_decy", "optimizer.weight_decay"),
        ("scheduler.warmpu", "scheduler.warmup"),
        ("data.utterence", "data.utterances"),
        ("data.max_second", "data.max_seconds"),
        ("trainer.max_step", "trainer.max_steps"),
        ("trainer.tf23", "trainer.tf32"),
    ):
        assert refusal(changed(key)) == f"{key}: no such key. Did you mean {nearest}?"


def test_what_the_package_passes_itself_is_no_key(changed: Changed) -> None:
    def refused(key: str) -> None:
        with pytest.raises(InputError, match=f"^{key}: is not for the config"):
            check_config("train", changed(key))

    for key in (
        "fusion.dims",
        "head.classes",
        "optimizer.params",
        "scheduler.steps",
        "data.cache",
        "encoder.text.resources",
        "trainer.max_epochs",
        "trainer.enable_progress_bar",
        "trainer.logger",
    ):
        refused(key)


def test_keys_that_are_read_pass(changed: Changed) -> None:
    right: list[tuple[str, Any]] = [
        ("trainer.limit_train_batches", 2),
        ("encoder.text.architecture.hidden_dropout_prob", 0.0),
        ("encoder.text.languages", ["en"]),
        ("optimizer.betas", [0.9, 0.99]),
        ("data.label_map.excitement", "happiness"),
        ("logger.more", {"_target_": "fourm_ser.training.loggers.CSV"}),
        ("fusion", {"_target_": f"{__name__}.Derived", "height": 1, "width": 2, "depth": 3}),
        ("fusion", {"_target_": f"{__name__}.Anything", "whatever": 1}),
        ("fusion", {"_target_": "nowhere.Fusion", "whatever": 1}),  # building it says what is wrong
    ]
    for key, value in right:
        check_config("train", changed(key, value))


def test_a_value_of_one_s_own_that_others_are_made_of_is_read(changed: Changed) -> None:
    config = changed("width", 64)
    with pytest.raises(InputError, match="width: no such key"):
        check_config("train", config)
    config.fusion.dim = "${width}"
    check_config("train", config)
    config = changed("encoder.size", 32)
    with pytest.raises(InputError, match=r"encoder\.size: no such key"):
        check_config("train", config)
    config.encoder.text.max_tokens = "${..size}"
    check_config("train", config)


def test_a_user_s_class_is_held_against_its_signature_and_that_of_its_parents(changed: Changed) -> None:
    node = {"_target_": f"{__name__}.Derived", "height": 1, "widht": 2}
    with pytest.raises(InputError, match=r"fusion\.widht: no such key\. Did you mean fusion\.width\?"):
        check_config("train", changed("head", {}, changed("fusion", node)))


def test_a_class_without_arguments_takes_none(changed: Changed) -> None:
    with pytest.raises(InputError, match=r"logger\.csv\.path: no such key"):
        check_config("train", changed("logger.csv.path"))
    with pytest.raises(InputError, match=r"logger\.path: no such key"):
        check_config("train", changed("logger.path"))


def test_a_model_type_that_there_is_not_is_refused(changed: Changed) -> None:
    with pytest.raises(InputError, match=r"encoder\.text\.architecture\.model_type=brt: .*Did you mean bert\?"):
        check_config("train", changed("encoder.text.architecture.model_type", "brt"))


def test_both_corpora_of_a_pair_are_checked(composed: Compose, changed: Changed) -> None:
    config = composed(*CROSS)
    check_config("train", config)
    with pytest.raises(InputError, match=r"data\.test\.languag: no such key\. Did you mean data\.test\.language\?"):
        check_config("train", changed("data.test.languag", "en", config))


@pytest.mark.parametrize(
    ("command", "words", "key"),
    [
        ("prepare", [], "data.show_splits"),
        ("prepare", [], "write_splits"),
        ("evaluate", ["run=x"], "resample_s"),
        ("evaluate", ["model=x", "data=iemocap", "data.root=y"], "data.rot"),
        ("evaluate", ["run=x"], "encode.precision"),
        ("predict", [], "modl"),
        ("analyze", [], "correlation.fold"),
        ("analyze", [], "examples.idss"),
    ],
)
def test_every_command_refuses_unknown_keys(command: str, words: list[str], key: str, changed: Changed) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, words)
    check_config(command, config)
    with pytest.raises(InputError, match=rf"^{key}: no such key"):
        check_config(command, changed(key, 1, config))


def test_the_run_s_own_corpus_may_have_keys_that_only_it_knows(changed: Changed) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", ["run=x"])
    check_config("evaluate", changed("data.root", "y", config))


@pytest.mark.parametrize(
    ("options", "word", "message"),
    [
        ("encoder=tiny encoder/text=bert", "encoder.text.checkpoint=X", r"encoder\.text\.weights=pretrained"),
        ("encoder=tiny encoder/audio=hubert", "encoder.audio.checkpoint=X", r"encoder\.audio\.weights=pretrained"),
        ("encoder=tiny encoder/audio=vggish", "encoder.audio.url=X", r"encoder\.audio\.weights=pretrained"),
        ("encoder=tiny encoder/audio=panns", "encoder.audio.digest=X", r"encoder\.audio\.weights=pretrained"),
        ("encoder=bert_hubert encoder.weights=/w", "++encoder.text.checkpoint=X", r"weights=/w\. Add"),
        ("encoder=bert_hubert", "encoder.text.architecture.hidden_size=8", r"encoder\.text\.weights=random"),
        ("encoder=bert_hubert", "+encoder.audio.architecture.conv_bias=true", r"encoder\.audio\.weights=random"),
    ],
)
def test_what_the_weights_make_void_is_refused(options: str, word: str, message: str, composed: Compose) -> None:
    config = composed(*options.split(), word)
    with pytest.raises(InputError, match=message) as caught:
        check_weights(config, [*options.split(), word])
    assert str(caught.value).startswith(word.lstrip("+").partition("=")[0])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("encoder=tiny encoder/text=bert", "encoder.text.tokenizer=X"),
        ("encoder=tiny encoder/text=bert", "encoder.text.checkpoint=null"),
        ("encoder=tiny encoder/text=bert", "encoder.text.architecture.hidden_size=8"),
        ("encoder=tiny encoder/text=bert encoder.text.weights=pretrained", "encoder.text.checkpoint=X"),
        ("encoder=bert_hubert", "encoder.text.checkpoint=./mine"),
        ("encoder=bert_vggish encoder.text.weights=random", "encoder.audio.url=X"),
    ],
)
def test_what_the_weights_read_passes(options: str, word: str, composed: Compose) -> None:
    check_weights(composed(*options.split(), word), [*options.split(), word])


def test_a_folder_of_weights_in_an_option_file_beside_random_ones_is_refused(base: DictConfig) -> None:
    config = base.copy()
    check_weights(config, [])  # the hub id names the tokenizer
    for folder in ("./mine", "/models/mine", "~/mine"):
        config.encoder.text.checkpoint = folder
        with pytest.raises(InputError, match=rf"checkpoint={folder}: is not read while encoder\.text\.weights=random"):
            check_weights(config, [])


def test_encoders_of_one_s_own_without_such_keys_pass(changed: Changed) -> None:
    node = {"_target_": f"{MelLSTM.__module__}.MelLSTM", "checkpoint": "/x"}
    config = changed("encoder", {"text": node, "audio": node}, OmegaConf.create({}))
    check_weights(config, ["encoder.text.checkpoint=/x"])
