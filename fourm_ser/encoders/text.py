"""Text encoders: any Hugging Face encoder of tokens."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, Unfreeze
from fourm_ser.encoders.hub import describe_config, hidden_size, load_model, load_tokenizer
from fourm_ser.encoders.layers import LayerChoice
from fourm_ser.encoders.tokens import Tokens
from fourm_ser.errors import InputError


class TextEncoder(Encoder):
    """BERT, RoBERTa, DistilBERT and their kin: hidden states of the transformer, one feature vector a token.

    Args:
        name: the encoder's name in the store and in the log.
        checkpoint: hub id or folder of the pretrained model; None where there is none.
        tokenizer: hub id or folder of the tokenizer, or `wordpiece` to train a small one on the corpus's transcripts.
        weights: `pretrained`, `random`, or a folder written by save_pretrained.
        architecture: `model_type` and fields of the model's config, for random weights.
        init_seed: seed of random weights.
        max_tokens: tokens kept of a transcript.
        vocabulary: size of a trained tokenizer's vocabulary, at most.
        layer: which hidden states are the features: `last`, a number, or `weighted`; see `LayerChoice`.
        gradient_checkpointing: while the stem trains, compute activations anew for the backward pass: less memory,
            about a third more time.
        resources: cache and transcripts.
        languages: codes of the languages that the pretrained model knows (`en`); None where it does not matter.

    Raises:
        InputError: weights or tokenizer cannot be had, or do not fit.
    """

    modality: ClassVar[str] = "text"

    def __init__(
        self,
        name: str,
        checkpoint: str | None,
        tokenizer: str,
        weights: str,
        architecture: dict[str, Any],
        init_seed: int,
        max_tokens: int,
        vocabulary: int,
        layer: str | int,
        gradient_checkpointing: bool,
        resources: Resources,
        languages: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.languages = name, languages
        self.weights = weights
        # A folder of other weights brings its own tokenizer: ids and embedding rows belong together.
        source = weights if weights not in ("pretrained", "random") and tokenizer == checkpoint else tokenizer
        loaded = load_tokenizer(source, weights, vocabulary, resources)
        self.frontend = Tokens(loaded, max_tokens)
        overrides = {"pad_token_id": loaded.pad_token_id} if weights == "random" else {}
        self.model = load_model(checkpoint, weights, architecture, overrides, self.modality, init_seed)
        if not hasattr(self.model, "embeddings"):
            raise InputError(
                f"{checkpoint if weights == 'pretrained' else weights}: {self.model.config.model_type} is no text "
                "model. Expected BERT, RoBERTa or their kin; speech encoders belong to encoder.audio."
            )
        if len(loaded) > self.model.config.vocab_size:
            raise InputError(
                f"encoder.text.tokenizer={source}: the tokenizer knows {len(loaded)} tokens, {name} has "
                f"{self.model.config.vocab_size}. Use its own tokenizer, or a smaller encoder.text.vocabulary."
            )
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # features are the hidden states; an unused layer would only wait for gradients
        self.dim = int(self.model.config.hidden_size)
        stack = self._stack()
        self.layers = LayerChoice(layer, len(stack.layer), self.dim, "encoder.text.layer")
        if self.layers.count is not None:
            stack.layer = stack.layer[: max(1, self.layers.count)]
        self.stem_dim = self.layers.stem_dim
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return hidden_size(arguments, cls.modality)

    def stem(self, inputs: Inputs) -> Features:
        """`ids`, `mask` (batch, tokens) -> features (batch, tokens, dim)."""
        output = self.model(
            input_ids=inputs["ids"],
            attention_mask=inputs["mask"].long(),
            output_hidden_states=self.layers.asks_all,
            return_dict=True,
        )
        return Features(self.layers.pick(output.last_hidden_state, output.hidden_states), inputs["mask"])

    def lengths(self, read: Callable[[int], Any], known: np.ndarray) -> np.ndarray:
        """Tokens of each transcript: characters tell them only roughly."""
        return np.array([len(self.frontend(read(index))["ids"]) for index in range(len(known))], dtype=float)

    def top(self, features: Features) -> Features:
        """(batch, tokens, stem_dim) -> (batch, tokens, dim)."""
        return self.layers(features)

    def top_parameters(self) -> list[nn.Parameter]:
        return list(self.layers.parameters())

    def stem_modules(self) -> list[nn.Module]:
        return [self.model]

    def blocks(self) -> list[nn.Module]:
        """The embedding layer and each transformer layer."""
        return [self.model.embeddings, *self._stack().layer[: self.layers.count]]

    def _stack(self) -> Any:
        """The module that holds the transformer's layers."""
        return self.model.transformer if hasattr(self.model, "transformer") else self.model.encoder

    def unfreeze(self, what: Unfreeze) -> None:
        super().unfreeze(what)
        if self.layers.count is not None:
            self._stack().layer[self.layers.count :].requires_grad_(False)

    def describe(self) -> dict[str, Any]:
        return {**describe_config(self.model.config), **self.layers.describe()}

    def save(self, folder: Path) -> dict[str, Any]:
        folder.mkdir()
        self.frontend.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
        return {"architecture": self.model.config.to_dict(), "tokenizer": f"${{folder}}/{folder.name}"}
