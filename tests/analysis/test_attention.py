"""Attention maps of single utterances, and the modalities' shares."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from fourm_ser.analysis import attention_maps
from fourm_ser.analysis.attention import _first_token, _heat_map, attention
from fourm_ser.analysis.attention_maps import read_blocks
from fourm_ser.analysis.attention_shares import read_shares
from fourm_ser.analysis.examples import Example, choose_examples
from fourm_ser.analysis.findings import UnsuitedError, write_finding
from fourm_ser.analysis.words import Words
from fourm_ser.fusion.base import Fusion, MapAxes
from fourm_ser.fusion.concat import ConcatFusion
from fourm_ser.fusion.cross_attention import CrossAttentionFusion
from fourm_ser.fusion.unimodal import UnimodalFusion
from fourm_ser.runs.finished import OpenRun
from tests.drawn import Drawn, distance, lightness, names, pixels
from tests.fusion.sequences import train_a_little


@pytest.fixture(scope="module")
def opened(two_stage_run: Path) -> OpenRun:
    return OpenRun(two_stage_run)


@pytest.fixture(scope="module")
def examples(opened: OpenRun) -> list[Example]:
    return choose_examples(opened, "test", [], 1, 1)


def refitted(run_dir: Path, kind: type[Fusion], **arguments: object) -> OpenRun:
    """The run with another fusion, which has been trained a little."""
    opened = OpenRun(run_dir)
    network = opened.network
    dims = {modality: encoder.dim for modality, encoder in network.by_modality.items()}
    network.fusion = train_a_little(kind(dims=dims, **arguments))
    for modality in set(network.by_modality) - set(network.fusion.modalities):
        del network.encoders[modality]
    return opened


def alone(opened: OpenRun, row: int) -> tuple[Mapping[str, np.ndarray], int, int]:
    """An utterance's maps, mean over the heads, and its tokens and frames: from its raw content, by itself."""
    given, lengths = [], {}
    for modality in ("text", "audio"):
        encoder = opened.network.by_modality.get(modality)
        inputs = None
        if encoder is not None:
            inputs = encoder.collate([encoder.frontend(opened.data.readers()[modality](row))])
            lengths[modality] = encoder(inputs).mask.shape[1]
        given.append(inputs)
    with torch.no_grad():
        output = opened.network(*given, return_attention=True)
    maps = {name: weights[0].mean(0).numpy() for name, weights in output.attention.items()}
    return maps, lengths.get("text", 0), lengths.get("audio", 0)


def test_maps_are_those_of_the_utterance_alone(opened: OpenRun, examples: list[Example]) -> None:
    blocks = read_blocks(opened, examples)
    for example in examples:
        maps, tokens, frames = alone(opened, example.row)
        both = maps["fusion"]
        assert both.shape == (tokens + frames, tokens + frames)
        found = {(block.map, block.queries.modality, block.keys.modality): block for block in blocks[example.row]}
        audio = found["fusion", "audio", "audio"].weights.mean(0)
        assert audio == pytest.approx(both[tokens:, tokens:], abs=1e-4)
        # A word's attention is the mean of its tokens'; attention to a word is the sum over its tokens.
        words = found["fusion", "text", "audio"].queries.words
        assert words is not None
        for number in range(len(words.names)):
            own = np.flatnonzero(words.indices == number)
            asking = found["fusion", "text", "audio"].weights.mean(0)[number]
            assert asking == pytest.approx(both[own, tokens:].mean(0), abs=1e-4)
            asked = found["fusion", "audio", "text"].weights.mean(0)[:, number]
            assert asked == pytest.approx(both[tokens:, own].sum(1), abs=1e-4)
            by_text = found["text", "text", "text"].weights.mean(0)[0, number]
            assert by_text == pytest.approx(maps["text"][0, own].sum(), abs=1e-4)


def test_what_is_asked_of_both_modalities_sums_to_one(opened: OpenRun, examples: list[Example]) -> None:
    for blocks in read_blocks(opened, examples).values():
        for query in ("text", "audio"):
            own = [block for block in blocks if block.map == "fusion" and block.queries.modality == query]
            assert len(own) == 2
            total = sum(block.weights.sum(2) for block in own)
            assert total == pytest.approx(np.ones_like(total), abs=1e-5)
            assert sum(block.even.sum() for block in own) == pytest.approx(1)


