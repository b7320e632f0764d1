"""Train on one corpus, test on another: shared classes, speakers kept apart, and each encoded by itself."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pytest

from fourm_ser.config import build
from fourm_ser.data.content import digest_of
from fourm_ser.data.corpora.cross_corpus import CrossCorpus
from fourm_ser.data.manifest import read_manifest
from fourm_ser.data.release import NO_RECORDING
from fourm_ser.errors import InputError
from tests import releases
from tests.data.corpora.conftest import CLEANING, Train, found, rows_of
from tests.releases import Told

pytestmark = pytest.mark.usefixtures("no_figures")

FOUR = ["anger", "happiness", "sadness", "neutral"]

Trees = dict[str, tuple[Path, list[Told]]]


class MakeCross(Protocol):
    def __call__(
        self,
        train: str,
        test: str,
        *,
        roots: tuple[Path | str, Path | str] | None = None,
        trained: dict[str, Any] | None = None,
        tested: dict[str, Any] | None = None,
        **choices: Any,
    ) -> CrossCorpus: ...


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Trees:
    """A small release of each corpus; no test changes them."""
    folder = tmp_path_factory.mktemp("releases")
    labels = dict.fromkeys(("ang", "hap", "exc", "sad", "neu", "fru"), 10)
    return {
        "iemocap": (folder / "iemocap", releases.iemocap(folder / "iemocap", labels, seconds=0.05, quirks=True)),
        "esd": (folder / "esd", releases.esd(folder / "esd", sentences=3, seconds=0.05)),
        "emodb": (folder / "emodb", releases.emodb(folder / "emodb", each=1, seconds=0.05)),
        "meld": (folder / "meld", releases.meld(folder / "meld", (15, 8, 7), seconds=0.05)),
    }


@pytest.fixture
def cross(node: Callable[..., dict[str, Any]], trees: Trees, tmp_path: Path) -> MakeCross:
    """A cross corpus of two releases; `trained` and `tested` are keys of data.train and data.test."""

    def make(
        train: str,
        test: str,
        *,
        roots: tuple[Path | str, Path | str] | None = None,
        trained: dict[str, Any] | None = None,
        tested: dict[str, Any] | None = None,
        **choices: Any,
    ) -> CrossCorpus:
        config = node("cross_corpus", f"data@data.train={train}", f"data@data.test={test}")
        train_root, test_root = roots or (trees[train][0], trees[test][0])
        sides = {
            "train": {**config["train"], "root": str(train_root), **(trained or {})},
            "test": {**config["test"], "root": str(test_root), **(tested or {})},
        }
        corpus: CrossCorpus = build({**config, **sides, **choices}, cache=tmp_path / "cache")
        return corpus

    return make


def told(trees: Trees, name: str, emotions: list[str]) -> list[Told]:
    """What of a release has one of the emotions, excitement folded as the corpus's own node says."""
    folded = [
        entry._replace(emotion="happiness") if entry.emotion == "excitement" else entry for entry in trees[name][1]
    ]
    return [entry for entry in folded if entry.emotion in emotions]


@pytest.mark.slow(but=["iemocap-esd", "emodb-meld"])
@pytest.mark.parametrize(
    ("train", "test", "shared"),
    [
        ("iemocap", "esd", FOUR),
        ("esd", "iemocap", FOUR),
        ("emodb", "meld", [*FOUR, "fear", "disgust"]),
        ("meld", "iemocap", FOUR),
    ],
)
def test_the_classes_are_those_that_both_have(
    train: str, test: str, shared: list[str], trees: Trees, cross: MakeCross
) -> None:
    corpus = cross(train, test)
    corpus.setup()
    assert corpus.emotions == shared
    expected = {}
    for name in (train, test):
        kept = told(trees, name, shared)
        if name == "esd":  # its node chooses English
            kept = [entry for entry in kept if entry.language == "en"]
        expected[name] = {(entry.id, CLEANING(entry.text), entry.emotion, entry.language) for entry in kept}
    columns = corpus.frame[["id", "text", "emotion", "language"]]
    trained, tested = (set(columns.iloc[rows].itertuples(index=False, name=None)) for rows in corpus.parts)
    assert trained == expected[train]
    assert tested == expected[test]
    assert sum(map(len, corpus.parts)) == len(corpus.frame)


