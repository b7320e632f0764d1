"""A prepared corpus in numbers, for summary.json and for the terminal."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fourm_ser.data.names import Double, natural
from fourm_ser.data.release import LeftOut, by_reason
from fourm_ser.data.splits import SIDES, Split
from fourm_ser.terminal import make_table

GROUPS = ("session", "split", "speaker", "language")
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
ROWS = 24  # of a table: about as many as a terminal shows
SHOWN = 3  # examples of a fault; left_out.csv has all


def summarise(frame: pd.DataFrame, emotions: Sequence[str], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """What summary.json says of a loaded corpus's utterances, and of what it holds besides.

    Returns:
        Numbers of utterances in all, by emotion, and by session, official split, speaker and language (those it has)
        and emotion; hours; length percentiles in seconds; what is unusual in the recordings' levels; how many
        recordings stand there under several ids, on whichever side, and the first of these; and for each reason why
        something was left out whether it is a fault, how often it occurs, and the first places (left_out.csv has them
        all).
    """
    seconds = frame["duration"].to_numpy(dtype=float)
    return {
        "utterances": len(frame),
        "hours": round(float(seconds.sum()) / 3600, 4),
        "seconds": {
            f"p{share}": round(float(value), 3)
            for share, value in zip(PERCENTILES, np.percentile(seconds, PERCENTILES), strict=True)
        },
        "emotions": {emotion: int((frame["emotion"] == emotion).sum()) for emotion in emotions},
        **{f"by_{column}": _counts(frame, column, emotions) for column in GROUPS if (frame[column] != "").any()},
        "levels": level_counts(frame),
        "repeated": repeated_recordings(frame),
        "left_out": {
            reason: {
                "fault": any(item.fault for item in items),
                "count": len(items),
                "first": [f"{item.id} ({item.where})" for item in items[:SHOWN]],
            }
            for reason, items in by_reason(left_out).items()
        },
    }


def repeated_recordings(frame: pd.DataFrame) -> dict[str, Any]:
    """Recordings, or segments of them, that several utterances have: how many, and the ids of the first."""
    groups = frame.groupby(["digest", "start", "end"], sort=False, dropna=False)["id"].agg(list)
    several = [ids for ids in groups if len(ids) > 1]
    return {"count": len(several), "first": several[:SHOWN]}


def level_counts(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """How many utterances are used though something is unusual in their recordings' levels, by what, and the first."""
    unusual = {"clipped": frame["clipped"] > 0, "over full scale": frame["peak"] > 1.0}
    return {
        what: {"count": int(found.sum()), "first": frame["id"][found].tolist()[:SHOWN]}
        for what, found in unusual.items()
    }


def summarise_cleaning(cleaned: Mapping[str, Sequence[str]], used: Iterable[str]) -> dict[str, Any]:
    """What summary.json says of what was taken out of transcripts, by id, of the utterances that are used.

    Returns:
        How many transcripts changed, how often each tag was taken out, the most frequent first, and the first ids.
    """
    used = set(used)
    taken = {key: tags for key, tags in cleaned.items() if key in used}
    tags = Counter(tag for found in taken.values() for tag in found)
    return {"transcripts": len(taken), "tags": dict(tags.most_common(ROWS)), "first": list(taken)[:SHOWN]}


def told_cleaning(summary: Mapping[str, Any]) -> str:
    """What `summarise_cleaning` returns, in a line."""
    tags = ", ".join(f"{count} x {tag}" for tag, count in summary["tags"].items())
    return f"taken out of transcripts, {summary['transcripts']} of them ({', '.join(summary['first'])}): {tags}"


