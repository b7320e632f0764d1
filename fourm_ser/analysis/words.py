"""From a tokenizer's pieces back to the words of a transcript."""

import re
from typing import NamedTuple, Self

import numpy as np

from fourm_ser.encoders.base import Encoder
from fourm_ser.encoders.tokens import Tokens

# Chinese, Japanese and Korean are written without spaces: each character counts as a word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class Words(NamedTuple):
    """A transcript's words, as far as the tokenizer kept them.

    Attributes:
        names: the words with their punctuation, in order; special tokens (`[CLS]`) by themselves.
        indices: (tokens,) index of each token's word among the names.
        special: (words,) whether the word is a special token.
    """

    names: list[str]
    indices: np.ndarray
    special: np.ndarray

    def sum(self, values: np.ndarray, axis: int = 0) -> np.ndarray:
        """Values of tokens, summed over each word's own; `axis` is that of the tokens."""
        starts = np.flatnonzero(np.diff(self.indices, prepend=-1))
        return np.add.reduceat(values, starts, axis=axis)

    def mean(self, values: np.ndarray, axis: int = 0) -> np.ndarray:
        """Values of tokens, averaged over each word's own."""
        counts = np.bincount(self.indices)
        shape = [1] * values.ndim
        shape[axis] = -1
        return self.sum(values, axis) / counts.reshape(shape)

    @classmethod
    def of_one(cls, name: str) -> Self:
        """A single name, for what stands for no word by itself."""
        return cls([name], np.zeros(1, dtype=int), np.zeros(1, dtype=bool))


def words_of(encoder: Encoder, text: str) -> Words:
    """The words that a text encoder's features stand for; where it pools them over time, all as one."""
    if encoder.pooling != "none":
        return Words.of_one("(the whole text)")
    return read_words(encoder.frontend, text)  # type: ignore[arg-type]


def read_words(frontend: Tokens, text: str) -> Words:
    """The words of a transcript that a text encoder's tokens belong to, by the tokenizer's offsets."""
    encoded = frontend.tokenizer(
        text,
        truncation=True,
        max_length=frontend.max_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    if not encoded["input_ids"]:  # a token stands for no words at all
        return Words(frontend.tokenizer.convert_ids_to_tokens(frontend.empty), np.zeros(1, int), np.ones(1, bool))
    tokens = frontend.tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    spans = [(match.start(), match.end()) for match in WORD.finditer(text)]
    names: list[str] = []
    special: list[bool] = []
    indices = []
    before: int | None = None
    for token, (start, end), is_special in zip(
        tokens, encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
    ):
        # A piece may begin with the space before its word, or be that space; it may hold several characters that are
        # words.
        word = None if is_special else next((at for at, span in enumerate(spans) if span[1] > start), None)
        if word is None or word != before:
            held = [] if word is None else [span for span in spans[word:] if span[0] < end] or [spans[word]]
            names.append(text[held[0][0] : held[-1][1]] if held else token)
            special.append(bool(is_special))
        before = word
        indices.append(len(names) - 1)
    return Words(names, np.array(indices), np.array(special))
