"""The front end of text: a transcript -> token ids. It needs no weights, and importing it none of Transformers."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fourm_ser.encoders.base import Encoder, Inputs, pad
from fourm_ser.errors import InputError, PanicError, brief, unpanicked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Known(NamedTuple):
    """How many tokens transcripts have, special ones aside, and how many of them a tokenizer does not know."""

    tokens: int
    unknown: int


class Tokens:
    """Front end of text: a transcript -> token ids, at most `max_tokens` of them with the special ones.

    Attributes:
        padding: The id that stands where a batch is padded: the tokenizer's own, or any, for a mask hides it.
        empty: The ids of an empty transcript: its special tokens, or one where the tokenizer adds none.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.unknown: int | None = tokenizer.unk_token_id
        self.special = frozenset(tokenizer.all_special_ids) - {self.unknown}
        own = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, self.unknown)
        standing = next((token for token in own if token is not None), 0)
        self.padding: int = standing if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.adds_none = not self.ids("")
        self.empty: list[int] = self.ids("") or [standing]

    def __call__(self, raw: str) -> Inputs:
        """A transcript -> `ids` [tokens], one at least."""
        with self._reading(raw):
            ids = self.tokenizer(raw, truncation=True, max_length=self.max_tokens)["input_ids"]
        return {"ids": torch.tensor(ids or self.empty, dtype=torch.long)}

    def ids(self, text: str) -> list[int]:
        """All token ids of a transcript, however long, special ones included."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # each call leaves its own behind
        backend.no_padding()
        with self._reading(text):
            return backend.encode(text).ids

    @contextmanager
    def _reading(self, text: str) -> Iterator[None]:
        """Blame the tokenizer where it gives up at a text."""
        try:
            with unpanicked():
                yield
        except PanicError as error:
            name = self.tokenizer.name_or_path or "encoder.text.tokenizer"
            raise InputError(f"{name}: the tokenizer is damaged: it fails at {text[:40]!r}: {brief(error)}") from error

    def known(self, ids: Sequence[int]) -> Known:
        """How much of a transcript the tokenizer knows."""
        tokens = [token for token in ids if token not in self.special]
        return Known(len(tokens), 0 if self.unknown is None else tokens.count(self.unknown))

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """`ids` and `mask` (batch, tokens)."""
        ids = [item["ids"] for item in items]
        mask = pad([torch.ones_like(row, dtype=torch.bool) for row in ids], value=False)
        return {"ids": pad(ids, value=self.padding), "mask": mask}

    def describe(self) -> dict[str, Any]:
        """The tokenizer by the hash of its definition."""
        # Each call leaves its truncation and padding behind, which say nothing of the ids.
        definition = json.loads(self.tokenizer.backend_tokenizer.to_str())
        content = json.dumps({**definition, "truncation": None, "padding": None}, sort_keys=True).encode()
        about = {"tokenizer": hashlib.blake2b(content, digest_size=12).hexdigest(), "max_tokens": self.max_tokens}
        return {**about, "empty": self.empty[0]} if self.adds_none else about


def refuse_unknown(called: str, known: Known, about: str) -> None:
    """Refuse words, which the error calls `called`, most of whose tokens the tokenizer of `about` does not know.

    Raises:
        InputError: more than half of the tokens are unknown.
    """
    if known.unknown > known.tokens / 2:
        raise InputError(
            f"{called}: {known.unknown} of {known.tokens} tokens are unknown to the tokenizer of {about}. Is it "
            "another language or script? Use a model whose text encoder knows it, or one that reads audio alone."
        )


def told_encoder(encoder: Encoder) -> str:
    """A text encoder in words, with the languages that it is made for."""
    made_for = f" (made for {', '.join(encoder.languages)})" if encoder.languages else ""
    return f"the text encoder {encoder.name}{made_for}"
