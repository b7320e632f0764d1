"""What a run saw of its corpus against what is there now: is it still the same, and did the model see who is tested?"""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from fourm_ser.config import build
from fourm_ser.data.content import changes, digest_of, seen
from fourm_ser.data.corpus import Corpus
from fourm_ser.errors import InputError, listed
from fourm_ser.files import write_table
from fourm_ser.runs.directory import RunDirectory

# Keys of `data` that say who is on which side, and those that change nothing of what a corpus holds.
SPLITTING = {
    "split",
    "split_file",
    "published",
    "fold",
    "fractions",
    "stratify",
    "validation",
    "validation_fraction",
    "split_seed",
}
NEUTRAL = SPLITTING | {"workers", "sampler", "shuffle", "max_seconds", "too_long", "strict", "verify"}

log = logging.getLogger(__name__)


def record_content(now: pd.DataFrame, origin: str, directory: RunDirectory, write: bool = True) -> None:
    """Hold what is used of a corpus against what a run recorded, or record it where the run begins.

    Args:
        now: what is used (see `fourm_ser.data.content`).
        origin: where the corpus is, for the error.
        directory: the run directory.
        write: whether this process is the one that writes.

    Raises:
        InputError: it is not what the run began with: what changed.
    """
    before = directory.read_corpus()
    changed = "" if before is None else changes(before, now)
    if changed:
        raise InputError(
            f"{directory.path}: its corpus ({origin}) has changed since the run began: {changed}. Undo the change, "
            "or begin another run: a result is that of one corpus."
        )
    if before is None and write:
        write_table(directory.corpus, now, seal=True)


def changes_since(
    node: DictConfig, cache: str, directory: RunDirectory, known: dict[str, pd.DataFrame] | None = None
) -> str:
    """What is other in a finished run's corpus than it was, in words.

    Args:
        node: the corpus's config.
        cache: the folder for what is made once.
        directory: the run directory.
        known: what was read of corpora, by their configs; gets this one's. None to read it anew.

    Returns:
        "" where nothing is, where the run is of a version that kept no record, and where the corpus cannot be read any
        more, which the log says.
    """
    before = directory.read_corpus()
    if before is None:
        return ""
    known = {} if known is None else known
    key = f"{cache} {json.dumps(OmegaConf.to_container(node), sort_keys=True)}"
    if key not in known:
        try:
            corpus = build(node, cache=Path(cache).expanduser())
            corpus.setup()
        except InputError as error:
            log.warning("%s: its corpus cannot be compared with what it was: %s", directory.path, error)
            return ""
        known[key] = corpus.content
    return changes(before, known[key])


def read_training(run: str | None, model: str | None) -> pd.DataFrame | None:
    """What the model of a run, or in a model directory, was trained on, by the run's record; None where it is lost."""
    folder = Path(model or "").expanduser().absolute().parent if run is None else Path(run).expanduser()
    training = RunDirectory(folder).read_corpus()
    if training is None:
        said = "nothing says whom the model was trained on: whether the test is speaker-independent is not known"
        log.warning("%s: %s", run or model, said)
    return training


def was_refit(model: Path) -> bool:
    """Whether what is in a model directory was trained on the validation side, too, by the record of its run."""
    run = RunDirectory(model.expanduser().absolute().parent)
    return run.is_run and run.record.is_file() and bool(run.peek_record().get("refit", False))


def refuse_changed(corpus: Corpus, training: pd.DataFrame, keys: Iterable[str], run: str) -> None:
    """Refuse a run's own corpus where it is not what the run was trained on any more.

    Where `keys` of `data` were given anew, a change is the purpose but for those that are `NEUTRAL`, and only told.
    """
    given = {key.removeprefix("data.").rpartition(".")[2] for key in keys}
    changed = changes(training, corpus.content, sides=not given & SPLITTING, rows="split_file" not in given)
    if not changed:
        return
    if given <= NEUTRAL:
        raise InputError(
            f"{run}: its corpus ({corpus.origin}) has changed since the run: {changed}. To test on it as it is now, "
            "name it as another corpus: data=<corpus> with its keys, such as data=manifest data.manifest=FILE."
        )
    log.warning("data: other than in the run: %s", changed)


def claim(
    corpus: Corpus, rows: np.ndarray, training: pd.DataFrame | None, allow_seen: bool, refit: bool = False
) -> dict[str, Any]:
    """Whether a model saw who is tested, as metrics.json says it; told in one line.

    Args:
        corpus: the corpus, set up.
        rows: positions of the tested utterances.
        training: what the model was trained on; None where nothing is known.
        allow_seen: whether utterances may be tested that the model was trained on; else they are refused.
        refit: whether it was trained on those that validated, too.

    Returns:
        `speaker_independent`; `seen_utterances` and `seen_speakers`: how many of those that are tested it was trained
        or validated on.
    """
    if training is None:
        return dict.fromkeys(("speaker_independent", "seen_utterances", "seen_speakers"))
    if refit:
        training = training.assign(side=training["side"].replace("val", "train"))
    tested = corpus.frame.iloc[rows]
    found = seen(training, corpus.content, tested["id"])
    if found.trained and not allow_seen:
        raise InputError(
            f"the model was trained on {len(found.trained)} of the {len(rows)} utterances to test "
            f"({listed(found.trained)}): the result would say nothing of others. Test other ones, or add "
            "allow_seen=true to have it all the same."
        )
    if found.speakers:
        log.warning(
            f"the model knows {len(found.speakers)} of {tested['speaker'].nunique()} tested speakers "
            f"({listed(found.speakers)}): trained on {len(found.trained)} and validated on {len(found.validated)} of "
            f"{len(rows)} tested utterances"
        )
    return {
        "speaker_independent": not found.speakers,
        "seen_utterances": len(found.trained) + len(found.validated),
        "seen_speakers": len(found.speakers),
    }


def folder_name(corpus: Corpus, side: str, training: pd.DataFrame | None, *others: Any) -> str:
    """A name for an evaluation's folder that no evaluation of anything else has.

    It is of corpus and side, and of the fold where the split has folds; with a hash where it is not the run's own
    corpus, or any of `others`, what else tells evaluations apart, is true.
    """
    has_folds = corpus.split_file is None and corpus.protocol.split in ("speaker", "session")
    name = f"{corpus.name}-{side}" + (f"-fold{corpus.protocol.fold}" if has_folds else "")
    digest = digest_of(corpus.content)
    if training is not None and digest == digest_of(training) and not any(others):
        return name
    whole = json.dumps([digest, *others], sort_keys=True, default=str)
    return f"{name}-{hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()}"
