"""The page and the HTTP interface over it: a recording in, its emotion over time out."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fourm_ser import SAMPLE_RATE, __version__
from fourm_ser.errors import InputError
from fourm_ser.prediction import items
from fourm_ser.prediction.items import Item
from fourm_ser.serving.desk import Answer, CrowdedError, Desk
from fourm_ser.serving.effects import Effect

HERE = Path(__file__).parent
PAGE = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
BARS = 600  # of a waveform's outline, at most
ONLY_OURS = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; media-src blob:"
)
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The recording as it is: WAV, FLAC, MP3, OGG, M4A and their like.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Model(BaseModel):
    """What is served.

    Attributes:
        emotions: the classes in their order.
        reads: `text`, `audio` or both.
        transcribes: whether a text that is not given is transcribed.
        max_seconds: the longest recording.
        max_megabytes: the largest recording.
        version: the version of fourm_ser.
    """

    emotions: list[str]
    reads: list[str]
    transcribes: bool
    max_seconds: float
    max_megabytes: float
    version: str


class Stretch(BaseModel):
    """What is said of a window of a recording, or of all of it.

    Attributes:
        start: where it begins, in seconds.
        end: where it ends, in seconds.
        emotion: the likeliest; null where there is an error.
        probabilities: the probability of every emotion.
        text: the transcript that was used; null where the model reads none.
        error: why there is no prediction.
    """

    start: float
    end: float
    emotion: str | None
    probabilities: dict[str, float]
    text: str | None
    error: str | None


class Part(BaseModel):
    """A word, or a moment in seconds, and how much of the emotion's probability goes when it is left out."""

    name: str
    start: float | None
    end: float | None
    effect: float


class Emotion(BaseModel):
    """What is said of a recording.

    Attributes:
        emotion: the likeliest by the mean of all stretches.
        probabilities: the mean of the stretches' probabilities.
        seconds: the length of the recording.
        stretches: over time; one where the recording was not cut.
        words: what each word does; empty where nobody asked, the model reads no text, or the recording was cut.
        moments: what each moment does, likewise.
        outline: the loudest sample of each of up to 600 equal parts of the recording, from 0 to 1.
    """

    emotion: str
    probabilities: dict[str, float]
    seconds: float
    stretches: list[Stretch]
    words: list[Part]
    moments: list[Part]
    outline: list[float]


def make_app(
    desk: Desk, *, transcribes: bool, max_megabytes: float, max_seconds: float, hosts: Sequence[str]
) -> FastAPI:
    """The application, which answers from a desk and closes it at its end.

    Args:
        desk: who predicts.
        transcribes: whether there is a speech recogniser.
        max_megabytes: the largest recording that is taken.
        max_seconds: the longest recording that is taken.
        hosts: by which names it may be called; others are refused, so that no page of another host that is led here
            by its name server can use it.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(desk.close)

    app = FastAPIOffline(title="fourm_ser", version=__version__, lifespan=lifespan, docs_url="/docs", redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    model = Model(
        emotions=list(desk.predictor.emotions),
        reads=list(desk.predictor.modalities),
        transcribes=transcribes,
        max_seconds=max_seconds,
        max_megabytes=max_megabytes,
        version=__version__,
    )

    @app.middleware("http")
    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host"):
            return Response("another site's page may not use this", 403)
        response = await call(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        if request.url.path in PAGE:
            response.headers["Content-Security-Policy"] = ONLY_OURS
            response.headers["Cache-Control"] = "no-cache"
        return response

    for path, name in PAGE.items():
        app.add_api_route(path, _file(name), include_in_schema=False)

    @app.get("/api/model")
    def about() -> Model:
        """What is served, and its limits."""
        return model

    @app.post("/api/emotion", openapi_extra=BODY)
    async def emotion(
        request: Request,
        text: Annotated[str | None, Query(description="What is said; empty where there are no words.")] = None,
        explain: Annotated[bool, Query(description="Whether the effects of words and moments are wanted.")] = False,
        name: Annotated[str, Query(description="What errors call the recording.", max_length=200)] = "recording",
    ) -> Emotion:
        """The emotion of a recording, which is the request's body."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recording"
            await _receive(request, path, max_megabytes)
            try:
                item = await run_in_threadpool(_read, path, text, name, max_seconds)
                answer = await asyncio.wrap_future(desk.ask(item, explain))
            except InputError as error:
                raise HTTPException(422, str(error).replace(str(path), name)) from error
            except CrowdedError as error:
                raise HTTPException(503, str(error), {"Retry-After": "2"}) from error
        return _told(answer, item)

    return app


def _file(name: str) -> Callable[[], FileResponse]:
    def send() -> FileResponse:
        return FileResponse(HERE / name)

    return send


async def _receive(request: Request, path: Path, megabytes: float) -> None:
    """Write a request's body to a file as it comes; refused as soon as it is too large, or says that it will be."""
    most = int(megabytes * 1e6)
    refusal = HTTPException(413, f"a recording may have {megabytes:g} MB at most.", {"Connection": "close"})
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most:
        raise refusal
    received = 0
    with path.open("wb") as file:
        async for chunk in request.stream():
            received += len(chunk)
            if received > most:
                raise refusal
            file.write(chunk)
    if not received:
        raise HTTPException(422, "the request's body is empty: it has to be the recording.")


def _read(path: Path, text: str | None, name: str, most: float) -> Item:
    """A recording as an item in memory.

    Raises:
        InputError: it cannot be read, or is too long.
    """
    whole = items.decoded(items.checked(Item(os.fspath(path), text)), path.with_suffix(".flac"))
    length = items.seconds(whole)
    if length > most:
        raise InputError(f"{name}: {length:.0f} s. Expected {most:g} s at most.")
    return Item(items.read(whole, length), text, SAMPLE_RATE, called=name)


def _told(answer: Answer, item: Item) -> Emotion:
    samples: Any = item.audio
    stretches = [
        Stretch(
            start=moment.start,
            end=moment.end,
            emotion=moment.prediction and moment.prediction.emotion,
            probabilities=moment.prediction.probabilities if moment.prediction else {},
            text=moment.prediction.text if moment.prediction else None,
            error=None if moment.error is None else str(moment.error),
        )
        for moment in answer.moments
    ]
    found = [stretch.probabilities for stretch in stretches if stretch.emotion is not None]
    mean = {name: float(np.mean([shares[name] for shares in found])) for name in found[0]}
    words, moments = answer.effects or ([], [])
    return Emotion(
        emotion=max(mean, key=mean.__getitem__),
        probabilities=mean,
        seconds=len(samples) / SAMPLE_RATE,
        stretches=stretches,
        words=[_part(word) for word in words],
        moments=[_part(moment) for moment in moments],
        outline=outline(samples),
    )


def _part(effect: Effect) -> Part:
    return Part(**effect._asdict())


def outline(samples: np.ndarray) -> list[float]:
    """The loudest sample of each of up to 600 equal parts of a waveform [samples]."""
    parts = np.array_split(np.abs(samples), min(BARS, len(samples)))
    return [round(float(part.max()), 4) for part in parts]
