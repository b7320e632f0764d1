"""Train on one corpus, test on another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fourm_ser.config import build
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.labels import refuse_names
from fourm_ser.data.manifest import order_emotions
from fourm_ser.data.release import Release
from fourm_ser.data.splits import Split, draw_validation
from fourm_ser.errors import InputError


class CrossCorpus(Corpus):
    """Two corpora under the classes that they share: one trains and validates, the whole other one is tested.

    Each is chosen from as by itself, with its own keys; then `label_map` and `emotions` of this node apply to both.

    Args:
        train: the config node of the corpus that is trained on.
        test: the config node of the corpus that is tested.
        **use: the arguments of every `Corpus`; what the two nodes do not say themselves they take from here.
    """

    name = "cross_corpus"
    splits = ("cross_corpus",)

    def __init__(self, train: Mapping[str, Any], test: Mapping[str, Any], **use: Any) -> None:
        if use["split"] != "cross_corpus" or use["fold"] != 0 or use["split_file"] is not None:
            raise InputError(
                "data=cross_corpus: the test side is the other corpus: leave data.split, data.fold and "
                "data.split_file as they are. data.validation says how the first corpus validates."
            )
        own: dict[str, Any] = {"emotions": None, "label_map": {}, "drop_other": False, "language": None}
        cache = use["cache"]
        inherited = {key: value for key, value in use.items() if key != "cache"} | own
        self.train: Corpus = build({**inherited, **train}, cache=cache)
        self.test: Corpus = build({**inherited, **test}, cache=cache)
        super().__init__(source=f"{self.train.source} to {self.test.source}", **use)
        self.name = f"{self.train.name}_to_{self.test.name}"
        self.cleaning = self.train.cleaning  # the model's transcripts are those that it trains on

    def read(self) -> Release:
        frames, left_out = [], []
        for side, corpus in (("train", self.train), ("test", self.test)):
            corpus.load()
            frame = corpus.frame.assign(split=side, where=f"{corpus.name}: " + corpus.frame["where"])
            if self.train.name != self.test.name:  # speakers called 03 in both are not the same
                for column in ("speaker", "session"):
                    named = frame[column] != ""
                    frame.loc[named, column] = f"{corpus.name}/" + frame.loc[named, column]
            frames.append(frame)
            left_out += [item._replace(where=f"{corpus.name}: {item.where}") for item in corpus.left_out]
        frame = pd.concat(frames, ignore_index=True)
        twice = frame["id"][frame["id"].duplicated()]
        if len(twice):
            raise InputError(
                f"data=cross_corpus: {len(twice)} utterances have the same id in both corpora, the first is "
                f"{twice.iloc[0]}. Test on another corpus than the one that is trained on."
            )
        source = Path(f"{self.train.origin} to {self.test.origin}")
        return Release(frame, left_out, Path("/"), source)

    @property
    def parts(self) -> list[np.ndarray]:
        return [np.flatnonzero(self.frame["split"] == side) for side in ("train", "test")]

    @property
    def homes(self) -> list[str]:
        names = {"train": self.train.name, "test": self.test.name}
        return [names[side] for side in self.frame["split"]]

    @property
    def training_texts(self) -> list[str]:
        return self.frame["text"][self.frame["split"] == "train"].tolist()

    def _clean(self, frame: pd.DataFrame, source: Path) -> pd.DataFrame:
        self.cleaned = {**self.train.cleaned, **self.test.cleaned}
        return frame  # each corpus has cleaned its own transcripts, by its own rule

    def _choices(self) -> dict[str, Any]:
        return {**super()._choices(), "train": self.train._choices(), "test": self.test._choices()}

    def _choose_emotions(self, frame: pd.DataFrame, source: Path) -> pd.DataFrame:
        trained, tested = (order_emotions(frame["emotion"][frame["split"] == side]) for side in ("train", "test"))
        shared = [emotion for emotion in trained if emotion in tested]
        self.emotions = self.wanted or shared
        refuse_names(self.emotions)
        absent = [emotion for emotion in self.emotions if emotion not in shared]
        if absent or len(self.emotions) < 2:
            raise InputError(
                f"data=cross_corpus: {self.train.name} has {', '.join(trained)}, "
                f"{self.test.name} has {', '.join(tested)}. Expected two or more that both "
                f"have{', and all of data.emotions among them' if absent else ''}. Fold labels together by "
                "data.label_map, or choose more by data.train.emotions and data.test.emotions."
            )
        for emotion in order_emotions({*trained, *tested} - set(self.emotions)):
            self._leave_out(frame[frame["emotion"] == emotion], f"emotion {emotion} is not one of both corpora")
        return frame[frame["emotion"].isin(self.emotions)].copy()

    def _check(self, frame: pd.DataFrame, source: Path) -> pd.DataFrame:
        return frame  # each corpus has checked its own recordings,

    def _measure(self, frame: pd.DataFrame, source: Path) -> pd.DataFrame:
        return frame  # and held them against the limits

    def _divide(self) -> Split:
        trained, tested = self.parts
        validates = draw_validation(self.frame.iloc[trained], self.protocol)
        if len(validates) in (0, len(trained)):
            raise InputError(
                f"data=cross_corpus: nobody is left to {'validate on' if not len(validates) else 'train on'} in "
                f"{self.train.name}. Choose another data.validation or data.validation_fraction."
            )
        self._validation_given = False
        return Split(np.delete(trained, validates), trained[validates], tested)
