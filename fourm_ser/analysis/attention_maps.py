"""The attention of a fusion, read out: of single utterances without padding, and part by part."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fourm_ser.analysis.examples import Example, read_waveform
from fourm_ser.analysis.spectrogram import frame_edges
from fourm_ser.analysis.words import Words, words_of
from fourm_ser.encoders.base import Features
from fourm_ser.fusion.base import LEARNED, Fusion, MapAxes
from fourm_ser.runs.finished import OpenRun

HELD = 2**26  # numbers in the attention maps of one pass: 256 MB


class Axis(NamedTuple):
    """What stands along one side of a map.

    Attributes:
        modality: `text`, `audio`, or `LEARNED`.
        words: the words along the side, or what stands for the learned query; None for audio.
        edges: (frames + 1,) where frames begin and end, in seconds; None for text.
    """

    modality: str
    words: Words | None
    edges: np.ndarray | None

    def __len__(self) -> int:
        return len(self.words.names) if self.words is not None else len(self._edges) - 1

    @property
    def _edges(self) -> np.ndarray:
        assert self.edges is not None
        return self.edges

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each word; frames have one each."""
        return np.ones(len(self)) if self.words is None else np.bincount(self.words.indices)

    def name(self, index: int) -> str:
        """The word, or the seconds of the frame."""
        if self.words is not None:
            return self.words.names[index]
        return f"{self._edges[index]:.2f} to {self._edges[index + 1]:.2f} s"

    def columns(self, side: str, indices: np.ndarray) -> dict[str, object]:
        """Columns of a table for what stands at `indices`: number from 1, and the word or the seconds."""
        found: dict[str, object] = {f"{side}_modality": self.modality, side: indices + 1}
        if self.words is not None:
            found[f"{side}_word"] = np.array(self.words.names, dtype=object)[indices]
        else:
            found[f"{side}_start"] = self._edges[indices].round(3)
            found[f"{side}_end"] = self._edges[indices + 1].round(3)
        return found


class MapBlock(NamedTuple):
    """The part of an utterance's attention map in which one modality asks one.

    Attributes:
        map: the map's name.
        queries: the side that asks.
        keys: the side that is asked.
        weights: (heads, queries, keys); a word has the mean of its tokens as queries, and their sum as keys.
        even: (keys,) what each would get if attention were even over all tokens and frames that the map asks.
    """

    map: str
    queries: Axis
    keys: Axis
    weights: np.ndarray
    even: np.ndarray

    @property
    def times_even(self) -> np.ndarray:
        """(queries, keys): the mean over the heads, in multiples of even attention; so a long word is no brighter."""
        return self.weights.mean(0) / self.even


def split(weights: Tensor, axes: MapAxes, lengths: Mapping[str, int]) -> dict[tuple[str, str], Tensor]:
    """Maps (..., queries, keys) -> each modality's part of the queries with each one's of the keys.

    Args:
        weights: (..., queries, keys) maps, padding included.
        axes: what the axes of the maps are.
        lengths: how long each modality is, with its padding.
    """
    parts = {}
    lengths = {LEARNED: 1, **lengths}
    by_query = torch.split(weights, [lengths[modality] for modality in axes.queries], dim=-2)
    for query, rows in zip(axes.queries, by_query, strict=True):
        by_key = torch.split(rows, [lengths[modality] for modality in axes.keys], dim=-1)
        for key, part in zip(axes.keys, by_key, strict=True):
            parts[query, key] = part
    return parts


@torch.no_grad()
def read_blocks(run: OpenRun, examples: Sequence[Example]) -> dict[int, list[MapBlock]]:
    """The attention of utterances by their rows in the manifest, each without padding."""
    network, by_row = run.network, {example.row: example for example in examples}
    found: dict[int, list[MapBlock]] = {}
    if not by_row:
        return found
    for batch in run.batches(network, np.array(sorted(by_row))):
        for rows, sequences, maps in fused(network.fusion, batch.rows, network.encode(batch._asdict())):
            lengths = {modality: sequence.mask.shape[1] for modality, sequence in sequences.items()}
            for position, row in enumerate(rows.tolist()):
                masks = {modality: sequence.mask[position] for modality, sequence in sequences.items()}
                sides = {modality: _axis(run, by_row[row], modality, int(own.sum())) for modality, own in masks.items()}
                masks[LEARNED] = torch.ones(1, dtype=torch.bool, device=rows.device)
                sides[LEARNED] = Axis(LEARNED, Words.of_one("learned weight"), None)
                found[row] = []
                for name, axes in network.fusion.maps.items():
                    count = sum(int(masks[modality].sum()) for modality in axes.keys)
                    for (query, key), part in split(maps[name][position], axes, lengths).items():
                        own = part[:, masks[query]][..., masks[key]].float().cpu().numpy()
                        weights = _by_word(own, sides, query, key)
                        found[row].append(MapBlock(name, sides[query], sides[key], weights, sides[key].sizes / count))
    return found


def fused(
    fusion: Fusion, rows: Tensor, sequences: Mapping[str, Features]
) -> Iterator[tuple[Tensor, Mapping[str, Features], Mapping[str, Tensor]]]:
    """A batch through a fusion, in parts whose maps do not take too much memory: rows, sequences, maps."""
    longest = sum(sequence.mask.shape[1] for sequence in sequences.values())
    size = max(1, HELD // (16 * longest**2))  # 16: heads of the largest published fusions, and more
    for start in range(0, len(rows), size):
        part = {
            modality: Features(sequence.features[start : start + size], sequence.mask[start : start + size])
            for modality, sequence in sequences.items()
        }
        fused = fusion(part.get("text"), part.get("audio"), return_attention=True)
        yield rows[start : start + size], part, fused.attention


def _axis(run: OpenRun, example: Example, modality: str, length: int) -> Axis:
    encoder = run.network.by_modality[modality]
    if modality == "text":
        return Axis(modality, words_of(encoder, example.text), None)
    return Axis(modality, None, frame_edges(encoder, read_waveform(run, example), length))


def _by_word(weights: np.ndarray, sides: Mapping[str, Axis], query: str, key: str) -> np.ndarray:
    asking, asked = sides[query].words, sides[key].words
    if asking is not None:
        weights = asking.mean(weights, axis=1)
    return weights if asked is None else asked.sum(weights, axis=2)
