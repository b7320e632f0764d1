"""What is said in a recording, by a speech recogniser of Hugging Face."""

from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
from transformers.pipelines import AutomaticSpeechRecognitionPipeline

from fourm_ser.data.audio import SAMPLE_RATE
from fourm_ser.data.transcripts import BEFORE, Cleaning
from fourm_ser.encoders.checkpoints import fetch_weights
from fourm_ser.errors import InputError, brief

FILES = ("*.json", "*.txt", "*.model")  # configs, vocabularies, merges
MARKS = Cleaning(BEFORE)  # what recognisers write in brackets is no word: <s>, [MUSIC]


class Transcriber:
    """A speech recogniser: any CTC or sequence-to-sequence checkpoint of Hugging Face, such as wav2vec 2.0 or Whisper.

    It hears one recording at a time: recognisers of the wav2vec2-base family write other letters under padding.

    Args:
        checkpoint: hub id (`id@revision` at a branch, tag or commit), or a folder written by save_pretrained.
        device: where it runs, in fp32.

    Raises:
        InputError: the checkpoint cannot be had, is no speech recogniser, or lacks weights.
    """

    def __init__(self, checkpoint: str, device: torch.device) -> None:
        self.checkpoint = checkpoint
        try:
            folder = fetch_weights(checkpoint, FILES, "asr", "give what is said (text=..., or a column text)")
        except InputError as error:
            raise InputError(f"asr={error}") from error
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            model, report = _model_class(config, checkpoint).from_pretrained(
                folder, config=config, trust_remote_code=False, output_loading_info=True, dtype=torch.float32
            )
            extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (
            OSError,
            ValueError,
            RuntimeError,
            KeyError,
            TypeError,
            ImportError,
            SafetensorError,
            UnpicklingError,
        ) as error:
            raise InputError(
                f"asr={checkpoint}: not a speech recogniser that can be loaded: {brief(error)}."
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
                f"({brief(error)}). Give its text, or another recogniser."
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
