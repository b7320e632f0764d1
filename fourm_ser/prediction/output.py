"""Predicting for someone: the files that are written, and what is printed, as tables or as JSON."""

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from fourm_ser.data.levels import SilentError
from fourm_ser.errors import InputError, printable
from fourm_ser.files import as_json
from fourm_ser.prediction.embedding_file import embedding_file
from fourm_ser.prediction.items import Cutting, Item
from fourm_ser.prediction.listing import Entry
from fourm_ser.prediction.predictor import Moment, Predictor
from fourm_ser.prediction.table_file import Record, csv_table, explained
from fourm_ser.terminal import make_table, say

log = logging.getLogger(__name__)

BAR = 24  # letters of a probability of 1


def predict_one(
    predictor: Predictor,
    item: Item,
    cutting: Cutting | None,
    *,
    name: str,
    table: Path | None,
    even_whole: bool,
    json: bool,
    embeddings: Path | None = None,
) -> None:
    """Predict on a single recording or text, and print what was found, as JSON and nothing else where that is said.

    The windows that it was cut into are written to `table`, and drawn beside it; with `even_whole` one of all, too.
    What a row is made of is written to `embeddings`.

    Raises:
        InputError: why it cannot be predicted on.
    """
    (moments,) = predictor.along([item], cutting)
    if isinstance(moments, InputError):
        raise moments
    errors = [moment.error for moment in moments if moment.error is not None]
    if len(errors) == len(moments):
        raise errors[0]
    records = [as_record(name, moment) for moment in moments]
    is_cut = len(records) > 1
    written: list[Path] = []
    if table is not None and (is_cut or even_whole):
        written.append(table)
        with explained(table), csv_table(table, predictor.emotions) as write:
            for record in records:
                write(record)
        if is_cut:
            from fourm_ser.figures import save_figure  # and with it Matplotlib, a second that others do not need
            from fourm_ser.prediction.timeline import timeline_figure

            written.append(table.with_suffix(".png"))
            with explained(table):
                save_figure(timeline_figure(moments, predictor.emotions), written[1])
    if embeddings is not None:
        written.append(embeddings)
        with embedding_file(embeddings, predictor) as keep:
            for moment in moments:
                keep(name, moment)
    if json:
        print(as_json(records if is_cut else records[0], indent=2))
    elif is_cut:
        print_windows(records, predictor.emotions)
    else:
        print_prediction(records[0])
    for path in written:
        _say(f"written: {path}", json)


def predict_many(
    predictor: Predictor,
    entries: list[Entry],
    cutting: Cutting | None,
    *,
    table: Path,
    json: bool,
    embeddings: Path | None = None,
) -> int:
    """Predict on many recordings, write the table, and print what is in it, or its rows as JSON and nothing else.

    What each row is made of is written to `embeddings`, a row each.

    Returns:
        How many recordings could not be predicted on.

    Raises:
        InputError: the model reads text, and there is none at all.
    """
    reads_text = "text" in predictor.modalities
    if reads_text and predictor.transcriber is None and all(entry.item.text is None for entry in entries):
        raise InputError(
            "text: this model reads text, and no recording comes with any. Give a manifest with a column text, or "
            "asr=<hub id or folder of a speech recogniser> to transcribe them."
        )
    counts = dict.fromkeys(predictor.emotions, 0)
    failed, rows = 0, 0
    results = predictor.along((entry.item for entry in entries if entry.error is None), cutting)
    with ExitStack() as stack:
        writers = [stack.enter_context(csv_table(table, predictor.emotions))]
        keep = None if embeddings is None else stack.enter_context(embedding_file(embeddings, predictor))
        if json:
            writers.append(stack.enter_context(json_list(sys.stdout)))
        for entry in track(entries, "predicting", console=Console(stderr=True), transient=True):
            found = next(results) if entry.error is None else entry.error
            moments = [Moment(math.nan, math.nan, None, found)] if isinstance(found, InputError) else found
            errors = [moment.error for moment in moments]
            # A window in which nothing is heard is no failure as long as there are others.
            failed += None not in errors or any(not isinstance(error, SilentError | None) for error in errors)
            rows += len(moments)
            for moment in moments:
                for write in writers:
                    write(as_record(entry.id, moment))
                if keep is not None:
                    keep(entry.id, moment)
                if moment.prediction is not None:
                    counts[moment.prediction.emotion] += 1
    if not json:
        print_counts(counts, len(entries), rows)
    for path in (table, embeddings):
        if path is not None:
            _say(f"written: {path}", json)
    if failed:
        log.warning("%d of %d recordings could not be predicted on: see the column error", failed, len(entries))
    return failed


def as_record(name: str, moment: Moment) -> Record:
    """What was found of one recording, or of one window of it; what is no UTF-8 in the recording's id is escaped."""
    prediction = moment.prediction
    start, end = (None if math.isnan(value) else round(value, 6) for value in (moment.start, moment.end))
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
    table = make_table(None, ["emotion", "probability", ""], ["probability"], box=SIMPLE_HEAD)
    table.columns[2].min_width = BAR
    for emotion, share in record["probabilities"].items():
        style = "bold" if emotion == record["emotion"] else ""
        table.add_row(escape(emotion), f"{share:.4f}", "█" * round(BAR * share), style=style)
    console = Console(emoji=False)
    if record["id"]:
        say(record["id"])
    console.print(table)
    console.print(f"emotion: [bold]{escape(record['emotion'])}[/bold]")
    if record["text"] is not None:
        console.print(f"text: {escape(record['text']) or '(no words)'}")


def print_windows(records: Sequence[Record], emotions: Sequence[str]) -> None:
    """Show the windows of one recording."""
    shown = [escape(emotion) for emotion in emotions]
    columns = ["start", "end", "emotion", *shown]
    table = make_table(None, columns, ["start", "end", *shown], box=SIMPLE_HEAD)
    has_text = any(record["text"] is not None for record in records)
    if has_text:
        table.add_column("text", overflow="fold")
    for record in records:
        shares: Mapping[str, float] = record["probabilities"] or {}
        cells = [f"{shares[emotion]:.2f}" if shares else "" for emotion in emotions]
        felt = "-" if record["emotion"] is None else record["emotion"]
        words = [escape(record["text"] or "")] if has_text else []
        table.add_row(f"{record['start']:.1f}", f"{record['end']:.1f}", escape(felt), *cells, *words)
    console = Console(emoji=False)
    if records[0]["id"]:
        say(records[0]["id"])
    console.print(table)
    for error in dict.fromkeys(record["error"] for record in records if record["error"]):
        console.print(f"-: {escape(error)}")


def print_counts(counts: Mapping[str, int], recordings: int, rows: int) -> None:
    """Show how often each emotion was found among many recordings."""
    counted = "recordings" if rows == recordings else "windows"
    table = make_table(None, ["emotion", counted], [counted], box=SIMPLE_HEAD)
    for emotion, count in counts.items():
        table.add_row(escape(emotion), str(count))
    console = Console(emoji=False)
    console.print(table)
    cut = "" if rows == recordings else f", in {rows} rows: long ones are cut into windows"
    console.print(f"{recordings} recordings{cut}")


def _say(words: str, json: bool) -> None:
    """Tell the person at the terminal; beside JSON, in the log."""
    if json:
        log.info(printable(words))
    else:
        print(printable(words))
