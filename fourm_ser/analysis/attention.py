"""What attends to what in a fusion: maps of single utterances, and how much goes to each modality."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fourm_ser.analysis.attention_maps import MapBlock, read_blocks
from fourm_ser.analysis.attention_shares import read_shares, share_finding
from fourm_ser.analysis.examples import Example, draw_waveform, file_stem, read_waveform, told_pooling
from fourm_ser.analysis.findings import Finding, UnsuitedError
from fourm_ser.analysis.word_cells import INCHES, WIDTH, count_lines, draw_words, prepare_axes
from fourm_ser.analysis.words import Words
from fourm_ser.fusion.base import LEARNED, MapAxes
from fourm_ser.runs.finished import OpenRun

LARGEST = 20_000  # rows of a table with a map a head; larger ones have the mean over the heads alone
PALETTE = "viridis"
WHO = {"text": "words", "audio": "frames", LEARNED: "learned weights"}
LEFT = 12  # columns before the words, for the map's name


def attention(run: OpenRun, examples: Sequence[Example], side: str) -> list[Finding]:
    """Attention maps of utterances over time and words, the first token's attention, and the modalities' shares.

    Returns:
        A finding an utterance; `attention-first-token` where the text attends to itself; `attention-shares` of the
        whole side where text and audio are asked together.

    Raises:
        UnsuitedError: the fusion has no attention.
    """
    fusion = run.network.fusion
    if not fusion.maps:
        raise UnsuitedError(f"The fusion {type(fusion).__name__} has no attention: there are no maps to look at.")
    blocks = read_blocks(run, examples)
    findings = [
        _draw_maps(run, number, example, blocks[example.row]) for number, example in enumerate(examples, start=1)
    ]
    if any("text" in axes.queries and "text" in axes.keys for axes in fusion.maps.values()) and examples:
        findings.append(_first_token(examples, blocks, fusion.maps))
    if any(len(axes.keys) > 1 for axes in fusion.maps.values()):
        findings.append(share_finding(read_shares(run, side), run, side))
    return findings


def _draw_maps(run: OpenRun, number: int, example: Example, blocks: Sequence[MapBlock]) -> Finding:
    # One modality with the other; where a fusion reads one modality, that with itself.
    drawn = [block for block in blocks if block.queries.modality != block.keys.modality] or blocks
    heads = len(drawn[0].weights)
    with_heads = sum(block.weights.size for block in drawn) * (1 + 1 / heads) <= LARGEST
    table = pd.concat([_table(block, with_heads) for block in drawn], ignore_index=True)
    has_audio = any("audio" in (block.queries.modality, block.keys.modality) for block in drawn)
    heights = [_height(block) for block in drawn]
    total = sum(heights) + 1.0 * has_audio + 0.4 * len(drawn) + 0.9
    figure = Figure(figsize=(9.5, total), layout="constrained")
    ratios = [0.8] * has_audio + heights
    grid = figure.add_gridspec(len(ratios), 2, width_ratios=[1, 0.018], height_ratios=ratios)
    if has_audio:
        top = figure.add_subplot(grid[0, 0])
        draw_waveform(top, read_waveform(run, example))
    for row, block in enumerate(drawn, start=int(has_audio)):
        axes = figure.add_subplot(grid[row, 0])
        _heat_map(axes, figure.add_subplot(grid[row, 1]), block, example.seconds)
    figure.suptitle(example.heading, fontsize="medium")
    caption = f"Chosen: {example.why}.{told_pooling(run.network)}"
    method = (
        f"Colours are the mean over {heads} heads in multiples of even attention: 1 is what a token or frame gets "
        "where nothing is preferred. Words and frames are features behind the encoders, which have seen their "
        "neighbours. "
        + ("The table has each head's map, too." if with_heads else "The table has the mean over the heads alone.")
    )
    seen = "A waveform and below it heat maps of attention" if has_audio else "A heat map of attention"
    return Finding(
        f"attention-{file_stem(number, example)}",
        f"Attention in {example.id}",
        caption,
        table,
        figure,
        f"{seen}: {', '.join(_asks(block) for block in drawn)}, for the utterance “{example.text}”.",
        _strongest(drawn),
        method,
    )


def _asks(block: MapBlock) -> str:
    return f"{WHO[block.queries.modality]} ask {WHO[block.keys.modality]}"


def _height(block: MapBlock) -> float:
    """Inches: each word takes a row, frames by frames are a square's half."""
    words = [len(axis) for axis in (block.queries, block.keys) if axis.words is not None]
    return max(0.6, 0.17 * max(words) + 0.3) if words else 4.0


