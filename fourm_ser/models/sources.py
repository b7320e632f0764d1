"""Where each modality of a network comes from: the store, filled with what it lacks, or raw through its front end."""

import logging
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from fourm_ser.data.batch import Raw, Source, Stored
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.data.transcripts import told_rule
from fourm_ser.encoders.checkpoints import fetch_weights
from fourm_ser.encoders.hub import ENCODER_FILES
from fourm_ser.encoders.official import fetch_file
from fourm_ser.encoders.padding import check_padding
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.encoders.tokens import Tokens, refuse_unknown, told_encoder
from fourm_ser.models.directory import Model
from fourm_ser.models.features import Encoding, fill_store
from fourm_ser.models.network import EmotionNetwork

log = logging.getLogger(__name__)


def fetch_encoders(config: DictConfig, cache: Path) -> None:
    """Fetch the weights that a config's encoders lack: what cannot be downloaded is known before any work is done."""
    for modality in config.fusion.modalities:
        node = config.encoder[modality]
        if node.get("weights") == "pretrained" and node.get("checkpoint"):
            fetch_weights(node.checkpoint, ENCODER_FILES, f"encoder.{modality}.checkpoint")
        elif node.get("weights") == "pretrained" and node.get("url"):
            fetch_file(node.url, digest=node.get("digest"), cache=cache)


def compare_languages(network: EmotionNetwork, corpus: Corpus) -> None:
    """Warn of encoders that are made for other languages than the corpus speaks."""
    spoken = sorted(set(corpus.frame["language"]) - {""})
    for encoder in network.by_modality.values():
        if encoder.languages is not None and not set(spoken) <= set(encoder.languages):
            key, made_for = f"encoder.{encoder.modality}", ",".join(encoder.languages)
            said = f"the corpus speaks {', '.join(spoken)}. Is {key}.checkpoint the right one?"
            log.warning("%s.languages=[%s]: %s", key, made_for, said)


def compare_cleaning(model: Model, corpus: Corpus) -> None:
    """Warn of a corpus whose transcripts are cleaned in another way than those that a model was trained on."""
    if "text" in model.network.by_modality and tuple(model.conditions.clean) != corpus.cleaning.patterns:
        rules = told_rule(corpus.cleaning.patterns), told_rule(model.conditions.clean)
        log.warning("data.clean=%s: the model was trained on transcripts of data.clean=%s", *rules)


def check_transcripts(network: EmotionNetwork, texts: Iterable[str]) -> None:
    """Count the transcripts that the text encoder cuts; InputError where it does not know most of their tokens."""
    encoder = network.by_modality.get("text")
    if encoder is None or not isinstance(encoder.frontend, Tokens):
        return
    tokens, texts = encoder.frontend, list(texts)
    ids = {text: tokens.ids(text) for text in set(texts)}
    known = tokens.known([token for text in texts for token in ids[text]])
    refuse_unknown("data: the transcripts", known, told_encoder(encoder))
    cut = sum(len(ids[text]) > tokens.max_tokens for text in texts)
    if cut:
        log.info("data: cut %d transcripts to %d tokens (encoder.text.max_tokens)", cut, tokens.max_tokens)


def make_sources(
    network: EmotionNetwork, data: EmotionDataModule, encoding: Encoding
) -> tuple[dict[str, Source], dict[str, int]]:
    """Where each modality of a network comes from: the store where its stem is frozen, else raw through its front end.

    What the store lacks of the corpus is encoded first, by encoders that do not feel padding (`check_padding`). Where
    the encoding keeps no store, everything comes raw.

    Returns:
        A source by modality, and how many distinct utterances were encoded for it and put into the store.
    """
    sources: dict[str, Source] = {}
    encoded = dict.fromkeys(network.by_modality, 0)
    frozen = {modality: encoder for modality, encoder in network.by_modality.items() if encoder.frozen}
    fingerprints = {modality: encoder.fingerprint() for modality, encoder in frozen.items()}
    for modality, encoder in frozen.items():
        check_padding(encoder, fingerprints[modality], encoding.cache)
    readers, keys, lengths = data.readers(), data.keys(), data.lengths()
    for modality, encoder in network.by_modality.items():
        raw = Raw(readers[modality], encoder.frontend)
        if modality not in frozen or not encoding.store:
            sources[modality] = raw
            continue
        about = {"weights": encoder.weights, "frontend": encoder.frontend.describe(), **encoder.describe()}
        about["pool"] = encoder.pooling
        # Features of another precision are other features.
        store = FeatureStore(
            root=encoding.cache / "embeddings",
            name=encoder.name,
            fingerprint=fingerprints[modality] + encoding.changes,
            made_by=about,
        )
        own, length = keys[modality], lengths[modality]
        if store.missing(own):
            length = encoder.lengths(readers[modality], length)
        for part in data.corpus.parts:
            encoded[modality] += fill_store(
                store, encoder, raw, keys=own, lengths=length, encoding=encoding, workers=data.workers, rows=part
            )
        sources[modality] = Stored(store, own)
    return sources, encoded
