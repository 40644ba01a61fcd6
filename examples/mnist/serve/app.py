"""The addresses of the server, as a Starlette application."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from examples.endings import memory_ended
from examples.mnist.serve import bodies
from examples.mnist.serve.batching import Batcher, Overloaded, Program
from examples.mnist.serve.bodies import MAX_BODY, Refused
from examples.mnist.serve.connections import seconds_left

MAX_WAITING = 512  # digits that wait or are computed
PAGE = Path(__file__).parent / "page.html"
# The page has all it needs in itself, and may ask nobody but this server.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
POLICY += " connect-src 'self'; img-src data:; frame-ancestors 'none'"
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
}


def as_json(content: object, status: int = 200, **headers: str) -> Response:
    """One line of JSON."""
    text = json.dumps(content, allow_nan=False) + "\n"
    return Response(text, status, headers, media_type="application/json")


class Application:
    """Predictions of one model.

    Attributes:
      labels: the name of each class.
      batcher: there is one while the application runs.
    """

    batcher: Batcher

    def __init__(self, labels: list[str]):
        self.labels = labels
        self.decoders = ThreadPoolExecutor(1, "pictures")
        # "</" would end the script in which the labels stand.
        text = json.dumps(labels).replace("</", "<\\/")
        self.page = PAGE.read_text("utf-8").replace("LABELS", text)

    async def show_page(self, request: Request) -> Response:
        """The page to draw on."""
        return HTMLResponse(self.page, headers=PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        """That there is somebody; the model was compiled before."""
        return as_json({"status": "ok"})

    async def predict(self, request: Request) -> Response:
        """Digits and probabilities of the body's pictures."""
        if request.state.crowded:
            raise Refused(503, "too many connections; try again later")
        received = False
        try:
            async with asyncio.timeout(seconds_left(request.scope)):
                body = await read(request)
                received = True
                kind = request.headers.get("content-type", "")
                images = await bodies.digits_of(body, kind, self.decoders)
                found = await self.batcher.probabilities(images)
        except TimeoutError:
            if received:
                raise Refused(503, "no answer in time; try again later") from None
            raise Refused(408, "the body did not come in time; send it faster") from None
        except Overloaded:
            raise Refused(503, "too many digits are waiting; try again later") from None
        except Exception as error:
            if not memory_ended(error):
                raise
            raise Refused(503, "memory ended; try again later") from error
        return as_json({"predictions": [self.prediction(each) for each in found]})

    def prediction(self, probabilities: np.ndarray) -> dict[str, object]:
        """What is said of one digit."""
        named = dict(zip(self.labels, probabilities.tolist(), strict=True))
        return {"digit": self.labels[probabilities.argmax()], "probabilities": named}


async def read(request: Request) -> bytes:
    """The body. Raises Refused if it is too large, whatever its header says."""
    too_large = Refused(413, f"a body of more than {MAX_BODY:,} bytes; send less")
    # The parser has refused a length that is no number.
    if int(request.headers.get("content-length", 0)) > MAX_BODY:
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise too_large
    return bytes(body)


async def answer_refused(request: Request, error: Exception) -> Response:
    """What the client did wrong, or why it has to wait."""
    assert isinstance(error, Refused)
    later = {"retry-after": "1"} if error.status == 503 else {}
    return as_json({"error": error.reason}, error.status, **later)


async def answer_http(request: Request, error: Exception) -> Response:
    """An address or a method that there is not."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    return as_json({"error": error.detail}, error.status_code, **headers)


async def answer_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this: the client has closed the connection."""
    return as_json({"error": "the client went"}, 400)


async def answer_any(request: Request, error: Exception) -> Response:
    """What nobody thought of; the log of the server has the rest."""
    return as_json({"error": "an error in the server"}, 500)


def application(
    labels: list[str], program: Program, sizes: Sequence[int], most_waiting: int = MAX_WAITING
) -> Starlette:
    """The application.

    Args:
      labels: the name of each class.
      program: see `Batcher`, as the rest.
      sizes: of the batches.
      most_waiting: digits.
    """
    app = Application(labels)

    @contextlib.asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        app.batcher = Batcher(program, sizes, most_waiting)
        yield
        await app.batcher.close()
        app.decoders.shutdown()

    handlers: dict[type[Exception], Callable[..., object]] = {
        Refused: answer_refused,
        HTTPException: answer_http,
        ClientDisconnect: answer_gone,
        Exception: answer_any,
    }
    routes = [
        Route("/predict", app.predict, methods=["POST"]),
        Route("/healthz", app.health, methods=["GET"]),
        Route("/", app.show_page, methods=["GET"]),
    ]
    server = Starlette(routes=routes, lifespan=running, exception_handlers=handlers)  # type: ignore
    # /predict/ would be answered by a redirect to whatever host the request names.
    server.router.redirect_slashes = False
    return server
