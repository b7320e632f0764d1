"""Splits of published models: their rule, restated on trees with the ids of the corpora."""

import math
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fourm_ser.data.published import SHARES, published_sides
from fourm_ser.errors import InputError
from tests import releases
from tests.data.corpora.conftest import MakeCorpus

MAPPED = ("anger", "happiness", "excitement", "sadness", "neutral")


def iemocap(count: int) -> pd.DataFrame:
    """Rows in the shape of IEMOCAP's: five sessions, files by dialog, the actors' lines one behind the other."""
    draw, rows = random.Random(1), []
    for session in range(1, 6):
        for dialog in ("impro01", "impro02", "script01_1"):
            path = f"Session{session}/dialog/EmoEvaluation/Ses0{session}F_{dialog}.txt"
            for number in range(count):
                key = f"Ses0{session}F_{dialog}_{'FM'[number % 2]}{number // 2:03d}"
                rows.append((key, draw.choice([*MAPPED, "frustration", "fear"]), f"{path}:{3 + 7 * number}"))
    return pd.DataFrame(rows, columns=["id", "emotion", "where"]).sort_values("id", ignore_index=True)


def esd(count: int) -> pd.DataFrame:
    rows = [
        (
            f"{speaker:04d}_{number:06d}",
            (*MAPPED[:2], "sadness", "neutral", "surprise")[number % 5],
            f"{speaker:04d}/{speaker:04d}.txt:{number}",
        )
        for speaker in range(11, 21)
        for number in range(1, count)
    ]
    return pd.DataFrame(rows, columns=["id", "emotion", "where"])


def restated(frame: pd.DataFrame, tested: float) -> dict[str, str]:
    """The rule in plain words: sort, shuffle by 0, then twice the first of a permutation by 0."""
    lines = [(w.split(":")[0], int(w.split(":")[1]), key) for key, w in zip(frame["id"], frame["where"], strict=True)]
    wanted = set(frame["id"][frame["emotion"].isin(MAPPED)])
    ids = [key for _, _, key in sorted(lines) if key in wanted]
    random.Random(0).shuffle(ids)
    sides: dict[str, str] = {}
    for side, share in (("test", tested), ("val", 0.1)):
        order = np.random.RandomState(0).permutation(len(ids))
        held = math.ceil(len(ids) * share)
        sides |= {ids[place]: side for place in order[:held]}
        ids = [ids[place] for place in order[held:]]
    return sides | dict.fromkeys(ids, "train")


@pytest.mark.parametrize("model", SHARES)
@pytest.mark.parametrize("count", [4, 37])
def test_the_rule_is_that_of_the_original(model: str, count: int) -> None:
    for corpus, frame, tested in (("iemocap", iemocap(count), 0.1), ("esd", esd(count), 0.2)):
        found = published_sides(corpus, model, frame)
        assert found.to_dict() == restated(frame, tested)
        mixed = frame.sample(frac=1, random_state=3)
        assert published_sides(corpus, model, mixed).to_dict() == found.to_dict()


def test_the_whole_of_iemocap_gives_the_published_sizes() -> None:
    frame = pd.DataFrame(
        {"id": [f"{n}" for n in range(5531)], "emotion": "anger", "where": [f"a:{n}" for n in range(5531)]}
    )
    counts = published_sides("iemocap", "4m_ser", frame).value_counts()
    assert counts.to_dict() == {"train": 4479, "val": 498, "test": 554}


def test_a_release_is_divided_whatever_is_chosen_of_it(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    root = tmp_path / "IEMOCAP_full_release"
    releases.iemocap(root, dict.fromkeys(("ang", "hap", "exc", "sad", "neu", "fru"), 6), seconds=0.05)
    given = {"split": "published", "published": "4m_ser"}
    whole = make_corpus("iemocap", root, **given)
    whole.setup()
    sides = {whole.frame["id"].iloc[row]: side for side, rows in whole.split._asdict().items() for row in rows}
    assert sides == restated(whole._released, 0.1)
    assert len(sides) == 30
    assert whole.protocol_record()["split"] == whole.protocol_record()["validation"] == "published"
    fewer = make_corpus("iemocap", root, emotions=["anger", "sadness"], drop_other=True, label_map={}, **given)
    fewer.setup()
    some = {fewer.frame["id"].iloc[row]: side for side, rows in fewer.split._asdict().items() for row in rows}
    assert some == {key: sides[key] for key in some}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"published": None}, r"data\.published=null: expected .*4m_ser or memocmt"),
        ({"published": "3m_ser"}, r"data\.published=3m_ser: .*no seed.*data\.split=random"),
        ({"published": "server"}, r"data\.published=server: .*no seed"),
        ({"published": "bert"}, r"data\.published=bert: expected"),
    ],
)
def test_a_split_that_nobody_can_tell_is_refused(
    tmp_path: Path, make_corpus: MakeCorpus, choices: dict[str, str | None], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_corpus("iemocap", tmp_path, split="published", **choices)


def test_other_corpora_have_no_published_split(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    with pytest.raises(InputError, match=r"of this corpus is known, only of iemocap and esd"):
        make_corpus("meld", tmp_path, split="published", published="4m_ser")
    with pytest.raises(InputError, match=r"published on iemocap and esd, not on emodb"):
        published_sides("emodb", "4m_ser", iemocap(3))
    with pytest.raises(InputError, match="too few"):
        published_sides("iemocap", "4m_ser", iemocap(3).iloc[:1])
