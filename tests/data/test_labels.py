"""Labels and classes: what names they may have, how they are folded, which are chosen."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from fourm_ser.config import build
from fourm_ser.data.labels import choose_classes, fold_labels, read_classes, read_label_map, refuse_names
from fourm_ser.errors import InputError

SOURCE = Path("m.csv")
WORDS = ["yes", "no", "on", "off", "null", "~", "true", "nan", "NA", "1.0", "01", "1e3", "0x1f", "a: b", "#c", "é", "-"]


def refusal(read: Any, given: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_are_names_or_numbers() -> None:
    right: list[tuple[Any, Any]] = [
        (None, None),
        ([0, 1, 2], ["0", "1", "2"]),
        ([1.0, -1.5], ["1.0", "-1.5"]),
        ([" anger", "ne\u0301"], ["anger", "né"]),
        (WORDS, WORDS),
    ]
    for given, names in right:
        assert read_classes(given) == names


def test_what_cannot_be_classes_is_refused() -> None:
    wrong: list[tuple[Any, str]] = [
        ("anger", "data.emotions=anger: expected a list of classes"),
        (4, "data.emotions=4: expected a list"),
        ({"anger": 1}, "expected a list"),
        ([], "expected two or more different emotions"),
        (["anger"], "expected two or more different emotions"),
        ([1, "1"], "expected two or more different emotions"),
        (["anger", " anger "], "expected two or more different emotions"),
        ([True, "no"], "data.emotions: true is no name of an emotion. YAML reads"),
        (["yes", False], "data.emotions: false is no name"),
        (["yes", None], "data.emotions: null is no name"),
        ([["anger"], "neutral"], "is no name of an emotion"),
        (["anger", " "], "a name of an emotion is empty"),
    ]
    for given, said in wrong:
        assert said in refusal(read_classes, given)


def test_a_label_map_is_of_names_or_numbers() -> None:
    right: list[tuple[Any, dict[str, str]]] = [
        (None, {}),
        ({}, {}),
        ({0: "anger", 1.0: 2}, {"0": "anger", "1.0": "2"}),
        ({" a": "b "}, {"a": "b"}),
    ]
    for given, names in right:
        assert read_label_map(given) == names


def test_what_is_no_label_map_is_refused() -> None:
    for given in ("anger", ["anger"], 3, {True: "anger"}, {"anger": None}, {None: "x"}, {"a": {"b": "c"}}):
        assert refusal(read_label_map, given).startswith("data.label_map")


def test_a_class_that_tables_of_results_could_not_hold_is_refused() -> None:
    for name in (
        *("id", "Speaker", "emotion", "predicted", "start", "end", "text", "ERROR", "all", "ua"),
        *("a/b", "a\nb", "a\u2028b", "${x}"),
    ):
        for said in (refusal(refuse_names, ["anger", name]), refusal(read_classes, ["anger", name])):
            assert "data.emotions: the class " in said
            assert "data.label_map" in said
        refusal(lambda counts: choose_classes(counts, None, False, SOURCE), Counter(["anger", name]))
        assert choose_classes(Counter(["anger", name]), ["anger"], True, SOURCE) == ["anger"]


def test_labels_are_folded_at_once_and_not_one_after_the_other() -> None:
    labels = pd.Series(["0", "1", "anger", "0"])
    assert fold_labels(labels, {"0": "1", "1": "0"}, SOURCE).tolist() == ["1", "0", "anger", "1"]
    assert fold_labels(labels, {"fear": "x"}, SOURCE).tolist() == labels.tolist()
    with pytest.raises(InputError, match=r"has no emotion 2 to fold\. It has 1 anger, 2 0, 1 1"):
        fold_labels(labels, {"2": "x"}, SOURCE)


def test_words_that_yaml_reads_otherwise_survive_a_record_and_a_model_directory(tmp_path: Path) -> None:
    config = OmegaConf.create({"emotions": WORDS, "label_map": dict.fromkeys(WORDS, "anger")})
    OmegaConf.save(config, tmp_path / "config.yaml")
    again = OmegaConf.load(tmp_path / "config.yaml")
    assert again == config
    assert read_classes(OmegaConf.to_container(again)["emotions"]) == WORDS  # type: ignore[call-overload, index]
    assert read_classes(json.loads(json.dumps(WORDS))) == WORDS


class Keeps:
    def __init__(self, emotions: Any, label_map: Any) -> None:
        self.found = read_classes(emotions), read_label_map(label_map)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("emotions: [0, 1]\nlabel_map: {0: '1', 2: 1}", (["0", "1"], {"0": "1", "2": "1"})),
        ('emotions: ["yes", "null"]\nlabel_map: {"on": "off"}', (["yes", "null"], {"on": "off"})),
        ("emotions: [yes, anger]\nlabel_map: {}", "data.emotions: true is no name"),
        ("emotions: null\nlabel_map: {off: anger}", "data.label_map: false is no name"),
    ],
)
def test_a_config_gives_the_names_that_it_says_or_an_error(text: str, found: Any) -> None:
    node = {"_target_": f"{Keeps.__module__}.Keeps", **OmegaConf.to_container(OmegaConf.create(text))}  # type: ignore[dict-item]
    if isinstance(found, str):
        with pytest.raises(InputError, match=found):
            build(OmegaConf.create(node))
    else:
        assert build(OmegaConf.create(node)).found == found
