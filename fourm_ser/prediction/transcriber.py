"""What is said in a recording, by a speech recogniser of Hugging Face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
from transformers.pipelines import AutomaticSpeechRecognitionPipeline

from fourm_ser.data.audio import SAMPLE_RATE
from fourm_ser.data.transcripts import BEFORE, Cleaning
from fourm_ser.errors import InputError

FILES = ("*.json", "*.txt", "*.model")  # configs, vocabularies, merges
WEIGHTS = (("*.safetensors",), ("pytorch_model*.bin",))
MARKS = Cleaning(BEFORE)  # what recognisers write in brackets is no word: <s>, [MUSIC]


class Transcriber:
    """A speech recogniser: any CTC or sequence-to-sequence checkpoint of Hugging Face, such as wav2vec 2.0 or Whisper.

    It hears one recording at a time: recognisers of the wav2vec2-base family write other letters under padding.

    Args:
        checkpoint: hub id, or a folder written by save_pretrained.
        device: where it runs, in fp32.

    Raises:
        InputError: the checkpoint cannot be had, is no speech recogniser, or lacks weights.
    """

    def __init__(self, checkpoint: str, device: torch.device) -> None:
        self.checkpoint = checkpoint
        folder = _fetch(checkpoint)
        try:
            config = AutoConfig.from_pretrained(folder)
            model, report = _model_class(config, checkpoint).from_pretrained(
                folder, config=config, output_loading_info=True, dtype=torch.float32
            )
            extractor = AutoFeatureExtractor.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
            raise InputError(
                f"asr={checkpoint}: not a speech recogniser that can be loaded: {_brief(error)}."
            ) from error
        # The vector that masks frames in pretraining plays no part in recognising.
        missing = sorted(key for key in report["missing_keys"] if not key.endswith("masked_spec_embed"))
        if missing:
            raise InputError(
                f"asr={checkpoint}: {len(missing)} weights of {type(model).__name__} are missing "
                f"({', '.join(missing[:3])}). Is it an encoder that was never trained to recognise speech?"
            )
        self.pipeline = AutomaticSpeechRecognitionPipeline(
            model=model.eval(), feature_extractor=extractor, tokenizer=tokenizer, device=device
        )

    @torch.no_grad()
    def __call__(self, samples: np.ndarray) -> str:
        """A recording [samples] at 16 kHz -> its transcript, cleaned as those of a corpus are; it may be empty.

        Raises:
            InputError: the recogniser cannot hear a recording of this length.
        """
        longest = getattr(self.pipeline.feature_extractor, "n_samples", None)  # Whisper's 30 s
        rate = self.pipeline.feature_extractor.sampling_rate
        is_long = longest is not None and len(samples) / SAMPLE_RATE > longest / rate
        options: dict[str, Any] = {"return_timestamps": True} if is_long else {}  # by which it hears piece by piece
        try:
            heard = self.pipeline({"raw": samples, "sampling_rate": SAMPLE_RATE}, **options)
        except (ValueError, RuntimeError, IndexError) as error:
            raise InputError(
                f"asr={self.checkpoint}: a recording of {len(samples) / SAMPLE_RATE:.2f} s cannot be transcribed "
                f"({_brief(error)}). Give its text, or another recogniser."
            ) from error
        return MARKS(str(heard["text"]))


def _model_class(config: Any, checkpoint: str) -> Any:
    if type(config) in MODEL_FOR_CTC_MAPPING:
        return AutoModelForCTC
    if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        return AutoModelForSpeechSeq2Seq
    raise InputError(
        f"asr={checkpoint}: {config.model_type} is no speech recogniser. Expected a CTC or sequence-to-sequence "
        "checkpoint, such as wav2vec 2.0 or Whisper."
    )


def _fetch(checkpoint: str) -> Path:
    """The folder of a checkpoint, fetched from the hub unless it is one; safetensors where there are any."""
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        if checkpoint.startswith((".", "/", "~")):
            raise InputError(f"asr={checkpoint}: no such folder. Expected one written by save_pretrained, or a hub id.")
        for weights in WEIGHTS:
            folder = _download(checkpoint, [*FILES, *weights])
            if any(list(folder.glob(pattern)) for pattern in weights):
                break
    if not (folder / "config.json").is_file():
        raise InputError(f"asr={checkpoint}: no config.json there. Expected what save_pretrained writes.")
    return folder


def _download(checkpoint: str, patterns: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(checkpoint, allow_patterns=list(patterns)))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise InputError(
            f"asr={checkpoint}: the recogniser cannot be fetched from the Hugging Face hub ({_brief(error)}). Give a "
            "folder that holds it (asr=PATH), or what is said (text=..., or a column text)."
        ) from error


def _brief(error: Exception) -> str:
    """An exception's first line, for one line of our own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
