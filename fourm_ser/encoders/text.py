"""Text encoders: any model of text of Hugging Face, encoders and decoders."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from fourm_ser.encoders.base import Features, Inputs, Resources
from fourm_ser.encoders.hub import load_tokenizer, load_transformer
from fourm_ser.encoders.layers import Layer, TransformerEncoder, TransformerStem
from fourm_ser.encoders.text_models import (
    cut,
    find_layers,
    fixed_arguments,
    read_blocks,
    read_states,
    text_class,
    text_part,
)
from fourm_ser.encoders.tokens import Tokens
from fourm_ser.errors import InputError


class TextStem(TransformerStem):
    """A transformer over tokens.

    Attributes:
        depth: How many layers tokens pass.
        fixed: What the model is always called with.
    """

    def __init__(self, model: Any, layer: Layer, depth: int) -> None:
        super().__init__(model, layer)
        self.depth, self.fixed = depth, fixed_arguments(model)
        self._layers = find_layers(model, depth)

    @property
    def layers(self) -> nn.ModuleList:
        """The model's layers; none where they are no list of `depth`."""
        return nn.ModuleList() if self._layers is None else self.model.get_submodule(self._layers)

    def forward(self, inputs: Inputs) -> Features:
        """`ids`, `mask` (batch, tokens) -> features (batch, tokens, stem_dim)."""
        ids, mask = inputs["ids"], inputs["mask"]
        return Features(self.hidden_states(input_ids=ids, attention_mask=mask.long(), **self.fixed), mask)


class TextEncoder(TransformerEncoder):
    """BERT, T5, Qwen and any other model of text: hidden states of the transformer, one feature vector a token.

    Of models with an encoder and a decoder it is the encoder; a decoder alone reads its tokens from left to right, as
    it was trained. Layers that share their weights, as ALBERT's do, train together: they are one block.

    Args:
        name: the encoder's name in the store and in the log.
        checkpoint: hub id or folder of the pretrained model; None where there is none.
        tokenizer: hub id or folder of the tokenizer, or `wordpiece` to train a small one on the corpus's transcripts.
        weights: `pretrained`, `random`, or a folder written by save_pretrained.
        architecture: `model_type` and fields of the model's config, for random weights. Without a `pad_token_id` the
            tokenizer's is taken; RoBERTa's kin, whose positions begin behind it, name their own.
        init_seed: seed of random weights.
        max_tokens: tokens kept of a transcript.
        vocabulary: size of a trained tokenizer's vocabulary, at most.
        layer: which hidden states are the features: `last`, a number, several, or `weighted`; see
            `TransformerEncoder`.
        gradient_checkpointing: while the stem trains, compute activations anew for the backward pass: less memory,
            about a third more time.
        resources: cache and transcripts.
        languages: codes of the languages that the pretrained model knows (`en`); None where it does not matter.

    Raises:
        InputError: weights or tokenizer cannot be had, or do not fit.
    """

    modality: ClassVar[str] = "text"
    stem: TextStem

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
        layer: Layer,
        gradient_checkpointing: bool,
        resources: Resources,
        languages: list[str] | None = None,
    ) -> None:
        # A folder of other weights brings its own tokenizer: ids and embedding rows belong together.
        source = weights if weights not in ("pretrained", "random") and tokenizer == checkpoint else tokenizer
        own = architecture.get("pad_token_id") if weights == "random" else None
        loaded = load_tokenizer(source, weights, vocabulary, resources, own)
        padding = loaded.pad_token_id if own is None else own
        model: Any = load_transformer(
            checkpoint=checkpoint,
            weights=weights,
            architecture=architecture,
            overrides={"pad_token_id": padding} if weights == "random" and padding is not None else {},
            modality=self.modality,
            init_seed=init_seed,
            auto=text_class,
        )
        origin = (
            "encoder.text.architecture"
            if weights == "random"
            else str(checkpoint if weights == "pretrained" else weights)
        )
        model = text_part(model, origin)
        if len(loaded) > model.config.vocab_size:
            raise InputError(
                f"encoder.text.tokenizer={source}: the tokenizer knows {len(loaded)} tokens, {name} has "
                f"{model.config.vocab_size}. Use its own tokenizer, or a smaller encoder.text.vocabulary."
            )
        states = read_states(model, origin)
        stem = TextStem(model, layer, len(states.hidden) - 1)
        super().__init__(name=name, weights=weights, stem=stem, gradient_checkpointing=gradient_checkpointing)
        read = [*states.hidden[:-1], states.last] if layer == "last" else states.hidden
        self._blocks = read_blocks(model, read[: None if self.used is None else self.used + 1])
        self._unused = {name for name, _ in model.named_parameters()}.difference(*self._blocks)
        self.frontend, self.languages = Tokens(loaded, max_tokens), languages

    @property
    def depth(self) -> int:
        return self.stem.depth

    @property
    def layers(self) -> nn.ModuleList:
        return self.stem.layers

    def cut(self, used: int, spare: int) -> None:
        cut(self.stem.model, self.layers, used)

    def unused(self) -> Iterable[nn.Parameter]:
        return [parameter for name, parameter in self._by_name().items() if name in self._unused]

    def lengths(self, read: Callable[[int], Any], known: np.ndarray) -> np.ndarray:
        """Tokens of each transcript: characters tell them only roughly."""
        return np.array([len(self.frontend(read(index))["ids"]) for index in range(len(known))], dtype=float)

    def blocks(self) -> list[nn.Module]:
        """What enters the first layer, and each layer; a final norm goes with the last."""
        parameters = self._by_name()
        return [nn.ParameterList(parameters[name] for name in block) for block in self._blocks]

    def _by_name(self) -> dict[str, nn.Parameter]:
        """The model's parameters by their names; a layer with an adapter holds its own as a `base_layer`."""
        return {name.replace(".base_layer.", "."): own for name, own in self.stem.model.named_parameters()}

    def save(self, folder: Path) -> dict[str, Any]:
        folder.mkdir()
        self.frontend.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
        return {**super().save(folder), "tokenizer": f"${{folder}}/{folder.name}"}
