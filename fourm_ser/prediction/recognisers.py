"""Speech recognisers at work: Whisper, which hears several recordings at once, and the others, one at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE
from transformers.pipelines import AutomaticSpeechRecognitionPipeline

from fourm_ser.data.audio import SAMPLE_RATE
from fourm_ser.errors import InputError

SHOWN = 6  # languages in an error
REPEATS = 8  # in which the same features come again
LONG = {"truncation": False, "padding": "longest", "return_attention_mask": True}


class Recogniser(Protocol):
    """What hears recordings [samples] at 16 kHz."""

    def takes_together(self, samples: np.ndarray) -> bool:
        """Whether a recording may be heard beside others, which changes nothing of its transcript."""

    def __call__(self, recordings: Sequence[np.ndarray]) -> list[str]:
        """The transcript of each recording, as the recogniser writes it; of one alone where it is not taken together.

        Raises:
            ValueError, RuntimeError, IndexError: transformers cannot hear them, or the device has no memory for them.
        """


class OneByOne:
    """Any recogniser of Hugging Face: those of the wav2vec2-base family write other letters under padding.

    Args:
        pipeline: The recogniser with its front end.
    """

    def __init__(self, pipeline: AutomaticSpeechRecognitionPipeline) -> None:
        self.pipeline = pipeline

    def takes_together(self, samples: np.ndarray) -> bool:
        """Never."""
        return False

    def __call__(self, recordings: Sequence[np.ndarray]) -> list[str]:
        """Each recording by itself."""
        return [str(self.pipeline({"raw": samples, "sampling_rate": SAMPLE_RATE})["text"]) for samples in recordings]


class Whisper:
    """A Whisper: what it writes is what the `generate` of transformers writes of each recording padded to 30 s.

    Recordings of a batch are all padded to 30 s anyway, so that none sees the others. Each is encoded once, for its
    language and for its words. What is longer is heard piece by piece, by itself.

    Args:
        model: The checkpoint's network, on its device.
        extractor: The checkpoint's front end.
        tokenizer: The checkpoint's tokenizer.
        options: What `generate` is told, see `whisper_options`.
    """

    def __init__(self, model: Any, extractor: Any, tokenizer: Any, options: dict[str, Any]) -> None:
        self.model, self.extractor, self.tokenizer, self.options = model, extractor, tokenizer, options
        self.with_timestamps = bool(getattr(model.generation_config, "return_timestamps", False))
        # The tokens behind it are times; of a checkpoint that does not name it, none is.
        self.last_word = getattr(model.generation_config, "no_timestamps_token_id", model.config.vocab_size)

    def takes_together(self, samples: np.ndarray) -> bool:
        """Whether it fits the 30 s that are heard at once, and the checkpoint is not made to write times."""
        return len(samples) <= self.extractor.n_samples and not self.with_timestamps

    @torch.no_grad()
    def __call__(self, recordings: Sequence[np.ndarray]) -> list[str]:
        """The recordings in a batch, or a long one by itself."""
        if not all(self.takes_together(samples) for samples in recordings):
            return [self._alone(samples) for samples in recordings]
        features = torch.cat([self._features(samples)["input_features"] for samples in recordings])
        encoded = self.model.get_encoder()(features.to(self.model.device))
        written = self.model.generate(
            encoder_outputs=encoded,
            attention_mask=torch.ones_like(features[:, 0], device=self.model.device),  # without one it warns
            force_unique_generate_call=True,
            **self.options,
        )
        texts = self._texts(written)
        # Behind a time, which it was told to write none of, `generate` listens anew, and wants the recording for that.
        for place in (written > self.last_word).any(1).nonzero().flatten().tolist():
            texts[place] = self._alone(recordings[place])
        return texts

    def _alone(self, samples: np.ndarray) -> str:
        is_long = len(samples) > self.extractor.n_samples
        inputs = self._features(samples, **(LONG if is_long else {}))
        times = {"return_timestamps": True} if is_long else {}  # by which it hears piece by piece
        with _advancing(self.model.get_encoder(), len(samples) / SAMPLE_RATE):
            (text,) = self._texts(self.model.generate(**inputs.to(self.model.device), **times, **self.options))
        return text

    def _features(self, samples: np.ndarray, **options: Any) -> Any:
        return self.extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt", **options)

    def _texts(self, written: Tensor) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return texts


@contextmanager
def _advancing(encoder: nn.Module, seconds: float) -> Iterator[None]:
    """Ends what would never end: `generate` listens from the last time that was written, be it the one it came from.

    Silence is the same at each second, too; a language is asked for first, and some checkpoints try several
    temperatures: what is heard may come again `REPEATS` times and once a second.
    """
    last, times = None, 0

    def look(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        nonlocal last, times
        heard = inputs[0] if inputs else named["input_features"]
        times = times + 1 if last is not None and torch.equal(heard, last) else 0
        if times > REPEATS + seconds:
            raise ValueError("it writes times that do not advance, and would listen to one moment for ever")
        last = heard

    hook = encoder.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def whisper_options(settings: GenerationConfig, language: str | None) -> dict[str, Any]:
    """What `generate` is told of the task, which is never to translate, and of the language.

    Args:
        settings: The generation config of a checkpoint.
        language: What is spoken, a code or a name as Whisper knows them; None to have it detected where the checkpoint
            knows several languages and its generation config names none.

    Raises:
        InputError: the checkpoint does not know the language.
    """
    known = [token.strip("<|>") for token in getattr(settings, "lang_to_id", {})]
    is_english = getattr(settings, "is_multilingual", None) is False
    if is_english:
        known = ["en"]
    code = None if language is None else TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    if code is not None and code not in known:
        raise InputError(f"asr_language={language}: {_told(known, is_english)}")
    if is_english or not known:
        return {}
    return {"task": "transcribe", "language": code}


def _told(known: list[str], is_english: bool) -> str:
    """What languages a checkpoint knows, and what to do."""
    if is_english:
        return "the recogniser knows English alone. Leave it out, or take a multilingual one (openai/whisper-small)."
    if not known:
        return (
            "the recogniser's generation_config.json names no languages (lang_to_id) to choose from. Leave it out, or "
            "take that file from the checkpoint that it was trained from."
        )
    names = {code: name for name, code in reversed(TO_LANGUAGE_CODE.items())}
    some = ", ".join(f"{code} ({names.get(code, code)})" for code in known[:SHOWN])
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"the recogniser knows no such language. Expected a code or a name of {some}{more}, or null to detect it."