@pytest.mark.parametrize("validation", ["speakers", "session", "random"])
def test_speakers_of_the_tested_corpus_never_train(validation: str, cross: MakeCross, trees: Trees) -> None:
    corpus = cross("iemocap", "emodb", validation=validation)
    corpus.setup()
    sides = {side: rows_of(corpus, rows) for side, rows in corpus.split._asdict().items()}
    assert set(sides["test"]["id"]) == {entry.id for entry in told(trees, "emodb", FOUR)}
    assert {*sides["train"]["id"], *sides["val"]["id"]} == {entry.id for entry in told(trees, "iemocap", FOUR)}
    speakers = {side: set(frame["speaker"]) for side, frame in sides.items()}
    assert not speakers["test"] & (speakers["train"] | speakers["val"])
    assert corpus.protocol_record() == {
        "corpus": "iemocap_to_emodb",
        "corpus_hash": digest_of(corpus.content),
        "shared_recordings": len(corpus.shared),
        "double_names": 0,
        "speaker_independent": True,
        "split": "cross_corpus",
        "fold": 0,
        "validation": validation,
    }
    if validation == "speakers":
        assert not speakers["train"] & speakers["val"]
        assert len(speakers["val"]) == 2  # a fifth of ten
    elif validation == "session":
        assert sides["val"]["session"].nunique() == 1
        assert not set(sides["train"]["session"]) & set(sides["val"]["session"])
    else:
        assert len(sides["val"]) == pytest.approx(0.2 * len(corpus.parts[0]), abs=1)


def test_speakers_of_the_same_name_in_two_corpora_are_two(cross: MakeCross, tmp_path: Path) -> None:
    releases.meld(tmp_path / "meld", (30, 8, 7), seconds=0.05, shared=True)
    releases.emodb(tmp_path / "emodb", each=1, seconds=0.05, shared=True)
    for path in (tmp_path / "meld").glob("*.csv"):  # one of MELD's is called as one of EMO-DB's
        path.write_text(path.read_text().replace(",Ross,", ",03,"))
    corpus = cross("meld", "emodb", roots=(tmp_path / "meld", tmp_path / "emodb"))
    corpus.setup()
    assert {"meld/03", "emodb/03"} <= set(corpus.frame["speaker"])
    assert corpus.protocol_record()["speaker_independent"] is True


def test_each_corpus_is_encoded_by_itself_and_only_one_trains_tokenizers(cross: MakeCross, trees: Trees) -> None:
    corpus = cross("iemocap", "emodb")
    corpus.load()
    assert [set(corpus.frame["language"].iloc[rows]) for rows in corpus.parts] == [{"en"}, {"de"}]
    texts = [CLEANING(entry.text) for entry in told(trees, "iemocap", FOUR)]
    assert Counter(corpus.training_texts) == Counter(texts)


def test_nested_keys_choose_within_each_corpus(cross: MakeCross, trees: Trees) -> None:
    corpus = cross(
        "iemocap",
        "esd",
        trained={"emotions": ["anger", "sadness", "frustration"]},
        tested={"language": "zh", "emotions": None},
    )
    corpus.load()
    assert corpus.emotions == ["anger", "sadness"]
    assert set(corpus.frame["language"].iloc[corpus.parts[1]]) == {"zh"}
    reasons = Counter(item.reason for item in corpus.left_out)
    assert reasons["emotion frustration is not one of both corpora"] == 10
    assert {item.where.partition(":")[0] for item in corpus.left_out} == {"iemocap", "esd"}


def test_labels_of_both_are_folded_before_the_classes_are_chosen(cross: MakeCross, trees: Trees) -> None:
    corpus = cross(
        "iemocap",
        "emodb",
        trained={"emotions": [*FOUR, "frustration"]},
        label_map={"frustration": "negative", "boredom": "negative"},
        emotions=["negative", "neutral"],
    )
    corpus.setup()
    assert corpus.emotions == ["negative", "neutral"]
    counts = [Counter(corpus.frame["emotion"].iloc[rows]) for rows in corpus.parts]
    assert counts == [{"negative": 10, "neutral": 10}, {"negative": 10, "neutral": 10}]


def test_a_label_map_that_names_no_emotion_is_refused(cross: MakeCross) -> None:
    with pytest.raises(InputError, match=r"data\.label_map: .* no emotion joyy"):
        cross("iemocap", "emodb", label_map={"joyy": "happiness"}).load()


