"""What to do with a finished run: what there is to open, and the lines that go on with it."""

from fourm_ser.data.corpus import Corpus
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.terminal import command_line, near, say


def example_of(corpus: Corpus, directory: RunDirectory) -> dict[str, str]:
    """A recording to predict on, as keys of `predict`: of the test side, one that was recognised if there is any."""
    frame = corpus.frame.iloc[corpus.rows("test")]
    frame = frame[frame["start"].isna()]  # no segment of a longer recording
    table = directory.read_predictions().set_index("id")
    right = table.index[table["emotion"] == table["predicted"]]
    known = frame[frame["id"].isin(right)]
    for row in (known if len(known) else frame).head(1).to_dict(orient="records"):
        return {"audio": str(row["audio"]), "text": str(row["text"])}
    return {}


def tell_next(directory: RunDirectory, example: dict[str, str]) -> None:
    """Say what a finished run left to open, and what to do next, each in a line that can be pasted."""
    folder = near(directory.path)
    figures = [directory.confusion_matrix, directory.training_curves]
    files = [directory.metrics, directory.predictions, *figures, directory.model]
    say("to open:")
    for path in files:
        if path.exists():
            say(f"  {near(path)}")
    given = {"audio": "FILE", "text": "what is said", **example}
    modalities = [name for name in ("audio", "text") if name in directory.peek_record().fusion.modalities]
    said = [f"{name}={given[name]}" for name in modalities]
    steps = {
        "evaluate": ("metrics with intervals, calibration", [f"run={folder}"]),
        "predict": ("the emotion of a recording", [f"model={folder}", *said]),
        "analyze": ("why: correlation, attention, attribution, ...", [f"run={folder}"]),
        "report": ("a page of this run and others", [str(folder)]),
    }
    for command, (what, words) in steps.items():
        say(f"next, {what}:")
        say(f"  {command_line(command, *words)}")
