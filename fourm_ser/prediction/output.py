"""Predictions as a table, as JSON, and on the terminal."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fourm_ser.errors import InputError, printable
from fourm_ser.files import as_json, whole
from fourm_ser.prediction.predictor import Moment

BAR = 24
Record = dict[str, Any]
"""id, start, end, emotion, probabilities, text, error: what is not there is None."""


def as_record(name: str, found: Moment | InputError) -> Record:
    """What was found of one recording, or of one window of it.

    Args:
        name: the recording's id; what is no UTF-8 in it is escaped.
        found: a moment, or why there is none.
    """
    moment = Moment(float("nan"), float("nan"), None, found) if isinstance(found, InputError) else found
    prediction = moment.prediction
    start, end = (None if value != value else round(value, 6) for value in (moment.start, moment.end))  # NaN is not NaN
    return {
        "id": printable(name),
        "start": start,
        "end": end,
        "emotion": prediction and prediction.emotion,
        "probabilities": prediction and prediction.probabilities,
        "text": prediction and prediction.text,
        "error": None if moment.error is None else str(moment.error),
    }


@contextmanager
def csv_table(path: Path, emotions: Sequence[str]) -> Iterator[Callable[[Record], None]]:
    """A table that is written a row at a time and appears whole: yields what writes a row."""
    with whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "start", "end", "emotion", *emotions, "text", "error"])

        def write(record: Record) -> None:
            shares = record["probabilities"] or {}
            cells = [record[key] for key in ("id", "start", "end", "emotion")]
            shown = [f"{shares[emotion]:.7g}" if shares else None for emotion in emotions]
            writer.writerow([*cells, *shown, record["text"], record["error"]])

        yield write


@contextmanager
def json_list(stream: TextIO) -> Iterator[Callable[[Record], None]]:
    """A JSON array that is printed an entry at a time: yields what prints an entry."""
    before = "[\n"

    def write(record: Record) -> None:
        nonlocal before
        stream.write(before + as_json(record))
        before = ",\n"

    yield write
    stream.write("[]\n" if before == "[\n" else "\n]\n")


def print_prediction(record: Record) -> None:
    """Show one prediction: each emotion with its probability, the likeliest marked."""
    table = Table(title=escape(record["id"]) or None, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("emotion")
    table.add_column("probability", justify="right")
    table.add_column("", min_width=BAR)
    for emotion, share in record["probabilities"].items():
        style = "bold" if emotion == record["emotion"] else ""
        table.add_row(escape(emotion), f"{share:.4f}", "█" * round(BAR * share), style=style)
    console = Console(emoji=False)
    console.print(table)
    console.print(f"emotion: [bold]{escape(record['emotion'])}[/bold]")
    if record["text"] is not None:
        console.print(f"text: {escape(record['text']) or '(no words)'}")


def print_windows(records: Sequence[Record], emotions: Sequence[str]) -> None:
    """Show the windows of one recording."""
    table = Table(title=escape(records[0]["id"]) or None, title_justify="left", box=SIMPLE_HEAD)
    for name in ("start", "end"):
        table.add_column(name, justify="right")
    table.add_column("emotion")
    for emotion in emotions:
        table.add_column(escape(emotion), justify="right")
    if any(record["text"] is not None for record in records):
        table.add_column("text", overflow="fold")
    for record in records:
        shares: Mapping[str, float] = record["probabilities"] or {}
        cells = [f"{shares[emotion]:.2f}" if shares else "" for emotion in emotions]
        felt = "-" if record["emotion"] is None else record["emotion"]
        words = [escape(record["text"] or "")] if len(table.columns) > 3 + len(emotions) else []
        table.add_row(f"{record['start']:.1f}", f"{record['end']:.1f}", escape(felt), *cells, *words)
    console = Console(emoji=False)
    console.print(table)
    for error in dict.fromkeys(record["error"] for record in records if record["error"]):
        console.print(f"-: {escape(error)}")


def print_counts(counts: Mapping[str, int], recordings: int, rows: int) -> None:
    """Show how often each emotion was found among many recordings."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("emotion")
    table.add_column("recordings" if rows == recordings else "windows", justify="right")
    for emotion, count in counts.items():
        table.add_row(escape(emotion), str(count))
    console = Console(emoji=False)
    console.print(table)
    cut = "" if rows == recordings else f", in {rows} rows: long ones are cut into windows"
    console.print(f"{recordings} recordings{cut}")
