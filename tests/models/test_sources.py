"""What is said of transcripts and encoders before anything is encoded."""

import logging
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fourm_ser.data.batch import Raw, Source, Stored, Summarised
from fourm_ser.data.transcripts import Cleaning
from fourm_ser.encoders import padding
from fourm_ser.encoders.base import Encoder, Resources
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError
from fourm_ser.models.directory import Conditions, Model
from fourm_ser.models.network import EmotionNetwork, build_network
from fourm_ser.models.sources import check_transcripts, compare_cleaning, summarised
from fourm_ser.prediction.items import Item, Window
from fourm_ser.prediction.loading import WindowDataset
from fourm_ser.training.experiment import run
from tests.conftest import Compose
from tests.prediction.predictors import TEXTS, TINY

KNOWN, UNKNOWN = "every happy door", "☃ ☃ ☃"


@pytest.fixture(scope="module")
def networks(composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, EmotionNetwork]:
    """A network that reads text, at most eight tokens of it, and one that reads audio alone."""
    cache = tmp_path_factory.mktemp("cache")

    def build(*overrides: str) -> EmotionNetwork:
        config = composed("encoder=tiny", *TINY, "encoder.text.max_tokens=8", *overrides)
        return build_network(config, 2, Resources(cache, TEXTS))

    return {"text": build("fusion=text_attention"), "audio": build("fusion=audio_attention")}


@pytest.mark.parametrize("unfrozen", [False, True])
def test_encoders_that_feel_their_neighbours_are_refused_before_anything_is_encoded_or_trained(
    unfrozen: bool,
    composed: Compose,
    slice_of_demo: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(padding, "measure_padding", lambda encoder: 0.5 if encoder.modality == "audio" else 0.0)
    stage = "stage=finetune" if unfrozen else "stage=transfer"
    config = composed(*slice_of_demo, stage, "data.utterances=40", f"cache={tmp_path / 'cache'}")
    with pytest.raises(InputError, match=r"encoder\.audio: tiny_lstm .* differ by 0\.5 of their size"):
        run(config, tmp_path / "run")
    assert not list(tmp_path.rglob("shard-*"))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("overrides", "others", "expected"),
    [
        (["fusion=statistics"], (), True),
        (["fusion=statistics"], ("audio",), True),
        (["fusion=statistics"], ("text",), False),
        (["fusion=statistics", "encoder.text.layer=weighted"], (), False),
        (["fusion=statistics", "encoder.text.layer=[0,1]"], (), True),
        (["fusion=concat"], (), False),
    ],
)
def test_stored_frames_that_the_fusion_alone_reads_are_summarised(
    composed: Compose, tmp_path: Path, overrides: list[str], others: tuple[str, ...], expected: bool
) -> None:
    config = composed("encoder=tiny", *TINY[:3], *overrides)
    network = build_network(config, 2, Resources(tmp_path, TEXTS))
    store = FeatureStore(root=tmp_path, name="encoder", fingerprint="fingerprint", made_by={})
    sources: dict[str, Source] = {"text": Stored(store, []), "audio": Raw(str, network.by_modality["audio"].frontend)}
    found = summarised(network, sources, others)
    assert found["audio"] is sources["audio"]  # it is computed in every epoch
    assert isinstance(found["text"], Summarised) == expected
    assert expected or found["text"] is sources["text"]
    store.close()


def test_mostly_unknown_transcripts_are_refused_in_the_words_of_a_prediction(
    networks: Mapping[str, EmotionNetwork],
) -> None:
    with pytest.raises(InputError) as caught:
        check_transcripts(networks["text"], [KNOWN, UNKNOWN, UNKNOWN, UNKNOWN])
    message = str(caught.value)
    assert message.startswith("data: the transcripts: 9 of ")
    encoders: dict[str, Encoder] = {"text": networks["text"].by_modality["text"]}
    with pytest.raises(InputError) as predicted:
        WindowDataset(encoders, None, []).tokens(UNKNOWN)
    assert str(predicted.value).partition(" tokens are ")[2] == message.partition(" tokens are ")[2]
    check_transcripts(networks["audio"], [UNKNOWN])  # which nothing reads