def _heat_map(axes: Axes, bar: Axes, block: MapBlock, seconds: float) -> None:
    """Frames along the seconds, words as rows; where only one modality is there, queries are the rows."""
    weights = block.times_even
    rows, columns = block.queries, block.keys
    if rows.modality != "text" and columns.modality == "text":
        rows, columns, weights = columns, rows, weights.T
    edges = [np.arange(len(axis) + 1) - 0.5 if axis.edges is None else axis.edges for axis in (columns, rows)]
    image = axes.pcolormesh(*edges, weights, cmap=PALETTE, vmin=0.0, rasterized=True)
    for axis, setter, limits in ((columns, axes.set_xticks, axes.set_xlim), (rows, axes.set_yticks, axes.set_ylim)):
        if axis.words is not None:
            names = [name.replace("$", r"\$") for name in axis.words.names]
            setter(range(len(names)), names, fontsize="small")
            limits(-0.5, len(names) - 0.5)
        else:
            limits(0, seconds)
    axes.invert_yaxis()
    if columns.words is not None:
        axes.tick_params(axis="x", rotation=60)
    else:
        axes.set_xlabel("seconds", fontsize="small")
    if rows.words is None:
        axes.set_ylabel("seconds of the query", fontsize="small")
    axes.tick_params(labelsize="small")
    axes.set_title(f"map “{block.map}”: {_asks(block)}", fontsize="small", loc="left")
    axes.figure.colorbar(image, cax=bar)
    bar.tick_params(labelsize="x-small")
    bar.set_ylabel("times even", fontsize="x-small")


def _table(block: MapBlock, with_heads: bool) -> pd.DataFrame:
    query, key = (indices.flatten() for indices in np.indices(block.weights.shape[1:]))
    sides = {**block.queries.columns("query", query), **block.keys.columns("key", key)}
    maps = {"mean": block.weights.mean(0)}
    if with_heads:
        maps.update({str(head): weights for head, weights in enumerate(block.weights, start=1)})
    parts = [
        pd.DataFrame({"map": block.map, "head": head, **sides, "weight": weights.flatten(), "even": block.even[key]})
        for head, weights in maps.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _strongest(blocks: Sequence[MapBlock], count: int = 5) -> pd.DataFrame:
    """What is attended to most in each map, as the mean over what asks, for the page."""
    rows = []
    for block in blocks:
        means = block.times_even.mean(0)
        for index in np.argsort(-means, kind="stable")[:count]:
            rows.append((block.map, _asks(block), block.keys.name(int(index)), means[index]))
    return pd.DataFrame(rows, columns=["map", "direction", "attended to", "times even"])


def _first_token(
    examples: Sequence[Example], blocks: Mapping[int, Sequence[MapBlock]], maps: Mapping[str, MapAxes]
) -> Finding:
    """What the first token asks of the words, in each map in which text asks text."""
    rows: list[dict[str, object]] = []
    lines: list[tuple[Example, list[tuple[str, Words, np.ndarray]]]] = []
    for example in examples:
        own = []
        for block in blocks[example.row]:
            words = block.keys.words
            if block.queries.modality != "text" or words is None:
                continue
            # The first word is the first token alone: [CLS], <s>.
            weights = block.weights[:, 0].mean(0)
            shares = np.append(weights, max(0.0, 1.0 - float(weights.sum())))
            even = np.append(block.even, max(0.0, 1.0 - float(block.even.sum())))
            names, label = words.names, block.map
            if "audio" in maps[block.map].keys:
                names, label = [*names, "(all audio frames)"], f"{label}: {100 * (1 - shares[-1]):.0f}%"
            own.append((label, words, block.times_even[0]))
            for number, name in enumerate(names):
                about = {"id": example.id, "map": block.map, "number": number + 1, "word": name}
                rows.append({**about, "weight": shares[number], "even": even[number]})
        lines.append((example, own))
    counts = [1.3 + sum(count_lines(words.names, WIDTH - LEFT) + 0.15 for _, words, _ in own) for _, own in lines]
    figure = Figure(figsize=(9.5, INCHES * (sum(counts) + 2.5)), layout="constrained")
    axes = figure.subplots()
    prepare_axes(axes, sum(counts))
    palette = colormaps[PALETTE]
    top = 0.0
    for (example, own), count in zip(lines, counts, strict=True):
        axes.text(0, top + 0.75, example.title, fontsize="small", va="center")
        line = top + 1.2
        for label, words, times in own:
            axes.text(0, line + 0.5, label, fontsize="small", va="center")
            draw_words(axes, words.names, times / times.max(), palette, line, LEFT)
            line += count_lines(words.names, WIDTH - LEFT) + 0.15
        top += count
    figure.suptitle("What the first token attends to (colour: from none to the most in the line)", fontsize="medium")
    table = pd.DataFrame(rows)
    hears = any("audio" in axes.keys for axes in maps.values())
    share = " Where audio is asked, too, the figure gives the share of all words together." if hears else ""
    return Finding(
        "attention-first-token",
        "Attention of the first token",
        "How much the first token (such as [CLS]) attends to each word.",
        table,
        figure,
        "The words of each utterance as cells, coloured by how much the first token attends to them.",
        _foremost(table),
        "Mean over the heads, in multiples of even attention. Colours are relative to the strongest word of each line: "
        "the table has the weights." + share,
    )


def _foremost(table: pd.DataFrame, count: int = 3) -> pd.DataFrame:
    """The words that each first token attends to most, a row a map."""
    times = (table["weight"] / table["even"]).round(2)
    words = table.assign(most=table["word"] + " (" + times.astype(str) + ")", times=times)
    words = words.sort_values("times", ascending=False, kind="stable")
    foremost = words.groupby(["id", "map"], sort=False)["most"].apply(lambda own: ", ".join(own.head(count)))
    order = pd.MultiIndex.from_frame(table[["id", "map"]].drop_duplicates())
    return foremost.reindex(order).rename("most (times even)").reset_index()
