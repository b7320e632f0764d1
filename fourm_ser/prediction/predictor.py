"""A trained model on new recordings: one, many, or along a long one."""

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch.utils.data import DataLoader

from fourm_ser.checks import check_number
from fourm_ser.data.audio import SAMPLE_RATE
from fourm_ser.devices import find_device
from fourm_ser.errors import InputError
from fourm_ser.models.directory import Model, load_model
from fourm_ser.models.inference import Inference
from fourm_ser.prediction.batches import Planner, decoded_file
from fourm_ser.prediction.items import Audio, Cutting, Item, Window
from fourm_ser.prediction.loading import Loaded, Prepared, WindowDataset, with_arrays, with_tensors
from fourm_ser.runs.directory import find_model
from fourm_ser.trust import read_trust

SMALL = 5e6  # parameters of a network that computes no faster with a second thread


class Prediction(NamedTuple):
    """What a model says of one utterance.

    Attributes:
        emotion: The likeliest class.
        probabilities: The probability of every class, in the model's order.
        text: The transcript that was used; None where the model reads none.
        embedding: The fused vector (dim,), float32, that the head read; None unless the predictor gives them.
    """

    emotion: str
    probabilities: dict[str, float]
    text: str | None
    embedding: np.ndarray | None = None


class Moment(NamedTuple):
    """What a model says of one window of a recording, or of the whole.

    Attributes:
        start: Seconds from the recording's beginning; NaN where there is no recording.
        end: Seconds from the recording's beginning; NaN where there is no recording.
        prediction: What was found; None where there was an error.
        error: Why there is no prediction; None where there is one.
    """

    start: float
    end: float
    prediction: Prediction | None
    error: InputError | None