@pytest.mark.parametrize(("known", "unknown", "refused"), [(1, 0, False), (1, 1, False), (1, 2, True), (20, 21, True)])
def test_each_utterance_counts_and_half_is_not_most(
    networks: Mapping[str, EmotionNetwork], known: int, unknown: int, refused: bool
) -> None:
    frontend = networks["text"].by_modality["text"].frontend
    assert frontend.known(frontend.ids("calm")) == (1, 0)  # type: ignore[attr-defined]
    texts = ["calm"] * known + ["☃"] * unknown + [""]
    if refused:
        with pytest.raises(InputError, match=f"{unknown} of {known + unknown} tokens are unknown"):
            check_transcripts(networks["text"], texts)
    else:
        check_transcripts(networks["text"], texts)


def test_transcripts_that_are_cut_are_counted_each_time_they_are_said(
    networks: Mapping[str, EmotionNetwork], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = networks["text"].by_modality["text"]
    fits, long = " ".join(["calm"] * 6), " ".join(["calm"] * 7)  # and two special tokens
    with caplog.at_level(logging.INFO, "fourm_ser"):
        check_transcripts(networks["text"], [fits, "", KNOWN])
        assert caplog.text == ""
        check_transcripts(networks["text"], [fits, long, long, f"{long} calm"])
    assert "data: cut 3 transcripts to 8 tokens" in caplog.text
    # Looking at whole transcripts leaves the front end as it was.
    assert [len(encoder.frontend(text)["ids"]) for text in (fits, long)] == [8, 8]


@pytest.mark.parametrize(("clean", "warned"), [(["a"], False), (["b"], True), ([], True)])
def test_a_corpus_cleaned_in_another_way_than_the_model_s_is_warned_of(
    networks: Mapping[str, EmotionNetwork], caplog: pytest.LogCaptureFixture, clean: list[str], warned: bool
) -> None:
    corpus: Any = types.SimpleNamespace(cleaning=Cleaning(["a"]))
    conditions = Conditions([], "32", "32-true", None, clean=clean)
    with caplog.at_level(logging.WARNING):
        compare_cleaning(Model(networks["audio"], ["a", "b"], conditions), corpus)
        assert caplog.text == ""
        compare_cleaning(Model(networks["text"], ["a", "b"], conditions), corpus)
    said = f"data.clean=[a]: the model was trained on transcripts of data.clean={'[b]' if clean else 'none'}"
    assert (said in caplog.text) is warned


@pytest.mark.parametrize(("word", "warned"), [(None, False), ("NULL", True)])
def test_a_corpus_whose_empty_transcripts_become_another_word_is_warned_of(
    networks: Mapping[str, EmotionNetwork], caplog: pytest.LogCaptureFixture, word: str | None, warned: bool
) -> None:
    corpus: Any = types.SimpleNamespace(cleaning=Cleaning("none"))
    conditions = Conditions([], "32", "32-true", None, clean=[], empty_text=word)
    with caplog.at_level(logging.WARNING):
        compare_cleaning(Model(networks["text"], ["a", "b"], conditions), corpus)
    assert ("data.empty_text=null: the model was trained with data.empty_text=NULL" in caplog.text) is warned


def test_a_prediction_puts_the_word_that_training_put_for_an_empty_text(networks: Mapping[str, EmotionNetwork]) -> None:
    encoders: dict[str, Encoder] = {"text": networks["text"].by_modality["text"]}
    for empty, expected in ((None, ""), ("calm", "calm")):
        row = WindowDataset(encoders, None, [r"\[.*?\]"], empty).prepare(Window(1.0, (0, 0), Item(None, " [SIGH]")))
        assert row.text == expected


def test_a_prediction_takes_out_what_training_took_out(networks: Mapping[str, EmotionNetwork], tmp_path: Path) -> None:
    encoders: dict[str, Encoder] = {"text": networks["text"].by_modality["text"]}
    for clean, left in (
        (["calm"], "every happy [SIGH]"),
        ([], "every calm happy [SIGH]"),
        ([r"\[.*?\]"], "every calm happy"),
    ):
        row = WindowDataset(encoders, None, clean).prepare(Window(1.0, (0, 0), Item(None, " every calm  happy [SIGH]")))
        assert row.text == left
        assert row.inputs["text"]["ids"].tolist() == encoders["text"].frontend(left)["ids"].tolist()
