"""From what was measured between speech and text features to tables, figures and words."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd

from fourm_ser.analysis import correlation_figures as figures
from fourm_ser.analysis.correlation_measures import (
    ALL,
    LEAST_OF_EMOTION,
    LEAST_TO_FIT,
    LEAST_TRANSCRIPTS,
    RECALLS,
    UTTERANCES_A_COMPONENT,
    Measured,
    Plan,
    Score,
    ScoreKey,
    component_correlations,
    correlation_with,
    measure_retrieval,
    same,
)
from fourm_ser.analysis.findings import Finding

PLACES = {"encoders": "the encoders' features", "fusion": "the fusion's sequences"}
HEAT_COMPONENTS = 8  # of each modality: the numbers of 8 x 8 cells can be read in the figure


def make_findings(measured: Measured) -> list[Finding]:
    """What changed from state to state, CKA by emotion, canonical correlations, retrieval, and components."""
    return [make(measured) for make in (_changes, _by_emotion, _canonical, _retrieval, _heat_maps)]


def _changes(measured: Measured) -> Finding:
    rows = []
    for place, by_state in measured.places.items():
        states = list(by_state)
        steps = list(pairwise(states))
        if len(states) > 2:
            steps.append((states[0], states[-1]))
        for before, after in steps:
            first, second = by_state[before], by_state[after]
            kept = [side for side in ("text", "audio") if same(getattr(first, side), getattr(second, side))]
            for emotion, plan in measured.plans.items():
                for name in ("cka", "canonical_mean"):
                    old, new = (measured.scores.get((place, state, emotion, name)) for state in (before, after))
                    if old is None or new is None:
                        continue
                    change = Score(new.value - old.value, new.draws - old.draws)
                    low, high = change.interval
                    rows.append(
                        {
                            "features": place,
                            "from": before,
                            "to": after,
                            "emotion": emotion,
                            "utterances": len(plan.rows),
                            "measure": name,
                            "before": old.value,
                            "after": new.value,
                            "change": change.value,
                            "low": low,
                            "high": high,
                            "same_features": " and ".join(kept),
                            "verdict": verdict(low, high, len(kept) == 2),
                        }
                    )
    table = pd.DataFrame(rows)
    main = table[(table["emotion"] == ALL) & (table["measure"] == "cka")]
    whole = main.groupby("features", sort=False).tail(1)  # of each place, from the first state to the last
    caption = " ".join(_sentence(row) for row in whole.to_dict("records"))
    on_the_way = " ".join(_sentence(row) for row in main.drop(whole.index).to_dict("records"))
    method = (
        "How far speech and text features, pooled over time, are aligned is measured by linear CKA: 0 for nothing in "
        "common, 1 for the same up to a turn and a scale (debiased: see the next figure). In brackets, the middle 95% "
        f"of {measured.settings.draws} bootstrap draws of the utterances. {measured.notes}A change over all emotions "
        "can mean that both sides tell the emotions apart better; a change within one emotion cannot. The table has "
        "the mean of the held-out canonical correlations beside CKA as a second opinion; its directions are not fitted "
        f"anew in the draws. {on_the_way}"
    )
    shown = table[table["emotion"] == ALL].drop(columns=["emotion", "utterances"])
    alt = (
        "Intervals of the change of CKA from state to state, of all utterances and of each emotion, beside a line at 0."
    )
    figure = figures.changes_figure(table[table["measure"] == "cka"], PLACES)
    title = f"{measured.name}: did training align speech and text?"
    return Finding("correlation_changes", title, caption, table, figure, alt, shown, method.strip())


def verdict(low: float, high: float, unchanged: bool) -> str:
    """The interval of a change in words.

    Args:
        low: the interval's lower end; NaN for none.
        high: the interval's upper end; NaN for none.
        unchanged: whether the features of both sides are the same before and after.
    """
    if unchanged:
        return "unchanged"
    if not (np.isfinite(low) and np.isfinite(high)):
        return "cannot be told"
    return "aligned more" if low > 0 else "aligned less" if high < 0 else "no detectable change"


def _sentence(row: Mapping[object, object]) -> str:
    place = PLACES[str(row["features"])]
    what = f"{place[0].upper()}{place[1:]}, from {row['from']} to {row['to']}"
    if row["verdict"] == "unchanged":
        return f"{what}: unchanged, for the features of neither side changed (CKA {row['before']:.3f})."
    side = {"audio": "speech"}.get(str(row["same_features"]), row["same_features"])
    kept = f"; the {side} features are the same in both" if side else ""
    return (
        f"{what}: {row['verdict']} ({row['change']:+.3f}, from CKA {row['before']:.3f} to {row['after']:.3f}; "
        f"{row['low']:+.3f} to {row['high']:+.3f}{kept})."
    )


def _by_emotion(measured: Measured) -> Finding:
    wanted = ("cka", "plain_cka", "canonical_1")
    plans = measured.plans
    table = pd.DataFrame(
        [_row(key, score, plans[key[2]]) for key, score in measured.scores.items() if key[3] in wanted]
    )
    left_out = [emotion for emotion in measured.emotions if emotion not in plans]
    unfitted = [emotion for emotion, plan in plans.items() if plan.folds is None]
    below = "Below, the first canonical correlation on held-out utterances. " if len(unfitted) < len(plans) - 1 else ""
    overall = [row for row in table.to_dict("records") if (row["emotion"], row["measure"]) == (ALL, "cka")]
    told = "; ".join(f"{PLACES[str(row['features'])]} {row['state']} {row['value']:.3f}" for row in overall)
    caption = f"CKA over all utterances: {told}. "
    method = (
        "Linear CKA (Kornblith et al. 2019) between pooled speech and text features, of all utterances and within each "
        "emotion. The figure shows the debiased estimator (`cka`; Song et al. 2012). Plain CKA (`plain_cka` in the "
        "file) nears 1 by itself where utterances are fewer than dimensions, so it would be larger within an emotion "
        f"than over all whatever the features hold. Bars are the middle 95% of the bootstrap draws. {below}"
        f"{measured.notes}"
    )
    if left_out:
        caption += f"Left out, with under {LEAST_OF_EMOTION} utterances: {', '.join(left_out)}. "
    if unfitted:
        method += (
            f"Without a canonical correlation, which takes {LEAST_TO_FIT} utterances and {LEAST_TRANSCRIPTS} different "
            f"transcripts: {', '.join(unfitted)}. "
        )
    shown = table[table["measure"] == "cka"].drop(columns="measure")
    alt = "Debiased CKA of each state of training with intervals, for all utterances and for each emotion."
    figure = figures.emotions_figure(table, PLACES, list(plans))
    title = f"{measured.name}: alignment of speech and text by emotion"
    return Finding("correlation_cka", title, caption.strip(), table, figure, alt, shown, method.strip())


def _canonical(measured: Measured) -> Finding:
    plan = measured.plans[ALL]
    title = f"{measured.name}: canonical correlations of speech and text"
    method = _method(measured)
    rows = []
    for (place, state), held in measured.held.items():
        values, drawn = held.correlations()[0], held.correlations(plan.counts)
        lengths = correlation_with(measured.seconds, held)
        for pair, value in enumerate(values):
            low, high = Score(float(value), drawn[:, pair]).interval
            rows.append(
                {
                    "features": place,
                    "state": state,
                    "pair": pair + 1,
                    "fitted": float(held.fitted[:, pair].mean()),
                    "held_out": float(value),
                    "low": low,
                    "high": high,
                    "seconds_text": float(lengths[0, pair]),
                    "seconds_audio": float(lengths[1, pair]),
                }
            )
    if not rows:
        caption, only = "A side does not vary: nothing can be fitted.", _table_of(measured, "plain_cka")
        return Finding("correlation_canonical", title, caption, only, None, "", method=method.strip())
    table = pd.DataFrame(rows)
    firsts = table[table["pair"] == 1].to_dict("records")
    told = "; ".join(
        f"{PLACES[str(row['features'])]} {row['state']} {row['held_out']:.2f} ({row['low']:.2f} to {row['high']:.2f}; "
        f"fitted {row['fitted']:.2f})"
        for row in firsts
    )
    lengths_told = ", ".join(f"{row['seconds_text']:.2f} and {row['seconds_audio']:.2f}" for row in firsts)
    fold_size = float(np.bincount(measured.held[next(iter(measured.held))].folds).mean())
    caption = f"The first pair, held out: {told}."
    method = (
        f"Canonical correlations between pooled speech and text features. {method}Sides that have nothing in common "
        "correlate by about 0 when held out, though not where they are fitted (dotted): the gap between both is what "
        "was fitted to chance. Shaded: the middle 95% of bootstrap draws. Long sentences take "
        "long to say, so a pair may hold no more than length: the size of its text and speech variates' correlation "
        f"with the seconds of an utterance is, in the same order, {lengths_told} "
        f"({np.sqrt(2 / (np.pi * fold_size)):.2f} by chance)."
    )
    alt = "Held-out canonical correlations by pair, a line a state, with the fitted ones dotted above them."
    figure = figures.canonical_figure(table, PLACES)
    shown = _table_of(measured, "canonical_1", "canonical_mean")
    return Finding("correlation_canonical", title, caption, table, figure, alt, shown, method)


def _retrieval(measured: Measured) -> Finding:
    title = f"{measured.name}: finding an utterance's text by its speech"
    plan = measured.plans[ALL]
    rows = [
        {"features": place, "state": state, **measure_retrieval(held, plan)}
        for (place, state), held in measured.held.items()
    ]
    if not rows:
        caption = "A side does not vary: there is no space to find anything in."
        return Finding("correlation_retrieval", title, caption, _table_of(measured, "plain_cka"), None, "")
    table = pd.DataFrame(rows)
    told = " ".join(
        f"{PLACES[str(row['features'])]} {row['state']} {100 * row['recall@1']:.1f}%, median rank "
        f"{row['median_rank']:g};"
        for row in table.to_dict("records")
    )
    first = table.iloc[0]
    caption = (
        f"Its own text is the first: {told} by chance {100 * first['chance_recall@1']:.1f}%, median rank "
        f"{first['chance_median_rank']:g}."
    )
    method = (
        "Speech and transcripts that no direction was fitted to are compared by cosine similarity in the held-out "
        f"canonical space: each utterance's speech looks for its own text among {first['transcripts']:.0f} different "
        f"transcripts (the fold's). {measured.notes}"
    )
    alt = "Bars of recall at 1, 5 and 10 by state with intervals, and black lines where chance lies."
    shown = table[[name for name in table.columns if not name.startswith(("low", "high"))]]
    figure = figures.retrieval_figure(table, PLACES, RECALLS)
    return Finding("correlation_retrieval", title, caption, table, figure, alt, shown, method.strip())


def _heat_maps(measured: Measured) -> Finding:
    tables, largest, shares = [], [], []
    for place, by_state in measured.places.items():
        for state, sides in by_state.items():
            table, share = component_correlations(sides.text, sides.audio, HEAT_COMPONENTS)
            tables.append(table.assign(features=place, state=state))
            about = {"features": place, "state": state, "largest_r": table["r"].abs().max()}
            shares.append({**about, "text_variance": share[0], "audio_variance": share[1]})
            largest.append(f"{PLACES[place]} {state} {about['largest_r']:.2f}")
    table = pd.concat(tables)[["features", "state", "text_component", "audio_component", "r"]]
    n = len(measured.seconds)
    caption = f"The largest: {'; '.join(largest)}. 5% of unrelated pairs would exceed {1.96 / np.sqrt(n):.2f}."
    method = (
        f"Pearson correlations between the first {HEAT_COMPONENTS} principal components of the text and of the speech "
        f"features of {n} utterances, each state by its own components. A component's sign is arbitrary, so the figure "
        "shows sizes; the file keeps signs."
    )
    alt = "A square of cells a state, text components down and speech components across, darker where they correlate."
    figure = figures.heat_figure(table, PLACES)
    title = f"{measured.name}: which components of speech and text correlate"
    return Finding("correlation_components", title, caption, table, figure, alt, pd.DataFrame(shares), method)


def _method(measured: Measured) -> str:
    plan, settings = measured.plans[ALL], measured.settings
    widths = next(iter(measured.places["encoders"].values()))
    assert plan.folds is not None
    return (
        f"Directions are fitted to {plan.folds.max()} of {plan.folds.max() + 1} folds and measured on the one left "
        f"out, each in turn; utterances with the same transcript share a fold ({len(plan.rows)} utterances, "
        f"{len(np.unique(plan.transcripts))} transcripts). Text ({widths.text.shape[1]} wide at the encoder) and "
        f"speech ({widths.audio.shape[1]}) are each brought to their {plan.components} leading principal components "
        f"first, one for {UTTERANCES_A_COMPONENT} utterances fitted to at most, with a ridge of "
        f"{settings.regularisation:g} times those components' mean variance (Hotelling 1936; Vinod 1976). "
    )


def _table_of(measured: Measured, *names: str) -> pd.DataFrame:
    plan = measured.plans[ALL]
    rows = [_row(key, score, plan) for key, score in measured.scores.items() if key[2] == ALL and key[3] in names]
    return pd.DataFrame(rows).drop(columns="emotion")


def _row(key: ScoreKey, score: Score, plan: Plan) -> dict[str, object]:
    place, state, emotion, measure = key
    low, high = score.interval
    about = {"features": place, "state": state, "emotion": emotion, "utterances": len(plan.rows), "measure": measure}
    return {**about, "value": score.value, "low": low, "high": high}
