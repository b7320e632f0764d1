"""Text encoders: any Hugging Face encoder of tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from fourm_ser.encoders.base import Features, Inputs, Resources
from fourm_ser.encoders.hub import load_tokenizer, load_transformer
from fourm_ser.encoders.layers import TransformerEncoder, TransformerStem
from fourm_ser.encoders.tokens import Tokens
from fourm_ser.errors import InputError


class TextStem(TransformerStem):
    """A transformer over tokens."""

    def forward(self, inputs: Inputs) -> Features:
        """`ids`, `mask` (batch, tokens) -> features (batch, tokens, stem_dim)."""
        ids, mask = inputs["ids"], inputs["mask"]
        return Features(self.hidden_states(input_ids=ids, attention_mask=mask.long()), mask)


class TextEncoder(TransformerEncoder):
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
        layer: which hidden states are the features: `last`, a number, or `weighted`; see `TransformerEncoder`.
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
        *,
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
        # A folder of other weights brings its own tokenizer: ids and embedding rows belong together.
        source = weights if weights not in ("pretrained", "random") and tokenizer == checkpoint else tokenizer
        loaded = load_tokenizer(source, weights, vocabulary, resources)
        overrides = {"pad_token_id": loaded.pad_token_id} if weights == "random" else {}
        model: Any = load_transformer(
            checkpoint=checkpoint,
            weights=weights,
            architecture=architecture,
            overrides=overrides,
            modality=self.modality,
            init_seed=init_seed,
        )
        if not hasattr(model, "embeddings"):
            raise InputError(
                f"{checkpoint if weights == 'pretrained' else weights}: {model.config.model_type} is no text "
                "model. Expected BERT, RoBERTa or their kin; speech encoders belong to encoder.audio."
            )
        if len(loaded) > model.config.vocab_size:
            raise InputError(
                f"encoder.text.tokenizer={source}: the tokenizer knows {len(loaded)} tokens, {name} has "
                f"{model.config.vocab_size}. Use its own tokenizer, or a smaller encoder.text.vocabulary."
            )
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # features are the hidden states; an unused layer would only wait for gradients
        stem = TextStem(model, layer)
        super().__init__(name=name, weights=weights, stem=stem, gradient_checkpointing=gradient_checkpointing)
        self.frontend, self.languages = Tokens(loaded, max_tokens), languages

    @property
    def layers(self) -> nn.ModuleList:
        model = self.stem.model
        layers: nn.ModuleList = (model.transformer if hasattr(model, "transformer") else model.encoder).layer
        return layers

    def lengths(self, read: Callable[[int], Any], known: np.ndarray) -> np.ndarray:
        """Tokens of each transcript: characters tell them only roughly."""
        return np.array([len(self.frontend(read(index))["ids"]) for index in range(len(known))], dtype=float)

    def blocks(self) -> list[nn.Module]:
        """The embedding layer and each transformer layer."""
        return [self.stem.model.embeddings, *self.layers[: self.used]]

    def save(self, folder: Path) -> dict[str, Any]:
        folder.mkdir()
        self.frontend.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
        return {**super().save(folder), "tokenizer": f"${{folder}}/{folder.name}"}
