"""What is said in recordings, by a speech recogniser of Hugging Face."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    WhisperForConditionalGeneration,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
from transformers.pipelines import AutomaticSpeechRecognitionPipeline

from fourm_ser.data.audio import SAMPLE_RATE
from fourm_ser.data.transcripts import BEFORE, Cleaning
from fourm_ser.devices import free_memory, ran_out_of_memory, tf32
from fourm_ser.encoders.checkpoints import fetch_weights
from fourm_ser.encoders.hub import UNLOADABLE, quiet, refuse_kernels
from fourm_ser.errors import InputError, brief, unpanicked
from fourm_ser.prediction.recognisers import OneByOne, Recogniser, Whisper, whisper_options

log = logging.getLogger(__name__)

FILES = ("*.json", "*.txt", "*.model")  # configs, vocabularies, merges
MARKS = Cleaning(BEFORE)  # what recognisers write in brackets is no word: <s>, [MUSIC]


class Transcriber:
    """A speech recogniser: any CTC or sequence-to-sequence checkpoint of Hugging Face, such as wav2vec 2.0 or Whisper.

    Args:
        checkpoint: Hub id (`id@revision` at a branch, tag or commit), or a folder written by save_pretrained.
        device: Where it runs, in fp32.
        language: What is spoken, a code or a name as Whisper knows them; None to have a multilingual Whisper detect it.
        batch_size: Recordings that a Whisper hears at once, at most; other recognisers hear one at a time.
        batch_seconds: Seconds of audio that a Whisper hears at once, at most, where each recording counts for the 30 s
            that it is padded to.

    Raises:
        InputError: the checkpoint cannot be had, is no speech recogniser, lacks weights or does not know the language.
    """

    def __init__(
        self,
        checkpoint: str,
        device: torch.device,
        *,
        language: str | None = None,
        batch_size: int = 32,
        batch_seconds: float = 128.0,
    ) -> None:
        self.checkpoint, self.device, self.batch_size = checkpoint, device, 1
        model, extractor, tokenizer = _load(checkpoint)
        self.recogniser: Recogniser
        if isinstance(model, WhisperForConditionalGeneration):
            options = whisper_options(model.generation_config, language)
            self.recogniser = Whisper(model.to(device), extractor, tokenizer, options)
            self.batch_size = max(1, min(int(batch_size), int(batch_seconds * SAMPLE_RATE // extractor.n_samples)))
        elif language is not None:
            raise InputError(
                f"asr_language={language}: {checkpoint} ({model.config.model_type}) knows the language that it was "
                "trained on alone. Leave it out, or take a multilingual Whisper (openai/whisper-small)."
            )
        else:
            self.recogniser = OneByOne(
                AutomaticSpeechRecognitionPipeline(
                    model=model, feature_extractor=extractor, tokenizer=tokenizer, device=device
                )
            )

    def __call__(self, recordings: Sequence[np.ndarray]) -> list[str | InputError]:
        """Recordings [samples] at 16 kHz -> the transcript of each, or why there is none; other recordings change none.

        Transcripts are cleaned as those of a corpus are, and may be empty.
        """
        found: dict[int, str | InputError] = {}
        together = []
        for place, samples in enumerate(recordings):
            if self.recogniser.takes_together(samples):
                together.append(place)
            else:
                (found[place],) = self._heard([samples])
        while together:
            places, together = together[: self.batch_size], together[self.batch_size :]
            found.update(zip(places, self._heard([recordings[place] for place in places]), strict=True))
        return [found[place] for place in range(len(recordings))]

    @torch.no_grad()
    def _heard(self, batch: Sequence[np.ndarray]) -> list[str | InputError]:
        """A batch's transcripts; where it fails, each half's, so that what fails alone takes no other with it."""
        try:
            with tf32(False):
                return [MARKS(text) for text in self.recogniser(batch)]
        except (ValueError, RuntimeError, IndexError) as error:
            is_full = ran_out_of_memory(error)
            if len(batch) == 1:
                return [self._refused(batch[0], error)]
        # Here, where the error and with it the batch's tensors are gone.
        half = len(batch) // 2
        if is_full:
            free_memory(self.device)
            self.batch_size = min(half, self.batch_size)
            log.warning(
                "%s ran out of memory over %d recordings: the recogniser hears at most %d at once from now on. A lower "
                "batch_size says so from the start",
                self.device.type,
                len(batch),
                self.batch_size,
            )
        return [*self._heard(batch[:half]), *self._heard(batch[half:])]

    def _refused(self, samples: np.ndarray, error: Exception) -> InputError:
        refused = InputError(
            f"asr={self.checkpoint}: a recording of {len(samples) / SAMPLE_RATE:.2f} s cannot be transcribed "
            f"({brief(error)}). Give its text, or another recogniser."
        )
        refused.__cause__ = error.with_traceback(None)  # which would keep what the network computed
        return refused


def _load(checkpoint: str) -> tuple[Any, Any, Any]:
    """The network, in evaluation mode, the front end and the tokenizer of a checkpoint.

    Raises:
        InputError: it cannot be had, is no speech recogniser, or lacks weights.
    """
    try:
        folder = fetch_weights(checkpoint, FILES, "asr", "give what is said (text=..., or a column text)")
    except InputError as error:
        raise InputError(f"asr={error}") from error
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        refuse_kernels(config, f"asr={checkpoint}")
        with quiet():
            model, report = _model_class(config, checkpoint).from_pretrained(
                folder, config=config, trust_remote_code=False, output_loading_info=True, dtype=torch.float32
            )
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
        with unpanicked():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (*UNLOADABLE, ImportError) as error:
        raise InputError(f"asr={checkpoint}: not a speech recogniser that can be loaded: {brief(error)}.") from error
    # The vector that masks frames in pretraining plays no part in recognising.
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing:
        raise InputError(
            f"asr={checkpoint}: {len(missing)} weights of {type(model).__name__} are missing "
            f"({', '.join(missing[:3])}). Is it an encoder that was never trained to recognise speech?"
        )
    return model.eval(), extractor, tokenizer


def _model_class(config: Any, checkpoint: str) -> Any:
    if type(config) in MODEL_FOR_CTC_MAPPING:
        return AutoModelForCTC
    if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        return AutoModelForSpeechSeq2Seq
    raise InputError(
        f"asr={checkpoint}: {config.model_type} is no speech recogniser. Expected a CTC or sequence-to-sequence "
        "checkpoint, such as wav2vec 2.0 or Whisper."
    )