class Predictor:
    """A trained model, ready for new recordings.

    Args:
        model: The model.
        device: Where it runs.
        asr: Hub id or folder of a speech recogniser for recordings that come without text; None for none.
        asr_language: What is spoken, a code or a name as Whisper knows them; None to have it detected.
        batch_size: Utterances in a batch, at most.
        batch_seconds: Seconds of audio in a batch, padding included. A longer utterance is a batch of its own.
        workers: Processes that read ahead where there are many recordings; 0 reads in this one. While they do, a small
            network on a CPU leaves them as many of PyTorch's threads.
        embeddings: Whether predictions have their embedding.

    Attributes:
        emotions: The classes in their order.
        modalities: What the model reads: `text`, `audio` or both.
        max_seconds: The seconds that longer utterances were cropped to in training; None for any length.
        dim: Width of the embeddings.

    Raises:
        InputError: a recogniser that cannot be had, or that nothing needs; numbers out of range.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        *,
        asr: str | None = None,
        asr_language: str | None = None,
        batch_size: int = 32,
        batch_seconds: float = 128.0,
        workers: int = 0,
        embeddings: bool = False,
    ) -> None:
        check_number("workers", workers, "a number of processes, or 0", whole=True)
        self.inference = Inference(model, device)
        self.emotions, self.max_seconds = model.emotions, model.conditions.max_seconds
        encoders = model.network.by_modality
        self.modalities = tuple(encoders)
        self.workers, self.embeddings, self.dim = workers, embeddings, int(model.network.fusion.dim)
        self.parameters = sum(parameter.numel() for parameter in model.network.parameters())
        self.planner = Planner(
            modalities=self.modalities,
            transcribes=asr is not None,
            max_seconds=self.max_seconds,
            batch_size=batch_size,
            batch_seconds=batch_seconds,
        )
        self.dataset = WindowDataset(encoders, self.max_seconds, model.conditions.clean, model.conditions.empty_text)
        self.transcriber = None
        if asr is not None:
            if "text" not in encoders:
                raise InputError(f"asr={asr}: this model reads audio alone and needs no transcripts. Leave it out.")
            from fourm_ser.prediction.transcriber import Transcriber  # a second that most predictions do not need

            self.transcriber = Transcriber(
                asr, device, language=asr_language, batch_size=batch_size, batch_seconds=batch_seconds
            )
        elif asr_language is not None:
            raise InputError(f"asr_language={asr_language}: there is no recogniser. Add asr=..., or leave it out.")

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        asr: str | None = None,
        cache: str | os.PathLike[str] = "~/.cache/fourm_ser",
        trust: str | Sequence[str] = (),
        **options: Any,
    ) -> Self:
        """Read a model directory.

        Args:
            folder: A run's `model`, a copy of it, or the run's own directory; or a model on the Hugging Face hub, as
                `user/name`, or `user/name@revision` at a branch, tag or commit of it.
            device: `auto` (a GPU where there is one), `cpu` or `gpu`.
            asr: Hub id or folder of a speech recogniser for recordings that come without text; None for none.
            cache: The folder for what is made once.
            trust: Packages of one's own whose classes the directory may name; those imported already may be, too.
            **options: `asr_language`, `batch_size`, `batch_seconds`, `workers` and `embeddings` of a `Predictor`.

        Raises:
            InputError: no model directory, weights that cannot be had or are other ones, no such device, a hub that
                does not give the model.
        """
        where = find_device(device, "device")
        found = find_model(os.fspath(folder))
        try:
            model = load_model(found, Path(cache).expanduser(), read_trust(trust))
        except InputError as error:
            if not isinstance(error.__cause__, InputError):
                raise
            raise InputError(
                f"{error} For a trained model these keys stand in {found / 'config.yaml'}, and other weights than its "
                "own are refused. A run with export.include_encoders=true writes all weights into its model."
            ) from error
        return cls(model, where, asr=asr, **options)

    def __call__(
        self,
        audio: Audio | Sequence[Audio] | None = None,
        text: str | Sequence[str | None] | None = None,
        rate: float = SAMPLE_RATE,
    ) -> Prediction | list[Prediction]:
        """Predict the emotion of one recording, or of several in batches.

        A recording that is longer than `max_seconds` is cropped as in training, which the log says; `over_time` hears
        all of it.

        Args:
            audio: A path, an array [samples] of floats with full scale at 1, or a list of these.
            text: What is said, or a list of it; "" where it is known that there are no words. None where it is not
                known: with `asr` it is transcribed, else a model that reads text refuses it.
            rate: Samples a second of arrays.

        Returns:
            One prediction, or a list of them where a list was given.

        Raises:
            InputError: the first thing that cannot be predicted on, and why.
        """
        items = _items(audio, text, rate)
        if isinstance(items, Item):
            (result,) = self._predictions([items], 0)
            if isinstance(result, InputError):
                raise result
            return result
        results = []
        for place, result in enumerate(self._predictions(items, 0), 1):
            if isinstance(result, InputError):
                raise InputError(f"number {place} of {len(items)}: {result}") from result
            results.append(result)
        return results

    def predict_many(self, items: Iterable[Item]) -> Iterator[Prediction | InputError]:
        """Predict the emotion of any number of recordings, in batches of similar length.

        Items are taken a few hundred ahead; memory does not grow with their number.

        Yields:
            For each item in order its prediction, or why there is none.
        """
        return self._predictions(items, self.workers)

    def over_time(
        self, audio: Audio, rate: float = SAMPLE_RATE, window: float = 10.0, hop: float | None = None
    ) -> list[Moment]:
        """Predict the emotion along a recording.

        Args:
            audio: A path, or an array [samples].
            rate: Samples a second of an array.
            window: Length of a window, in seconds; the last one ends where the recording does.
            hop: Seconds from one window's start to the next one's; None for half the window.

        Returns:
            A moment for each window, or one for all of a recording that is not longer than a window.

        Raises:
            InputError: the recording cannot be read, or none of its windows can be predicted on; the model reads text
                and there is no recogniser; numbers that make no windows.
        """
        for name, value in (("window", window), ("hop", window if hop is None else hop)):
            check_number(name, value, "a number of seconds")
        cutting = Cutting(window, window, window / 2 if hop is None else hop)
        (moments,) = self.along([Item(audio, None, rate)], cutting)
        if isinstance(moments, InputError):
            raise moments
        if all(moment.error is not None for moment in moments):
            raise moments[0].error or AssertionError
        return moments

    def along(self, items: Iterable[Item], cutting: Cutting | None) -> Iterator[list[Moment] | InputError]:
        """Predict the emotion of any number of recordings, along those that are cut: they have no text to be divided.

        Yields:
            For each item in order its moments, one where it was not cut; or why there are none.

        Raises:
            InputError: numbers that make no windows.
        """
        if cutting is not None:
            cutting.refuse_impossible(self.max_seconds)
        return self._run(items, self.workers, cutting)

    def _predictions(self, items: Iterable[Item], workers: int) -> Iterator[Prediction | InputError]:
        for moments in self._run(items, workers, None):
            if isinstance(moments, InputError):
                yield moments
            else:
                (moment,) = moments
                result = moment.prediction or moment.error
                assert result is not None
                yield result

    def _run(self, items: Iterable[Item], workers: int, cutting: Cutting | None) -> Iterator[list[Moment] | InputError]:
        planned: dict[int, list[Window] | InputError] = {}
        found: dict[tuple[int, int], Prediction | InputError] = {}
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            for loaded in self._read(self.planner.batches(items, planned, cutting, scratch), workers):
                found.update(loaded.failed)
                found.update(self._compute(loaded))
                yield from _finished(planned, found, scratch)
            yield from _finished(planned, found, scratch)  # those that could not even be planned

    def _read(self, plan: Iterable[list[Window]], workers: int) -> Iterator[Loaded]:
        if workers == 0:
            yield from map(self.dataset.__getitems__, plan)
            return
        threads = torch.get_num_threads()
        if self.inference.device.type == "cpu" and self.parameters < SMALL:
            torch.set_num_threads(max(1, threads - workers))  # each process a core of its own
        try:
            batches: DataLoader[Any] = DataLoader(
                self.dataset,
                batch_sampler=plan,
                num_workers=workers,
                collate_fn=with_arrays,
                generator=torch.Generator(),  # the global one stays where it is
            )
            yield from map(with_tensors, batches)
        finally:
            torch.set_num_threads(threads)

    def _compute(self, loaded: Loaded) -> Iterator[tuple[tuple[int, int], Prediction | InputError]]:
        windows, inputs = loaded.windows, loaded.inputs
        if inputs is None:
            complete = []
            for window, result in zip(windows, self._transcribed(windows), strict=True):
                if isinstance(result, InputError):
                    yield window.key, result
                else:
                    complete.append(result)
            if not complete:
                return
            windows, inputs = complete, self.dataset.collate(complete)
        output = self.inference(inputs.get("text"), inputs.get("audio"))
        vectors = output.embedding.float().cpu().numpy() if self.embeddings else [None] * len(windows)
        for window, shares, vector in zip(windows, output.logits.float().softmax(1).tolist(), vectors, strict=True):
            emotion = self.emotions[max(range(len(shares)), key=shares.__getitem__)]
            probabilities = dict(zip(self.emotions, shares, strict=True))
            # A copy: a view would keep its whole batch in memory.
            yield window.key, Prediction(emotion, probabilities, window.text, None if vector is None else vector.copy())

    def _transcribed(self, windows: Sequence[Prepared]) -> list[Prepared | InputError]:
        """Windows with the texts that are still missing, or why there are none."""
        unheard = [window.samples for window in windows if window.samples is not None]
        heard = iter(self.transcriber(unheard) if self.transcriber else ())
        return [window if window.samples is None else self._told(window, next(heard)) for window in windows]

    def _told(self, window: Prepared, heard: str | InputError) -> Prepared | InputError:
        if isinstance(heard, InputError):
            return heard
        text = self.dataset.cleaning(heard)
        try:
            return window._replace(text=text, inputs={**window.inputs, "text": self.dataset.tokens(text)})
        except InputError as error:
            return error


def _finished(
    planned: dict[int, list[Window] | InputError], found: dict[tuple[int, int], Prediction | InputError], scratch: Path
) -> Iterator[list[Moment] | InputError]:
    """The items that come next in order, as far as all of each is found; they are forgotten, and what they decoded."""
    while planned:
        number, windows = next(iter(planned.items()))
        if isinstance(windows, InputError):
            result: list[Moment] | InputError = windows
        elif all(window.key in found for window in windows):
            result = [_moment(window, found.pop(window.key)) for window in windows]
            decoded_file(scratch, number).unlink(missing_ok=True)
        else:
            return
        del planned[number]
        yield result


def _moment(window: Window, result: Prediction | InputError) -> Moment:
    item = window.item
    start = math.nan if item.audio is None else 0.0 if math.isnan(item.start) else item.start
    prediction, error = (None, result) if isinstance(result, InputError) else (result, None)
    return Moment(start, start + window.length, prediction, error)


def _items(audio: Any, text: Any, rate: float) -> Item | list[Item]:
    """What a call was given, as one item or several."""
    if not isinstance(audio, list | tuple) and not isinstance(text, list | tuple):
        return Item(audio, text, rate)
    audios = [None] * len(text) if audio is None else audio
    texts = [None] * len(audio) if text is None else text
    if not isinstance(audios, list | tuple) or not isinstance(texts, list | tuple) or len(audios) != len(texts):
        given = [
            f"{len(one)} {name}s" if isinstance(one, list | tuple) else f"one {name}"
            for name, one in (("recording", audio), ("text", text))
        ]
        raise InputError(f"audio and text: expected a text, or None, for each recording. Got {' and '.join(given)}.")
    return [Item(one, said, rate) for one, said in zip(audios, texts, strict=True)]
