"""One thread that computes for all requests: those that wait together are predicted on in one batch."""

import threading
from concurrent.futures import Future
from queue import Empty, Full, Queue
from typing import NamedTuple

from fourm_ser.errors import InputError
from fourm_ser.prediction.items import Cutting, Item
from fourm_ser.prediction.predictor import Moment, Predictor
from fourm_ser.serving.effects import Effects, effects_of


class CrowdedError(Exception):
    """So many requests wait already that another one has to come again."""


class Answer(NamedTuple):
    """What is said of a recording.

    Attributes:
        moments: one for all of it, or one a window.
        effects: what its words and moments do to the probability; None where nobody asked, or where it was cut.
    """

    moments: list[Moment]
    effects: Effects | None


class Request(NamedTuple):
    """A recording in memory that somebody waits for.

    Attributes:
        item: the recording.
        explain: whether the effects of its words and moments are wanted.
        answer: where the answer goes, or why there is none.
    """

    item: Item
    explain: bool
    answer: "Future[Answer]"


class Desk:
    """Takes requests from any thread and answers them in its own, which alone uses the predictor.

    Args:
        predictor: the model.
        cutting: how long recordings are cut into windows; None for not at all.
        waiting: how many requests may wait.

    Raises:
        InputError: windows that the model cannot have.
    """

    def __init__(self, predictor: Predictor, cutting: Cutting | None, waiting: int) -> None:
        if cutting is not None:
            cutting.refuse_impossible(predictor.max_seconds)
        self.predictor, self.cutting = predictor, cutting
        self._queue: Queue[Request | None] = Queue(waiting)
        self._thread = threading.Thread(target=self._work, name="predictor", daemon=True)
        self._thread.start()

    def ask(self, item: Item, explain: bool = False) -> "Future[Answer]":
        """The answer to come; its exception is an InputError where the recording is at fault.

        Raises:
            CrowdedError: too many wait.
        """
        request = Request(item, explain, Future())
        try:
            self._queue.put_nowait(request)
        except Full:
            raise CrowdedError(f"{self._queue.maxsize} requests wait already. Come again in a moment.") from None
        return request.answer

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            requests, ends = [first], False
            while not ends:
                try:
                    found = self._queue.get_nowait()
                except Empty:
                    break
                ends = found is None
                requests += [] if found is None else [found]
            self._answer([request for request in requests if request.answer.set_running_or_notify_cancel()])
            if ends:
                return

    def _answer(self, requests: list[Request]) -> None:
        try:
            results = list(self.predictor.along([request.item for request in requests], self.cutting))
        except Exception as error:
            for request in requests:
                request.answer.set_exception(error)
            return
        for request, moments in zip(requests, results, strict=True):
            try:
                request.answer.set_result(self._complete(request, moments))
            except Exception as error:
                request.answer.set_exception(error)

    def _complete(self, request: Request, moments: list[Moment] | InputError) -> Answer:
        if isinstance(moments, InputError):
            raise moments
        predicted = moments[0].prediction
        if len(moments) > 1 or predicted is None:
            failed = [moment.error for moment in moments if moment.error is not None]
            if len(failed) == len(moments):
                raise failed[0]
            return Answer(moments, None)
        return Answer(moments, effects_of(self.predictor, request.item, predicted) if request.explain else None)