def test_the_finding_of_an_utterance_holds_both_directions(
    opened: OpenRun, examples: list[Example], tmp_path: Path
) -> None:
    findings = attention(opened, examples, "test")
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names) == len(examples) + 2
    assert names[-2:] == ["attention-first-token", "attention-shares"]
    table = findings[0].table
    pairs = set(zip(table["query_modality"], table["key_modality"], strict=True))
    assert pairs == {("text", "audio"), ("audio", "text")}
    heads = read_blocks(opened, examples[:1])[examples[0].row][0].weights.shape[0]
    assert set(table["head"]) == {"mean", *map(str, range(1, heads + 1))}
    keys = ["query_modality", "query", "key"]
    by_head = table[table["head"] != "mean"].groupby(keys)["weight"].mean()
    assert by_head.to_numpy() == pytest.approx(table[table["head"] == "mean"].groupby(keys)["weight"].mean().to_numpy())
    seconds = examples[0].seconds
    assert table["key_end"].max() == table["query_end"].max() == pytest.approx(seconds - 0.0125, abs=0.0125)
    assert examples[0].text in str(findings[0].figure.get_suptitle())  # type: ignore[union-attr]
    write_finding(findings[0], tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".png", ".svg"]


def test_the_first_token_s_attention_is_over_words_and_the_rest_is_audio_s(
    opened: OpenRun, examples: list[Example]
) -> None:
    table = next(found for found in attention(opened, examples, "test") if found.name == "attention-first-token").table
    assert table.groupby(["id", "map"])[["weight", "even"]].sum().to_numpy() == pytest.approx(1, abs=1e-5)
    for example in examples:
        maps, tokens, _ = alone(opened, example.row)
        rest = table[(table["id"] == example.id) & (table["word"] == "(all audio frames)")]
        assert rest["map"].tolist() == ["fusion"]
        assert rest["weight"].item() == pytest.approx(maps["fusion"][0, tokens:].sum(), abs=1e-4)