def print_summary(summary: dict[str, Any]) -> None:
    """Show what `summarise` returns."""
    console = Console(emoji=False)
    emotions = list(summary["emotions"])
    for group in (key for key in summary if key.startswith("by_")):
        rows = summary[group]
        if group == "by_language" and len(rows) == 1:
            continue
        table = _table(f"utterances by {group.removeprefix('by_')}", list(rows)[:ROWS], emotions)
        lines = [(escape(name) or "-", Counter(counts)) for name, counts in rows.items()]
        rest = sum((counts for _, counts in lines[ROWS:]), Counter[str]())
        more = [(f"{len(rows) - ROWS} more", rest)] if len(rows) > ROWS else []
        for name, counts in [*lines[:ROWS], *more]:
            table.add_row(name, *(str(counts[emotion]) for emotion in emotions), str(counts.total()))
        table.add_section()
        table.add_row("all", *(str(n) for n in summary["emotions"].values()), str(summary["utterances"]))
        console.print(table)
    percentiles = ", ".join(f"{name} {value:.2f}" for name, value in summary["seconds"].items())
    console.print(f"{summary['utterances']} utterances, {summary['hours']:.2f} h; seconds: {percentiles}")
    for what, found in summary["levels"].items():
        if found["count"]:
            console.print(f"{found['count']} {what}, such as {escape(', '.join(found['first']))}")
    if summary["repeated"]["count"]:
        first = "; ".join(" and ".join(ids[:SHOWN]) for ids in summary["repeated"]["first"])
        console.print(f"{summary['repeated']['count']} recordings of several ids, such as {escape(first)}")
    if summary["cleaned"]["transcripts"]:
        console.print(escape(told_cleaning(summary["cleaned"])))
    for double in summary["doubles"]:
        console.print(escape(f"probably the same name in several spellings: {Double(**double).told()}"))
    if summary["left_out"]:
        columns = ["count", "reason", "first"]
        table = make_table("left out", columns, ["count"], overflow="fold", box=SIMPLE_HEAD)
        for reason, entry in summary["left_out"].items():
            kind = "fault: " if entry["fault"] else ""
            table.add_row(str(entry["count"]), kind + escape(reason), escape(entry["first"][0]))
        console.print(table)
    else:
        console.print("nothing was left out")


def print_split(frame: pd.DataFrame, split: Split, emotions: Sequence[str], record: dict[str, Any]) -> None:
    """Show who is on which side of a split."""
    title = f"split {record['split']}, fold {record['fold']}, validation by {record['validation']}"
    named = [column for column in ("session", "speaker") if (frame[column] != "").any()]
    table = _table(title, SIDES, emotions, *(f"{column}s" for column in named))
    for side, rows in split._asdict().items():
        felt = frame["emotion"].iloc[rows].tolist()
        names = [escape(", ".join(sorted(set(frame[column].iloc[rows]) - {""}, key=natural))) for column in named]
        table.add_row(side, *(str(felt.count(emotion)) for emotion in emotions), str(len(rows)), *names)
    console = Console(emoji=False)
    console.print(table)
    if not record["speaker_independent"]:
        console.print("speakers of the test side are also on another: not speaker-independent")


def _counts(frame: pd.DataFrame, column: str, emotions: Sequence[str]) -> dict[str, dict[str, int]]:
    """Utterances by a column's values, and by emotion in each."""
    table = pd.crosstab(frame[column], frame["emotion"]).reindex(columns=list(emotions), fill_value=0)
    rows = {str(value): {str(emotion): int(n) for emotion, n in row.items()} for value, row in table.iterrows()}
    order = {side: index for index, side in enumerate(SIDES)}
    return dict(sorted(rows.items(), key=lambda item: (order.get(item[0], 0), natural(item[0]))))


def _table(title: str, names: Sequence[str], emotions: Sequence[str], *more: str) -> Table:
    """A table of counts by emotion, for rows of these names."""
    counts = [*emotions, "all"]
    table = make_table(title, ["", *counts, *more], counts, overflow="fold", box=SIMPLE_HEAD, padding=(0, 0))
    table.columns[0].overflow, table.columns[0].min_width = "ellipsis", min(16, max(map(len, names)))
    for column in table.columns[1 + len(counts) :]:
        column.min_width = len(str(column.header))
    return table
