"""Values of keys that no class reads before something is loaded."""

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from fourm_ser.errors import InputError
from fourm_ser.values import RULES, Choice, Rule, Words, WordsByModality, check_values
from tests.conftest import CONF


@pytest.fixture(scope="module")
def configs() -> dict[str, DictConfig]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return {
            command: compose(command, ["encoder=bert_hubert", "trainer=ddp"] if command == "train" else [])
            for command in RULES
        }


@pytest.mark.parametrize("command", RULES)
def test_the_shipped_configs_are_within_their_ranges(command: str, configs: dict[str, DictConfig]) -> None:
    check_values(command, configs[command])
    for key in RULES[command]:
        assert key.rpartition(".")[2] in (
            OmegaConf.select(configs[command], key.rpartition(".")[0] or "@") or (configs[command])
        ), f"{key} is no key of {command} any more"


def wrong(rule: Rule) -> list[Any]:
    """Values of every kind that a key may not have."""
    if isinstance(rule, Words):
        word = rule.words[0]
        return ["abc", word, 7, None, True, [], ["abc"], [word, word], [[word]], [None], {"a": 1}]
    if isinstance(rule, Choice):
        return [value for value in ("abc", 7, "", None, [True], "true") if not rule.allows(value)]
    if isinstance(rule, WordsByModality):
        word = rule.words[0]
        return ["abc", 7, "", None, [word], True, {}, {"text": "abc"}, {"text": word, "audio": None}, {"video": word}]
    values: list[Any] = ["abc", "", "1", True, False, float("nan"), float("inf"), [1], {"a": 1}, rule.least - 1]
    values += [rule.least + 0.5] * rule.whole + [rule.least] * rule.above + [None] * (None not in rule.words)
    return values + ([rule.most + 1] if rule.most < float("inf") else [])


@pytest.mark.parametrize("command", RULES)
def test_wrong_values_are_refused_by_their_key(command: str, configs: dict[str, DictConfig]) -> None:
    config = configs[command].copy()
    OmegaConf.set_struct(config, False)

    def refused(key: str, value: Any) -> None:
        right = OmegaConf.select(config, key)
        OmegaConf.update(config, key, value, merge=False)
        with pytest.raises(InputError, match=rf"^{key}=.*: expected ") as caught:
            check_values(command, config)
        assert "\n" not in str(caught.value)
        OmegaConf.update(config, key, right, merge=False)

    for key, rule in RULES[command].items():
        for value in wrong(rule):
            refused(key, value)


@pytest.mark.parametrize(
    ("rule", "right", "words"),
    [
        (RULES["train"]["seed"], [0, 3, 2**32 - 1, 3.0], "a whole number from 0 to 4294967295"),
        (RULES["train"]["encode.max_seconds"], [0.5, 24, "auto"], "a number above 0 or auto"),
        (RULES["evaluate"]["batch_size"], [1, None], "a whole number of 1 or more or null"),
        (RULES["train"]["trainer.deterministic"], [True, False, "warn"], "true or false or warn"),
        (
            RULES["train"]["fusion.modalities"],
            [OmegaConf.create(["audio"]), OmegaConf.create(["audio", "text"])],
            "a list of any of text, audio, each once",
        ),
        (
            RULES["train"]["encode.pool"],
            ["mean", OmegaConf.create({"audio": "mean_std"}), OmegaConf.create({"text": "none", "audio": "mean"})],
            "none or mean or mean_std, or one of them each: {text: none, audio: mean_std}",
        ),
    ],
)
def test_right_values_pass_and_the_range_is_said(rule: Rule, right: list[Any], words: str) -> None:
    assert all(rule.allows(value) for value in right)
    assert str(rule) == words


def test_what_waits_for_a_value_or_another_key_is_left_to_those_who_resolve_it() -> None:
    check_values("train", OmegaConf.create({"seed": "???"}))
    check_values("train", OmegaConf.create({"seed": "${nowhere}"}))
    with pytest.raises(InputError, match="seed=abc"):
        check_values("train", OmegaConf.create({"seed": "${other}", "other": "abc"}))