def test_shares_are_means_over_the_utterances_own_queries(opened: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = read_shares(opened, "test")
    rows = opened.corpus.rows("test")
    assert len(shares) == len(rows) * 6  # three kinds of query, two of keys
    found = shares.set_index(["row", "queries", "keys"]).sort_index()
    for row in rows[:6]:
        maps, tokens, frames = alone(opened, row)
        both = maps["fusion"]
        expected = {
            "text": both[:tokens, :tokens].sum(1).mean(),
            "audio": both[tokens:, :tokens].sum(1).mean(),
            "first token": both[0, :tokens].sum(),
        }
        for asking, share in expected.items():
            assert found.loc[(row, asking, "text"), "share"] == pytest.approx(share, abs=1e-4)
            assert found.loc[(row, asking, "text"), "even"] == pytest.approx(tokens / (tokens + frames))
    monkeypatch.setattr(attention_maps, "HELD", 1)  # each utterance by itself
    by_one = read_shares(opened, "test").set_index(["row", "queries", "keys"]).sort_index()
    pd.testing.assert_frame_equal(by_one, found, atol=1e-5)


def test_shares_are_averaged_by_emotion(opened: OpenRun, examples: list[Example]) -> None:
    table = attention(opened, examples, "test")[-1].table
    shares = read_shares(opened, "test")
    for row in table.to_dict("records"):
        own = shares[(shares["queries"] == row["queries"]) & (shares["keys"] == row["keys"])]
        if row["emotion"] != "all":
            own = own[own["emotion"] == row["emotion"]]
        assert (row["utterances"], row["share"]) == (len(own), pytest.approx(own["share"].mean()))
    assert table.groupby(["queries", "emotion"])[["share", "even"]].sum().to_numpy() == pytest.approx(1, abs=1e-5)


def test_cross_attention_s_maps_go_by_who_asks(two_stage_run: Path, examples: list[Example]) -> None:
    crossed = refitted(
        two_stage_run, CrossAttentionFusion, modalities=["text", "audio"], dim=128, heads=4, dropout=0.0, pool="mean"
    )
    findings = attention(crossed, examples, "test")
    assert len(findings) == len(examples)  # nothing asks both, and no token asks words
    maps, tokens, frames = alone(crossed, examples[0].row)
    assert (maps["text"].shape, maps["audio"].shape) == ((frames, tokens), (tokens, frames))
    for block in read_blocks(crossed, examples[:1])[examples[0].row]:
        assert (block.keys.modality, block.queries.modality) in (("text", "audio"), ("audio", "text"))
        assert block.map == block.keys.modality
        words = block.queries.words or block.keys.words
        assert words is not None
        expected = maps[block.map]
        expected = words.mean(expected) if block.map == "audio" else words.sum(expected, axis=1)
        assert block.weights.mean(0) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_one_modality_asks_itself(two_stage_run: Path, examples: list[Example], modality: str) -> None:
    single = refitted(two_stage_run, UnimodalFusion, modalities=[modality], dim=128, heads=4, dropout=0.0, pool="mean")
    findings = attention(single, examples[:1], "test")
    assert [finding.name.split("-")[1] for finding in findings] == (["1", "first"] if modality == "text" else ["1"])
    table = findings[0].table
    assert set(table["query_modality"]) == set(table["key_modality"]) == {modality}
    sums = table[table["head"] == "mean"].groupby("query")["weight"].sum()
    assert sums.to_numpy() == pytest.approx(1, abs=1e-5)


def test_a_large_map_has_no_map_a_head(
    opened: OpenRun, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourm_ser.analysis.attention.LARGEST", 10)
    assert set(attention(opened, examples[:1], "test")[0].table["head"]) == {"mean"}


def test_a_fusion_without_attention_is_named(two_stage_run: Path, examples: list[Example]) -> None:
    both = {"text": 8, "audio": 8}
    pools = {"text": "mean", "audio": "mean"}
    plain = refitted(two_stage_run, ConcatFusion, modalities=["text", "audio"], project=both, pool=pools)
    with pytest.raises(UnsuitedError, match="ConcatFusion has no attention"):
        attention(plain, examples, "test")


WORDS = Words(["[CLS]", "very", "good", "[SEP]"], np.array([0, 1, 1, 2, 3]), np.array([True, False, False, True]))
EDGES = np.array([0.0, 0.3, 0.5, 1.0, 1.2, 1.5])


@pytest.mark.parametrize(("query", "key"), list(product(("text", "audio"), repeat=2)))
def test_a_cell_of_a_map_has_the_colour_of_its_query_and_key(query: str, key: str) -> None:
    sides = {"text": attention_maps.Axis("text", WORDS, None), "audio": attention_maps.Axis("audio", None, EDGES)}
    rows, columns = sides[query], sides[key]
    weights = np.random.default_rng(0).uniform(0.0, 0.3, (2, len(rows), len(columns)))
    even = columns.sizes / columns.sizes.sum()
    figure = Figure(figsize=(9.5, 5.0), layout="constrained")
    axes, bar = figure.subplots(1, 2, width_ratios=[1, 0.03])
    _heat_map(axes, bar, attention_maps.MapBlock("self", rows, columns, weights, even), 1.5)
    drawn = Drawn(figure)
    # Frames lie along the seconds wherever words can be the rows.
    across, down = (rows, columns) if (query, key) == ("audio", "text") else (columns, rows)
    shades = []
    for (row, column), value in np.ndenumerate(weights.mean(0) / even):
        at_x, at_y = (row, column) if across is not columns else (column, row)
        x, y = place_of(axes.xaxis, across, at_x), place_of(axes.yaxis, down, at_y, downwards=True)
        colour = drawn.colour(x, y)
        assert distance(colour, drawn.bar_colour(bar.yaxis, value)) < 0.03
        shades.append((value, lightness(colour)))
    light = np.array([shade for _, shade in sorted(shades)])
    assert (np.diff(light) > -0.01).all()
    assert light[-1] - light[0] > 0.3


def place_of(axis: Any, side: attention_maps.Axis, place: int, downwards: bool = False) -> float:
    """Where on the page a word, or the middle of a frame, is by the names or seconds at an axis."""
    if side.words is not None:
        order = sorted(names(axis), key=names(axis).__getitem__, reverse=downwards)
        assert order == side.words.names
        return names(axis)[side.words.names[place]]
    assert side.edges is not None
    middle = float(side.edges[place : place + 2].mean())
    if not downwards:
        return float(pixels(axis, middle))
    written = {float(name): at for name, at in names(axis).items()}
    slope, start = np.polyfit(list(written), list(written.values()), 1)
    assert slope < 0
    return float(start + slope * middle)


def test_the_first_token_s_words_are_the_lighter_the_more_they_are_attended_to() -> None:
    example = Example(0, "u1", "very good", 1.5, "anger", "anger", 0.9, "the surest anger")
    text = attention_maps.Axis("text", WORDS, None)
    given = np.array([[0.1, 0.5, 0.3, 0.1], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.2, 0.2, 0.2, 0.4]])
    block = attention_maps.MapBlock("self", text, text, given[None], text.sizes / 5)
    figure = _first_token([example], {0: [block]}, {"self": MapAxes(("text",), ("text",))}).figure
    assert figure is not None
    drawn = Drawn(figure)
    (axes,) = figure.axes
    shades = []
    for name, value in zip(WORDS.names, given[0] / [0.2, 0.4, 0.2, 0.2], strict=True):
        (text_of,) = [text for text in axes.texts if text.get_text() == name]
        at = text_of.get_transform().transform(text_of.get_position())
        (box,) = [box for box in (patch.get_window_extent() for patch in axes.patches) if box.contains(*at)]
        shades.append((value, lightness(drawn.colour(box.x0 + 3, box.y0 + 3))))
    light = np.array([shade for _, shade in sorted(shades)])
    values = np.array([value for value, _ in sorted(shades)])
    assert (np.diff(light)[np.diff(values) > 1e-9] > 0.02).all()
