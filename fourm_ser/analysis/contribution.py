"""What each modality contributes: the predictions without it, with another utterance's, and its share of the whole."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import softmax
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fourm_ser.analysis.attention_shares import MODALITY_COLOURS
from fourm_ser.analysis.coalitions import Encoded, answer, derangements, gather
from fourm_ser.analysis.drawing import legend_below
from fourm_ser.analysis.findings import Finding
from fourm_ser.analysis.reduction import class_means
from fourm_ser.figures import GREY, LINE_COLOURS
from fourm_ser.runs.finished import OpenRun

INTACT, NOTHING = "intact", "both removed"
COALITIONS = {"both": INTACT, "text only": "speech removed", "speech only": "text removed", "none": NOTHING}
NAMES = {"text": "text", "audio": "speech"}
WORTHS = {"probability": "mean probability of the true emotion", "recall": "recall (all: UA)"}


def contribution(run: OpenRun, side: str, seed: int, shuffles: int) -> list[Finding]:
    """Accuracy without a modality and with another utterance's, pairs of emotions, and Shapley values.

    A modality is taken away by putting the side's average token or frame, as the encoders hand it to the fusion, in
    the place of every one of its own: what remains of it is how long it is. It is shuffled by giving every utterance
    that of another, of whatever emotion, and the numbers are the mean of `shuffles` such orders.

    Returns:
        `contribution`, `contribution-pairs` and, of a run that reads both modalities, `contribution-shapley`: a
        modality that is alone has all of the worth.

    Raises:
        InputError: there is but one utterance.
    """
    encoded = gather(run, side)
    orders = derangements(len(encoded), shuffles, seed)
    logits = read_conditions(run, encoded, orders)
    given = run, side, encoded.labels, logits
    findings = [_accuracy(*given, shuffles), _pairs(*given, shuffles)]
    return [*findings, _shapley(*given)] if NOTHING in logits else findings


def read_conditions(run: OpenRun, encoded: Encoded, orders: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Logits (n, classes) by condition, several where it was drawn several times.

    Args:
        run: the run.
        encoded: the utterances as the encoders hand them to the fusion.
        orders: (n,) position of the utterance whose text, or speech, each one gets, a shuffle each.

    Returns:
        `intact`; `text removed`, `speech removed`, `text shuffled`, `speech shuffled`, as far as they are read; of two
        modalities `both removed`, as well.
    """
    removed = {modality: encoded.removed(modality) for modality in encoded.features}

    def ask(changed: Mapping[str, list[Tensor]]) -> np.ndarray:
        return answer(run.network, {**encoded.features, **changed}, run.device)

    conditions = {INTACT: [ask({})]}
    for modality, average in removed.items():
        conditions[f"{NAMES[modality]} removed"] = [ask({modality: average})]
    for modality in removed:
        shuffled = [ask({modality: encoded.shuffled(modality, order)}) for order in orders]
        conditions[f"{NAMES[modality]} shuffled"] = shuffled
    if len(removed) == 2:
        conditions[NOTHING] = [ask(removed)]
    return conditions