def test_corpora_without_two_shared_classes_are_refused_with_what_they_have(cross: MakeCross) -> None:
    one = cross("iemocap", "emodb", trained={"emotions": ["anger", "frustration"], "label_map": {}})
    with pytest.raises(InputError, match=r"iemocap has anger, frustration, emodb has anger, .*boredom\. Expected two"):
        one.load()
    both = cross("iemocap", "emodb", emotions=["anger", "boredom"])
    with pytest.raises(InputError, match=r"and all of data\.emotions among them"):
        both.load()


@pytest.mark.parametrize(
    "choice", [{"split": "session"}, {"split": "speaker"}, {"fold": 1}, {"split_file": "split.csv"}]
)
def test_another_split_is_refused(choice: dict[str, Any], cross: MakeCross) -> None:
    with pytest.raises(InputError, match=r"data=cross_corpus: .* leave data\.split, data\.fold and data\.split_file"):
        cross("iemocap", "emodb", **choice)


def test_a_training_corpus_that_cannot_validate_is_refused(cross: MakeCross, tmp_path: Path) -> None:
    releases.emodb(tmp_path / "one", ["03"], each=2, seconds=0.05, shared=True)
    one = (tmp_path / "one", tmp_path / "one")
    with pytest.raises(InputError, match="train on in emodb"):
        cross("emodb", "iemocap", roots=(one[0], cross("emodb", "iemocap").test.source)).setup()
    with pytest.raises(InputError, match="session"):
        cross("emodb", "iemocap", validation="session").setup()


def test_two_halves_of_one_corpus_may_face_each_other(cross: MakeCross, trees: Trees) -> None:
    corpus = cross("esd", "esd", tested={"language": "zh"})
    corpus.setup()
    assert corpus.name == "esd_to_esd"
    assert corpus.protocol_record()["speaker_independent"] is True
    assert len(corpus.frame) == len(told(trees, "esd", FOUR))
    assert corpus.frame["id"].is_unique


def test_a_corpus_is_not_tested_on_itself(cross: MakeCross) -> None:
    with pytest.raises(InputError, match="both"):
        cross("emodb", "emodb").setup()


def test_faults_of_either_corpus_are_counted_and_an_error_where_that_is_asked_for(
    cross: MakeCross, trees: Trees, tmp_path: Path
) -> None:
    root = tmp_path / "iemocap"
    entries = releases.iemocap(root, {"ang": 10, "sad": 10}, seconds=0.05)
    (root / entries[0].audio).unlink()
    for roots, names in (
        ((root, trees["emodb"][0]), ("iemocap", "emodb")),
        ((trees["emodb"][0], root), ("emodb", "iemocap")),
    ):
        choices: dict[str, Any] = {"trained" if names[0] == "iemocap" else "tested": {"emotions": None}}
        corpus = cross(*names, roots=roots, **choices)
        summary = json.loads((corpus.prepare() / "summary.json").read_text(encoding="utf-8"))
        assert summary["left_out"][NO_RECORDING]["count"] == 1
        assert summary["left_out"][NO_RECORDING]["fault"] is True
        assert summary["left_out"][NO_RECORDING]["first"][0].startswith(f"{entries[0].id} (iemocap: Session1/dialog/")
        with pytest.raises(InputError, match="1 fault: 1 x label without a recording"):
            cross(*names, roots=roots, **choices, strict=True).load()


def test_what_was_prepared_is_the_same_from_everywhere_and_can_be_read(
    cross: MakeCross, trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = trees["iemocap"][0].parent
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(root))
    folders = [
        cross("iemocap", "emodb", roots=roots).prepare()
        for roots in ((root / "iemocap", root / "emodb"), ("iemocap", "emodb"), ("./iemocap", "~/emodb"))
    ]
    assert len(set(folders)) == 1
    corpus = cross("iemocap", "emodb")
    corpus.load()
    frame = read_manifest(folders[0] / "manifest.csv", corpus.audio_root)
    pd.testing.assert_series_equal(frame["audio"], corpus.frame["audio"], check_dtype=False)
    assert frame["id"].tolist() == corpus.frame["id"].tolist()
    assert found(corpus)


def test_a_run_ends_well_and_tests_the_other_corpus(trees: Trees, train: Train) -> None:
    metrics = train(
        "data=cross_corpus",
        "data@data.train=iemocap",
        "data@data.test=emodb",
        f"data.train.root={trees['iemocap'][0]}",
        f"data.test.root={trees['emodb'][0]}",
    )
    assert metrics["finished"] is True
    assert metrics["corpus"] == "iemocap_to_emodb"
    assert metrics["split"] == "cross_corpus"
    assert metrics["speaker_independent"] is True
