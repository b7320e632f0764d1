"""Whether speech and text features correlate, and whether training, and fine-tuning, brought them closer."""

from collections.abc import Mapping

import torch

from fourm_ser.analysis.correlation_findings import make_findings
from fourm_ser.analysis.correlation_measures import (
    ALL,
    LEAST_TRANSCRIPTS,
    Measured,
    Score,
    ScoreKey,
    Settings,
    Sides,
    make_plans,
    measure_group,
    same,
)
from fourm_ser.analysis.findings import Finding, UnsuitedError
from fourm_ser.encoders.base import Features
from fourm_ser.errors import InputError
from fourm_ser.fusion.base import pool
from fourm_ser.models.inference import Outputs
from fourm_ser.runs.finished import BATCH, OpenRun

LEAST = 30  # utterances of a side


def correlation(
    run: OpenRun, side: str, seed: int, folds: int, components: int, regularisation: float, draws: int
) -> list[Finding]:
    """Correlations between speech and text features of a run, pooled over time, in each of its states of training.

    Args:
        run: the run whose states are compared.
        side: the side whose utterances are read: `train`, `val`, `test` or `all`.
        seed: the seed of the folds and of the bootstrap.
        folds: the number of folds of the cross-validation; utterances with the same transcript share one.
        components: the most principal components of each modality that canonical directions are made of; one for ten
            utterances that they are fitted to at most.
        regularisation: the ridge, as a share of the principal components' mean variance.
        draws: the number of bootstrap draws of the utterances.

    Returns:
        What changed from state to state, CKA by emotion, canonical correlations, retrieval, and correlations of
        principal components.

    Raises:
        UnsuitedError: the fusion reads one modality, or there is next to nothing said in different words.
        InputError: too few utterances, or a number out of range.
    """
    settings = Settings(seed, folds, components, regularisation, draws)
    for key, least in {"folds": 2, "components": 1, "draws": 100, "regularisation": 0}.items():
        if not getattr(settings, key) >= least:
            raise InputError(f"correlation: {key}={getattr(settings, key)}: expected {least} or more.")
    if set(run.network.by_modality) != {"text", "audio"}:
        (modality,) = run.network.by_modality
        raise UnsuitedError(f"{run.name} reads {modality} alone: there is nothing to correlate it with.")
    frame = run.corpus.frame.iloc[run.corpus.rows(side)]
    different = frame["text"].nunique()
    if len(frame) < LEAST:
        raise InputError(
            f"side={side}: {len(frame)} utterances of {run.corpus.name} are too few to correlate features: expected "
            f"{LEAST} or more. Take side=all."
        )
    if different < LEAST_TRANSCRIPTS:
        raise UnsuitedError(
            f"The {len(frame)} utterances of {run.corpus.name} have {different} different transcripts: under "
            f"{LEAST_TRANSCRIPTS}, text hardly varies and can correlate with nothing."
        )
    states = {snapshot.name: run.features(snapshot, side) for snapshot in run.snapshots()}
    places = _places(states)
    labels = next(iter(states.values())).labels
    plans = make_plans(labels, frame["text"].tolist(), run.emotions, settings)
    scores: dict[ScoreKey, Score] = {}
    held = {}
    for place, by_state in places.items():
        for state, sides in by_state.items():
            for emotion, plan in plans.items():
                found, variates = measure_group(sides.of(plan.rows), plan, settings)
                scores |= {(place, state, emotion, name): score for name, score in found.items()}
                if variates is not None and emotion == ALL:
                    held[place, state] = variates
    seconds = frame["seconds"].to_numpy(dtype=float)
    notes = _notes(run, side, places)
    measured = Measured(run.name, run.emotions, places, plans, scores, held, seconds, settings, notes)
    return make_findings(measured)


def _places(states: Mapping[str, Outputs]) -> dict[str, dict[str, Sides]]:
    """Where features are taken, and there by state both sides; the fusion only where it makes something of them."""
    last = list(states.values())[-1]
    places = {"encoders": {name: Sides(**features.encoded) for name, features in states.items()}}
    handed_on = last.fused if set(last.fused) == {"text", "audio"} else {}
    if any(not same(vectors, last.encoded[modality]) for modality, vectors in handed_on.items()):
        places["fusion"] = {name: Sides(**features.fused) for name, features in states.items()}
    return places


@torch.no_grad()
def readers_of_both(run: OpenRun, side: str) -> list[str]:
    """The modalities whose sequence, as the fusion hands it on, depends on the other modality, too.

    Some utterances are fused with each other's audio: the text that comes out shows whether audio went into it, and the
    other way round.
    """
    batch = next(iter(run.batches(run.network, run.corpus.rows(side)[:BATCH])))
    given = run.network.encode(batch._asdict())
    turned = {modality: Features(*(part.roll(1, 0) for part in sequence)) for modality, sequence in given.items()}
    found = []
    for modality, other in (("text", "audio"), ("audio", "text")):
        outputs = run.network.fusion(**given), run.network.fusion(**{**given, other: turned[other]})
        pooled = [pool(getattr(output, modality), "mean").float().cpu().numpy() for output in outputs]
        if not same(*pooled):
            found.append(modality)
    return found


def _notes(run: OpenRun, side: str, places: Mapping[str, object]) -> str:
    """What has to be known of the fusion to read its numbers."""
    if "fusion" not in places:
        return "The fusion hands the encoders' features on as they are, so there is nothing else to compare. "
    mixed = [{"text": "text", "audio": "speech"}[modality] for modality in readers_of_both(run, side)]
    if not mixed:
        return ""
    depend = f"{mixed[0]} sequence depends" if len(mixed) == 1 else f"{' and the '.join(mixed)} sequences depend"
    return (
        f"In this fusion the {depend} on the other modality, too: correlation there, and retrieval, is partly "
        "built in. "
    )
