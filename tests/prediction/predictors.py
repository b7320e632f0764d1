"""Small models, recordings and speech recognisers to predict with."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from fourm_ser.encoders.base import Resources
from fourm_ser.models.directory import Conditions, Model, save_model
from fourm_ser.models.network import build_network
from tests.conftest import Compose

EMOTIONS = ["anger", "happiness", "sadness", "neutral"]
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
TEXTS = [LETTERS, "every green ball and every happy door", "I can't, no", "calm " + " ".join(LETTERS)]
TINY = [
    "encoder.text.architecture.hidden_size=32",
    "encoder.text.architecture.intermediate_size=32",
    "encoder.audio.hidden=16",
    "fusion=self_attention",
    "fusion.heads=4",
]
RATE = 16_000


def model(folder: Path, composed: Compose, *overrides: str, max_seconds: float | None = 30.0) -> Path:
    """Save an untrained model of the real classes, whose logits are far enough apart to be told from each other."""
    config = composed("encoder=tiny", *TINY, *overrides)
    torch.manual_seed(3)
    network = build_network(config, len(EMOTIONS), Resources(folder.parent / "cache", TEXTS)).eval()
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(3.0)
    save_model(folder, Model(network, EMOTIONS, Conditions([], "32", "32-true", max_seconds)), config, {})
    return folder


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Noise whose loudness changes along it, so that no two windows are alike."""
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate))
    return (samples * np.linspace(0.1, 1.0 + 0.3 * seed, len(samples))).astype(np.float32)


def recording(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """Write samples as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def ctc(folder: Path, head: bool = True) -> Path:
    """Save a small wav2vec 2.0 recogniser, or one that lacks what recognises."""
    folder.mkdir(parents=True)
    vocabulary = {token: place for place, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS])}
    (folder / "letters.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "letters.json"))
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8, 8),
        conv_kernel=(10, 8, 4),
        conv_stride=(5, 8, 8),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    (Wav2Vec2ForCTC if head else Wav2Vec2Model)(config).save_pretrained(folder)
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=False), tokenizer).save_pretrained(folder)
    return folder


def whisper(folder: Path, languages: Sequence[str] = (), times: Sequence[int] = range(1, 101)) -> Path:
    """Save a small Whisper that hears two seconds at a time; of several languages, it was told which and to detect it.

    Without, its generation config says nothing of languages, as those of old checkpoints, and it writes times, too:
    those of these numbers, in steps of 0.02 s.
    """
    tags = [f"<|{language}|>" for language in languages or ["en"]]
    special = ["<|endoftext|>", "<|startoftranscript|>", *tags, "<|translate|>", "<|transcribe|>"]
    special += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    vocabulary = {token: place for place, token in enumerate([*sorted(ByteLevel.alphabet()), *special])}
    end = vocabulary["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(vocabulary) + 101,  # and the timestamps
        num_mel_bins=16,
        d_model=16,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_source_positions=100,
        max_target_positions=40,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=vocabulary["<|startoftranscript|>"],
        init_std=1.0,  # a smaller one repeats a single letter
    )
    torch.manual_seed(0)
    network = WhisperForConditionalGeneration(config)
    settings = network.generation_config
    settings._from_model_config = False
    settings.max_new_tokens = 16
    settings.num_beams = 1
    settings.no_timestamps_token_id = vocabulary["<|notimestamps|>"]
    if languages:
        settings.is_multilingual = len(languages) > 1
        settings.lang_to_id = {tag: vocabulary[tag] for tag in tags}
        settings.task_to_id = {task: vocabulary[f"<|{task}|>"] for task in ("translate", "transcribe")}
    # The letters of this package's texts, blanks, and the end: other bytes are no text.
    kept = {vocabulary[letter] for letter in (*LETTERS, "Ġ")} | {end}
    if not languages:  # and times, though it is told to write none
        kept |= {len(vocabulary) + time for time in times}
    settings.suppress_tokens = sorted(set(range(config.vocab_size)) - kept)
    settings.begin_suppress_tokens = None
    network.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    WhisperProcessor(extractor, WhisperTokenizer(vocab=vocabulary, merges=[])).save_pretrained(folder)
    return folder
