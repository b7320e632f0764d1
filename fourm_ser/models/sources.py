"""Where each modality of a network comes from: the store, filled with what it lacks, or raw through its front end."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig
from torch import nn

from fourm_ser import SAMPLE_RATE
from fourm_ser.data.batch import Raw, Source, Stored, Summarised
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.datamodule import EmotionDataModule
from fourm_ser.data.transcripts import told_rule
from fourm_ser.data.waveforms import RawVersions, StoredVersions, VersionReader, Versions, Waveforms
from fourm_ser.distributed import barrier, share
from fourm_ser.encoders.base import Encoder
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
    if "text" not in model.network.by_modality:
        return
    trained, cleaning = model.conditions, corpus.cleaning
    if tuple(trained.clean) != cleaning.patterns:
        rules = told_rule(cleaning.patterns), told_rule(trained.clean)
        log.warning("data.clean=%s: the model was trained on transcripts of data.clean=%s", *rules)
    if trained.empty_text != cleaning.empty:
        words = cleaning.empty or "null", trained.empty_text or "null"
        log.warning("data.empty_text=%s: the model was trained with data.empty_text=%s", *words)


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


class Variation(NamedTuple):
    """How the recordings of training utterances are changed.

    Attributes:
        waveforms: What changes them.
        copies: How many changed versions frozen encoders hear beside the recording.
        seed: Seed of these versions.
        run_seed: Seed of the versions that encoders hear while they train, another one at every turn.
    """

    waveforms: Waveforms
    copies: int
    seed: int
    run_seed: int


def make_sources(
    network: EmotionNetwork, data: EmotionDataModule, encoding: Encoding, variation: Variation | None = None
) -> tuple[dict[str, Source], dict[str, int]]:
    """Where each modality of a network comes from: the store where its stem is frozen, else raw through its front end.

    What the store lacks of the corpus is encoded first, by encoders that do not feel padding (`check_padding`), and so
    are the changed versions of training utterances. Where the encoding keeps no store, everything comes raw.

    Args:
        network: The network, its stems frozen or not.
        data: The corpus, loaded and split.
        encoding: How frozen stems are run, and where their features are kept.
        variation: How training utterances' recordings are changed; None for not at all.

    Returns:
        A source by modality, and how many distinct utterances, changed versions among them, were encoded for it and put
        into the store.
    """
    sources: dict[str, Source] = {}
    encoded = dict.fromkeys(network.by_modality, 0)
    frozen = {modality: encoder for modality, encoder in network.by_modality.items() if encoder.frozen}
    fingerprints = {modality: encoder.fingerprint() for modality, encoder in frozen.items()}
    for modality, encoder in frozen.items():
        check_padding(encoder, fingerprints[modality], encoding.cache)
    readers, keys, lengths = data.readers(), data.keys(), data.lengths()
    for modality, encoder in network.by_modality.items():
        read, own, length = readers[modality], keys[modality], lengths[modality]
        versions = None if variation is None else _versions(variation, encoder, own, data.corpus.max_seconds)
        if modality not in frozen or not encoding.store:
            raw = Raw(read, encoder.frontend)
            sources[modality] = raw if versions is None else RawVersions(read, encoder.frontend, versions)
            continue
        about = {"weights": encoder.weights, "frontend": encoder.frontend.describe(), **encoder.describe()}
        about["pool"] = encoder.pooling
        # Features of another precision are other features; earlier versions stored them without activity.
        beside = "-activity" if encoder.tells_activity else ""
        store = FeatureStore(
            root=encoding.cache / "embeddings",
            name=encoder.name,
            fingerprint=fingerprints[modality] + beside + encoding.changes,
            made_by=about,
        )
        passes: list[tuple[Callable[[int], Any], list[str], list[np.ndarray]]] = [(read, own, data.corpus.parts)]
        if versions is not None and versions.copies:
            trained = [np.intersect1d(part, data.corpus.split.train) for part in data.corpus.parts]
            trained = [part for part in trained if len(part)]
            passes += [
                (VersionReader(read, versions, number), [versions.key(row, number) for row in range(len(own))], trained)
                for number in range(1, versions.copies + 1)
            ]
        wanted = [words[row] for _, words, parts in passes for part in parts for row in part]
        store.verify(share(wanted))  # what is damaged is encoded with what lacks, before anything is trained on it
        barrier()
        store.refresh()
        if store.missing(wanted):
            length = encoder.lengths(read, length)
        for read_one, words, parts in passes:
            raw = Raw(read_one, encoder.frontend)
            for part in parts:
                encoded[modality] += fill_store(
                    store, encoder, raw, keys=words, lengths=length, encoding=encoding, workers=data.workers, rows=part
                )
        sources[modality] = Stored(store, own) if versions is None else StoredVersions(store, versions)
    return sources, encoded


def summarised(
    network: EmotionNetwork, sources: Mapping[str, Source], others: Collection[str] = ()
) -> dict[str, Source]:
    """The same sources; of a modality whose stored frames the fusion alone reads, what it makes of them.

    Args:
        network: The network that they are for.
        sources: A source by modality, as `make_sources` gives them.
        others: The modalities whose frames something else reads, too: a loss, or masks.
    """
    found, summaries = dict(sources), network.fusion.summaries
    for modality, source in sources.items():
        known = modality in summaries and modality not in others
        if known and isinstance(source, Stored) and isinstance(network.by_modality[modality].top, nn.Identity):
            found[modality] = Summarised(source, summaries[modality])
    return found


def _versions(
    variation: Variation, encoder: Encoder, keys: Sequence[str], max_seconds: float | None
) -> Versions | None:
    """The versions that an encoder hears; None where it reads no sound, or is frozen and hears the recordings alone."""
    if encoder.modality != "audio" or (encoder.frozen and not variation.copies):
        return None
    longest = None if max_seconds is None else round(max_seconds * SAMPLE_RATE)
    if encoder.frozen:
        return Versions(variation.waveforms, keys, variation.seed, variation.copies, longest)
    return Versions(variation.waveforms, keys, variation.run_seed, None, longest)
