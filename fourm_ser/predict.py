"""Predict emotions: python -m fourm_ser.predict model=DIR audio=FILE text="what is said"."""

import logging
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from fourm_ser.commandline import one_line, quoted
from fourm_ser.config import CONF
from fourm_ser.errors import InputError, printable
from fourm_ser.keys import check_config

if TYPE_CHECKING:
    from fourm_ser.prediction.items import Cutting, Item
    from fourm_ser.prediction.listing import Entry
    from fourm_ser.prediction.predictor import Predictor

LITERAL = ("model", "audio", "text", "manifest", "output", "asr")
# Files that runs, sweeps, evaluations and reports write, and what lies beside them.
OWN_NAMES = {"predictions", "metrics", "confusions", "speakers", "jobs", "results", "manifest", "left_out"}
OWN_NAMES |= {"confusion_matrix", "training_curves", "reliability"}
OWN_SIGNS = ("metrics.json", "config.yaml", "finished.json", "jobs.csv", "report.html", "summary.json")

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="predict")
def predict(config: DictConfig) -> None:
    """Predict as the composed config says; exit code 1 where a recording could not be predicted on."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("fourm_ser").setLevel(logging.INFO)
    try:
        failed = run(config)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(1)


def run(config: DictConfig) -> int:
    """Predict, print, and write what there is to write.

    Returns:
        How many recordings could not be predicted on.

    Raises:
        InputError: keys that do not fit each other, no model, and what a single recording is refused for.
    """
    check(config)
    from fourm_ser.prediction.items import Item
    from fourm_ser.prediction.listing import find_recordings, read_listing
    from fourm_ser.prediction.predictor import Predictor

    predictor = Predictor.load(
        config.model,
        config.device,
        config.asr,
        config.cache,
        batch_size=config.batch_size,
        batch_seconds=config.batch_seconds,
        workers=config.workers,
    )
    cutting = choose_cutting(config.window, config.hop, config.auto_window, predictor.max_seconds)
    if config.manifest is not None:
        return many(read_listing(Path(config.manifest).expanduser(), predictor.modalities), predictor, cutting, config)
    audio = None if config.audio is None else Path(config.audio).expanduser()
    if audio is not None and audio.is_dir():
        if config.text is not None:
            raise InputError("text: a text belongs to one recording, and audio is a folder. Use manifest=FILE.")
        return many(find_recordings(audio), predictor, cutting, config)
    predictor.workers = 0
    one(config.audio or "", Item(audio, config.text), predictor, cutting, config)
    return 0


def check(config: DictConfig) -> None:
    """Refuse keys that do not fit each other, before anything is loaded.

    Raises:
        InputError: the keys.
    """
    check_config("predict", config)
    if config.model is None:
        raise InputError("model: nothing is given. Add model=DIR, the folder model/ of a finished run.")
    given = [key for key in ("audio", "text", "manifest") if config[key] is not None]
    if not given:
        raise InputError("nothing to predict on. Add audio=FILE, audio=FOLDER, text=... or manifest=FILE.")
    if "manifest" in given and len(given) > 1:
        raise InputError(f"{' and '.join(given)}: expected either a manifest, or audio and text.")
    if config.text is not None and printable(str(config.text)) != str(config.text):
        raise InputError(f"text: {config.text} is not UTF-8. Set the terminal's encoding to UTF-8.")
    for key in ("model", "audio", "manifest", "asr", "output"):
        if config[key] == "":
            raise InputError(f"{key}: the path is empty.")
    target = output(config)
    if target is not None:
        check_output(target, config)


def check_output(target: Path, config: DictConfig) -> None:
    """Refuse a table that cannot be written, or that would replace what is not to be replaced.

    Raises:
        InputError: the path, and what to do.
    """
    if target.suffix != ".csv":
        raise InputError(f"output={target}: expected a file that ends in .csv.")
    for path in (target, target.with_suffix(".png")):
        if config.manifest is not None and path.resolve() == Path(config.manifest).expanduser().resolve():
            raise InputError(f"output={path}: this would replace the manifest. Choose another name.")
        if not path.exists():
            continue
        if path.stem in OWN_NAMES and any((path.parent / sign).is_file() for sign in OWN_SIGNS):
            raise InputError(f"output={path}: this would replace a run's own {path.name}. Choose another name.")
        if not config.overwrite:
            raise InputError(f"output={path}: is there already. Choose another name, or replace it: overwrite=true")
    if config.output is None and config.manifest is None and not Path(config.audio).expanduser().is_dir():
        return  # a recording that turns out not to be cut leaves no table, and may lie anywhere
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    with writing(target):
        tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Say of a file that cannot be written what to do.

    Raises:
        InputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error)
        raise InputError(
            f"output={target}: nothing can be written there ({said}). Choose another place: output=FILE"
        ) from error


def choose_cutting(
    window: float | str | None, hop: float | None, auto_window: float, max_seconds: float | None
) -> "Cutting":
    """What the keys `window` and `hop` say.

    Args:
        window, hop, auto_window: the keys.
        max_seconds: what the model was trained on, at most; None for any length.

    Raises:
        InputError: a hop has no windows.
    """
    from fourm_ser.prediction.items import WHOLE, Cutting

    if window is None and hop is not None:
        raise InputError(f"hop={hop}: with window=null there are no windows. Leave hop out.")
    if window is None or (isinstance(window, str) and max_seconds is None):
        return WHOLE
    longest = max_seconds or math.inf
    if isinstance(window, str):
        window = min(auto_window, longest)
    else:
        longest = window
    return Cutting(longest, window, window / 2 if hop is None else hop)


def one(name: str, item: "Item", predictor: "Predictor", cutting: "Cutting", config: DictConfig) -> None:
    """Predict on a single recording or text, print what was found, and write it where that is asked for.

    Raises:
        InputError: why it cannot be predicted on.
    """
    from fourm_ser.files import as_json
    from fourm_ser.prediction.output import as_record, csv_table, print_prediction, print_windows

    (moments,) = predictor.along([item], cutting)
    if isinstance(moments, InputError):
        raise moments
    errors = [moment.error for moment in moments if moment.error is not None]
    if len(errors) == len(moments):
        raise errors[0]
    records = [as_record(name, moment) for moment in moments]
    written: list[Path] = []
    target = output(config)
    if target is not None and (len(moments) > 1 or config.output is not None):
        written.append(target)
        with writing(target), csv_table(target, predictor.emotions) as write:
            for record in records:
                write(record)
    if target is not None and len(moments) > 1:
        from fourm_ser.figures import save_figure
        from fourm_ser.prediction.timeline import timeline_figure

        written.append(written[0].with_suffix(".png"))
        with writing(target):
            save_figure(timeline_figure(moments, predictor.emotions), written[1])
    if config.format == "json":
        print(as_json(records if len(records) > 1 else records[0], indent=2))
    elif len(records) > 1:
        print_windows(records, predictor.emotions)
    else:
        print_prediction(records[0])
    for path in written:
        say(config, f"written: {path}")


def many(entries: "list[Entry]", predictor: "Predictor", cutting: "Cutting", config: DictConfig) -> int:
    """Predict on many recordings, write the table, and print what is in it.

    Returns:
        How many recordings could not be predicted on.

    Raises:
        InputError: the model reads text, and there is none at all.
    """
    from rich.console import Console
    from rich.progress import track

    from fourm_ser.data.levels import SilentError
    from fourm_ser.prediction.output import as_record, csv_table, json_list, print_counts

    reads_text = "text" in predictor.modalities
    if reads_text and predictor.transcriber is None and all(entry.item.text is None for entry in entries):
        raise InputError(
            "text: this model reads text, and no recording comes with any. Give a manifest with a column text, or "
            "asr=<hub id or folder of a speech recogniser> to transcribe them."
        )
    target = output(config)
    assert target is not None
    counts = dict.fromkeys(predictor.emotions, 0)
    failed, rows = 0, 0
    results = predictor.along((entry.item for entry in entries if entry.error is None), cutting)
    with ExitStack() as stack:
        writers = [stack.enter_context(csv_table(target, predictor.emotions))]
        if config.format == "json":
            writers.append(stack.enter_context(json_list(sys.stdout)))
        for entry in track(entries, "predicting", console=Console(stderr=True), transient=True):
            found = next(results) if entry.error is None else entry.error
            moments = [found] if isinstance(found, InputError) else found
            errors = [moment if isinstance(moment, InputError) else moment.error for moment in moments]
            # A window in which nothing is heard is no failure as long as there are others.
            failed += None not in errors or any(not isinstance(error, SilentError | None) for error in errors)
            rows += len(moments)
            for moment in moments:
                record = as_record(entry.id, moment)
                for write in writers:
                    write(record)
                if record["emotion"] is not None:
                    counts[record["emotion"]] += 1
    if config.format == "table":
        print_counts(counts, len(entries), rows)
    say(config, f"written: {target}")
    if failed:
        log.warning("%d of %d recordings could not be predicted on: see the column error", failed, len(entries))
    return failed


def output(config: DictConfig) -> Path | None:
    """Where the table goes: beside the recording, folder or manifest, under its name; None where there is none."""
    if config.output is not None:
        return Path(config.output).expanduser()
    given = config.audio if config.manifest is None else config.manifest
    if given is None or (config.window is None and not Path(given).expanduser().is_dir() and config.manifest is None):
        return None  # a single recording that is not cut has one row, which is printed
    source = Path(given).expanduser()
    if source.name in ("", ".."):
        source = source.resolve()
    name = source.name if source.is_dir() else source.stem
    if not name:
        raise InputError(f"audio={given}: has no name to call the table after. Add output=FILE")
    return source.with_name(f"{name}-emotions.csv")


def say(config: DictConfig, words: str) -> None:
    """Tell the person at the terminal; beside JSON, in the log."""
    if config.format == "json":
        log.info(printable(words))
    else:
        print(printable(words))


def main() -> None:
    """The command."""
    sys.argv[1:] = quoted(sys.argv[1:], LITERAL)
    with one_line():
        predict()


if __name__ == "__main__":
    main()
