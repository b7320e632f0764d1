"""What is said of conf/: as Hydra composes it, and every key explained."""

import re
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fourm_ser.help import help_text
from fourm_ser.options import HYDRA_S, Described, describe
from tests.conftest import CONF

COMMANDS = ("train", "prepare", "evaluate", "predict", "push", "export", "serve", "analyze")
GROUPS = sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/**/*.yaml")} - {"sweep"})
OF_TRAINING = [group for group in GROUPS if not group.startswith("hydra")]


def composed(command: str, *words: str) -> dict[str, Any]:
    """What Hydra composes, flat, without what is Hydra's."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose(command, list(words)), resolve=False)
    found: dict[str, Any] = {}
    flatten(config, "", found)
    return {name: value for name, value in found.items() if value != {}}  # of options that hold nothing


def flatten(node: Any, path: str, found: dict[str, Any]) -> None:
    if isinstance(node, dict) and node:
        for name, below in node.items():
            if name not in HYDRA_S:
                flatten(below, f"{path}.{name}".strip("."), found)
    else:
        found[path] = node


def described(command: str, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, key in describe(command, words).leaves().items():
        if not path.startswith("hydra."):
            flatten(yaml.safe_load(key.written), path, found)
    return {name: value for name, value in found.items() if value != {}}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_s_keys_are_those_that_hydra_composes(command: str) -> None:
    assert described(command) == composed(command)


@pytest.mark.slow(but=["encoder/text", "encoder/audio"])
@pytest.mark.parametrize("group", OF_TRAINING)
def test_so_are_those_under_other_options(group: str) -> None:
    (found,) = (each for each in describe("train").groups if each.name == group)
    for option in found.options[::6]:  # composing takes a while
        word = f"{group}={option}"
        assert described("train", word) == composed("train", word), word


def test_what_the_command_line_says_wins_over_a_preset() -> None:
    words = ("experiment=4m_ser", "scheduler=cosine", "encoder/text=roberta", "optimizer@stage.finetune.optimizer=adam")
    assert described("train", *words) == composed("train", *words)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_every_option_is_explained(command: str) -> None:
    unexplained = set()
    groups = [group for group in describe(command).groups if "@" not in group.name]
    for words in [[], *([f"{group.name}={option}"] for group in groups for option in group.options)]:
        leaves = describe(command, words).leaves()
        unexplained |= {name for name, key in leaves.items() if not key.comment and not name.startswith("hydra.")}
    assert not unexplained
    assert all(group.comment for group in groups if "/" not in group.name)


def test_a_word_that_is_a_group_asks_for_its_options() -> None:
    text = help_text("train", ["loss", "loss=ce_center", "--help"])
    assert re.search(r"^  loss=focal +\S", text, re.MULTILINE)
    assert re.search(r"^  loss.weights.center=0.1 +weighting=sum", text, re.MULTILINE)
    assert "stage.transfer" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_key_and_no_other_group(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_text(command)
    known: Described = describe(command)
    for name, key in known.leaves().items():
        if key.comment:
            assert f"  {name}={key.written}" in text
    shown = set(re.findall(r"^  ([a-z/]+)=", text, re.MULTILINE))
    top = {group.name for group in known.groups} | {name for name in known.leaves() if "." not in name}
    assert shown <= top
    prose = [line for line in text.splitlines() if "=" not in line]
    assert max(map(len, prose)) <= 80


@pytest.mark.parametrize("words", [["sweep=paper_4m_ser"], ["experiment=4m_ser", "data=iemocap"]])
def test_what_an_option_chooses_of_other_groups_is_described(words: list[str]) -> None:
    described = describe("train", words)
    assert {group.name: group.chosen for group in described.groups}["data"] == "iemocap"
    assert "data.root" in described.leaves()