def recalls(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The share of each class's utterances that is recognised, (classes,); NaN for a class that does not occur."""
    return class_means((logits.argmax(1) == labels).astype(np.float64), labels, logits.shape[1])


def true_probabilities(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean probability of the true class over each class's utterances, (classes,); NaN as in `recalls`."""
    own = softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return class_means(own, labels, logits.shape[1])


def pair_auc(logits: np.ndarray, labels: np.ndarray, first: int, second: int) -> float:
    """How well the difference of two logits tells two classes apart: the area under the ROC curve.

    It is the chance that of one utterance of each class the right one has the larger difference; 0.5 is guessing.
    NaN where a class does not occur.
    """
    chosen = np.isin(labels, (first, second))
    if len(np.unique(labels[chosen])) < 2:
        return float("nan")
    return float(roc_auc_score(labels[chosen] == first, logits[chosen, first] - logits[chosen, second]))


def shapley(worth: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Shapley values of text and speech, by modality: what each adds, the mean over both orders of coming.

    They sum to the worth of both less that of none; `worth` has that of each of `COALITIONS`.
    """
    both, text, speech, none = (worth[coalition] for coalition in COALITIONS)
    return {"text": ((text - none) + (both - speech)) / 2, "audio": ((speech - none) + (both - text)) / 2}


def _accuracy(
    run: OpenRun, side: str, labels: np.ndarray, conditions: Mapping[str, Sequence[np.ndarray]], shuffles: int
) -> Finding:
    rows = []
    for name, drawn in conditions.items():
        by_class = np.array([recalls(logits, labels) for logits in drawn])
        ua = np.nanmean(by_class, axis=1)
        wa = np.array([(logits.argmax(1) == labels).mean() for logits in drawn])
        recall = {f"recall/{emotion}": value for emotion, value in zip(run.emotions, by_class.mean(0), strict=True)}
        spread = {"ua_std": ua.std(), "wa_std": wa.std()} if len(drawn) > 1 else {}
        rows.append({"condition": name, "draws": len(drawn), "ua": ua.mean(), "wa": wa.mean(), **recall, **spread})
    table = pd.DataFrame(rows)
    figure = Figure(figsize=(10.0, 0.5 * len(table) + 1.5), layout="constrained")
    bars, heat = figure.subplots(1, 2, width_ratios=[1, 1.05])
    positions = np.arange(len(table))
    for offset, key, colour in ((-0.2, "ua", LINE_COLOURS[0]), (0.2, "wa", LINE_COLOURS[5])):
        deviation = table[f"{key}_std"].to_numpy() if f"{key}_std" in table else None
        error = {"ecolor": "#333333", "elinewidth": 1}
        bars.barh(positions + offset, table[key], 0.38, color=colour, label=key.upper(), xerr=deviation, error_kw=error)
    chance = 1 / len(run.emotions)
    bars.axvline(chance, color="black", linestyle=":", linewidth=1, label="guessing")
    bars.set_yticks(positions, table["condition"].tolist())
    bars.invert_yaxis()
    bars.set_xlim(0, 1)
    bars.set_xlabel("accuracy", fontsize="small")
    bars.tick_params(labelsize="small")
    bars.grid(axis="x", alpha=0.3)
    values = table[[f"recall/{emotion}" for emotion in run.emotions]].to_numpy()
    _heat_map(heat, values, [""] * len(table), run.emotions, "recall", 0.0)
    legend_below(figure, bars, 3, "left")
    told = ", ".join(f"{row['condition']} {row['ua']:.3f}" for row in rows)
    return Finding(
        "contribution",
        "Without a modality, and with another utterance's",
        f"UA on the {side} side: {told}.",
        table,
        figure,
        "Bars of UA and WA under each condition, and beside them a heat map of the recall of each emotion.",
        table.drop(columns=["draws", "ua_std", "wa_std"], errors="ignore"),
        "Removed: the average token or frame of the side at every position. Shuffled: every utterance gets that of "
        f"another, the mean of {shuffles} orders (thin lines: their standard deviation). A network that was never "
        "trained without a modality may do worse without it than one that was.",
    )


def _pairs(
    run: OpenRun, side: str, labels: np.ndarray, conditions: Mapping[str, Sequence[np.ndarray]], shuffles: int
) -> Finding:
    shown = {name: drawn for name, drawn in conditions.items() if name == INTACT or name.endswith("shuffled")}
    pairs = list(combinations(range(len(run.emotions)), 2))
    rows = []
    for first, second in pairs:
        means = {
            name: np.mean([pair_auc(logits, labels, first, second) for logits in drawn])
            for name, drawn in shown.items()
        }
        rows.append({"first": run.emotions[first], "second": run.emotions[second], **means})
    table = pd.DataFrame(rows)
    names = [f"{row['first']} / {row['second']}" for row in rows]
    figure = Figure(figsize=(1.5 * len(shown) + 3.6, 0.36 * len(pairs) + 1.3), layout="constrained")
    axes = figure.subplots()
    _heat_map(axes, table[list(shown)].to_numpy(), names, list(shown), "area under the ROC curve", 0.5)
    told = []
    for name in list(shown)[1:]:
        lost = (table[INTACT] - table[name]).to_numpy()
        worst = [index for index in np.argsort(-lost) if lost[index] > 0][:2]
        if worst:
            losses = " and ".join(f"{names[index]} ({lost[index]:.2f})" for index in worst)
            told.append(f"With {name}, most is lost of {losses}.")
    return Finding(
        "contribution-pairs",
        "Which emotions each modality tells apart",
        " ".join(told) or "Nothing is lost where a modality is another utterance's.",
        table,
        figure,
        "A heat map with a row for each pair of emotions and columns for the intact utterances and for those with "
        "another's text or speech.",
        method=f"How well the difference of two logits tells two emotions of the {side} side apart: 1 is always, 0.5 "
        f"is guessing. Shuffled: every utterance gets the modality of another, the mean of {shuffles} orders.",
    )


def _shapley(run: OpenRun, side: str, labels: np.ndarray, conditions: Mapping[str, Sequence[np.ndarray]]) -> Finding:
    emotions = [*run.emotions, "all"]
    tables = []
    for key, measure in (("probability", true_probabilities), ("recall", recalls)):
        worth = {}
        for coalition, name in COALITIONS.items():
            by_class = measure(conditions[name][0], labels)
            total = np.nanmean(by_class)
            if key == "probability":  # over utterances, not over classes
                own = np.bincount(labels, minlength=len(by_class))
                total = np.nansum(by_class * own) / own.sum()
            worth[coalition] = np.append(by_class, total)
        values = {f"shapley/{NAMES[modality]}": found for modality, found in shapley(worth).items()}
        tables.append(pd.DataFrame({"worth": key, "emotion": emotions, **worth, **values}))
    figure = Figure(figsize=(9.5, 0.42 * len(emotions) + 1.6), layout="constrained")
    grid = figure.subplots(1, 2, sharey=True)
    positions = np.arange(len(emotions))
    told = []
    for axes, part, title in zip(grid, tables, WORTHS.values(), strict=True):
        for offset, modality in ((-0.2, "text"), (0.2, "audio")):
            look = {"color": MODALITY_COLOURS[modality], "label": NAMES[modality]}
            axes.barh(positions + offset, part[f"shapley/{NAMES[modality]}"], 0.38, **look)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.plot(part["both"] - part["none"], positions, "|", color="black", markersize=16, label="both together")
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("Shapley value", fontsize="small")
        axes.tick_params(labelsize="small")
        axes.grid(axis="x", alpha=0.3)
        row = part.iloc[-1]
        told.append(
            f"Of {title}, {row['both']:.3f} with both and {row['none']:.3f} with neither, text adds "
            f"{row['shapley/text']:+.3f} and speech {row['shapley/speech']:+.3f}."
        )
    grid[0].set_yticks(positions, emotions)
    grid[0].invert_yaxis()
    legend_below(figure, grid[0], 3)
    usual = run.emotions[np.bincount(conditions[NOTHING][0].argmax(1)).argmax()]
    return Finding(
        "contribution-shapley",
        "Shapley values of text and speech",
        " ".join(told),
        pd.concat(tables, ignore_index=True),
        figure,
        "Bars of the Shapley values of text and speech, for each emotion and for all, with a mark at their sum.",
        method=f"What each modality adds to the {side} side, as the mean over both orders of adding them to the "
        "average utterance (Shapley 1953); both together are what is gained over neither. The average utterance is "
        f"taken for {usual}, of which there is little left to gain.",
    )


def _heat_map(
    axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], what: str, low: float
) -> None:
    """A table in colours, from `low` (and below) to 1, with its numbers."""
    axes.imshow(np.ma.masked_invalid(values), "viridis", aspect="auto", vmin=low, vmax=1.0)
    axes.set_facecolor(GREY)
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        text = "none" if np.isnan(value) else f"{value:.2f}"
        ink = "black" if value > low + 0.55 * (1 - low) else "white"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize="small")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(labelsize="small", length=0)
    axes.set_title(what, fontsize="medium")
