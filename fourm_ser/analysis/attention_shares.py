"""How much of its attention a fusion gives to text and how much to audio."""

import pandas as pd
import torch
from matplotlib.figure import Figure

from fourm_ser.analysis.attention_maps import fused, split
from fourm_ser.analysis.drawing import legend_below
from fourm_ser.analysis.findings import Finding
from fourm_ser.figures import COLOURS
from fourm_ser.runs.finished import OpenRun

MODALITY_COLOURS = {"text": COLOURS[2], "audio": COLOURS[1]}
FIRST = "first token"


@torch.no_grad()
def read_shares(run: OpenRun, side: str) -> pd.DataFrame:
    """How much of their attention queries of each modality give to each, an utterance at a time.

    Returns:
        One row for each utterance of the side, map with keys of several modalities, kind of query (a modality, or the
        first token) and modality of the keys: `row`, `emotion`, `map`, `queries`, `keys`, `share` (mean over heads and
        queries), `even` (the share of the keys that are of this modality).
    """
    network = run.network
    joint = {name: axes for name, axes in network.fusion.maps.items() if len(axes.keys) > 1}
    tables = []
    for batch in run.batches(network, run.corpus.rows(side), f"{run.name}, attention"):
        for rows, sequences, maps in fused(network.fusion, batch.rows, network.encode(batch._asdict())):
            masks = {modality: sequence.mask for modality, sequence in sequences.items()}
            lengths = {modality: mask.shape[1] for modality, mask in masks.items()}
            emotions = [run.emotions[label] for label in run.corpus.label[rows.cpu().numpy()]]
            for name, axes in joint.items():
                every = torch.stack([masks[modality].sum(1) for modality in axes.keys]).sum(0)
                for (query, key), part in split(maps[name], axes, lengths).items():
                    given = part.float().sum(-1).mean(1)  # (batch, queries)
                    shares = {query: (given * masks[query]).sum(1) / masks[query].sum(1)}
                    if query == "text":
                        shares[FIRST] = given[:, 0]
                    for asking, share in shares.items():
                        about = {"row": rows.cpu().numpy(), "emotion": emotions, "map": name, "queries": asking}
                        numbers = {"share": share.cpu().numpy(), "even": (masks[key].sum(1) / every).cpu().numpy()}
                        tables.append(pd.DataFrame({**about, "keys": key, **numbers}))
    return pd.concat(tables, ignore_index=True)


def share_finding(shares: pd.DataFrame, run: OpenRun, side: str) -> Finding:
    everyone = shares.assign(emotion="all")
    both = pd.concat([shares, everyone])
    groups = both.groupby(["map", "queries", "keys", "emotion"], sort=False)
    table = groups.agg(utterances=("share", "size"), share=("share", "mean"), even=("even", "mean")).reset_index()
    order = {emotion: index for index, emotion in enumerate([*run.emotions, "all"])}
    table["order"] = table["emotion"].map(order)
    panels = list(table.groupby(["map", "queries"], sort=False))
    panels.sort(key=lambda panel: ("text", "audio", FIRST).index(str(panel[0][1])))
    figure = Figure(figsize=(1.2 + 3.1 * len(panels), 0.34 * len(order) + 1.5), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    names = {"text": "the words", "audio": "the frames", FIRST: "the first token"}
    for axes, ((name, asking), panel) in zip(grid, panels, strict=True):
        left = pd.Series(0.0, index=range(len(order)))
        for modality, part in panel.groupby("keys", sort=False):
            share = part.set_index("order")["share"].reindex(range(len(order)))
            look = {"color": MODALITY_COLOURS[str(modality)], "edgecolor": "white", "height": 0.72}
            axes.barh(range(len(order)), share, left=left, label=f"to {modality}", **look)
            left = left + share
        first = panel[panel["keys"] == panel["keys"].iloc[0]].set_index("order")["even"]
        axes.plot(first, first.index, "|", color="black", markersize=15, markeredgewidth=2, label="border if even")
        axes.set_xlim(0, 1)
        axes.set_title(f"map “{name}”, of {names[str(asking)]}", fontsize="medium")
        axes.set_xlabel("share of attention", fontsize="small")
        axes.tick_params(labelsize="small")
    grid[0].set_yticks(range(len(order)), list(order))
    grid[0].invert_yaxis()
    legend_below(figure, grid[0], 3)
    told = []
    for (name, asking), panel in panels:
        row = panel[(panel["keys"] == "text") & (panel["emotion"] == "all")].iloc[0]
        told.append(
            f"In the map “{name}”, {100 * row['share']:.0f}% of the attention of {names[str(asking)]} goes to text, "
            f"which is {100 * row['even']:.0f}% of what they can attend to."
        )
    return Finding(
        "attention-shares",
        "Attention to text and to audio",
        " ".join(told),
        table.drop(columns="order"),
        figure,
        "Bars by emotion, divided into the share of attention that goes to text and to audio, with a mark where the "
        "border would be if attention were even.",
        method=f"Mean over the heads and the {side} side's utterances, padding left out. More attention than even "
        "alone is no proof of more influence: see what the predictions lose without a modality.",
    )
