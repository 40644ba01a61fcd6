"""The addresses of the server, as a Tornado application."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from http.client import responses
from pathlib import Path
from typing import Any

import numpy as np
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from examples.endings import memory_ended
from examples.mnist.serve import bodies
from examples.mnist.serve.batching import Batcher, Overloaded
from examples.mnist.serve.bodies import MAX_BODY, Refused

PAGE = Path(__file__).parent / "page.html"
# The page is self-contained, and may connect only to this server.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
POLICY += " connect-src 'self'; img-src data:; frame-ancestors 'none'"
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
}


def as_json(content: object) -> str:
    """One line of strict JSON, which has no NaN."""
    return json.dumps(content, allow_nan=False) + "\n"


class Digits(Application):
    """Predictions of one model.

    Attributes:
      labels: the name of each class.
      batcher: computes the probabilities.
      seconds: from the headers of a request until its answer must be computed.
      active: requests whose headers were read before `stopping`, until their answer is written.
      stopping: refuses later requests.
    """

    def __init__(self, labels: list[str], batcher: Batcher, seconds: float):
        routes = [("/predict", Predict), ("/healthz", Health), ("/", Page)]
        super().__init__(routes, default_handler_class=Missing, log_function=lambda handler: None)
        self.labels, self.batcher, self.seconds = labels, batcher, seconds
        self.active: set[RequestHandler] = set()
        self.stopping = False
        self.decoders = ThreadPoolExecutor(1, "pictures")
        # "</" would end the script element that contains the labels.
        text = json.dumps(labels).replace("</", "<\\/")
        self.page = PAGE.read_text("utf-8").replace("LABELS", text)


# Otherwise Tornado keeps the whole body and parses forms itself, with other limits.
@stream_request_body
class Handler(RequestHandler):
    """Base of all addresses: keeps a limited body, answers errors with one line of JSON."""

    application: Digits

    def initialize(self) -> None:
        """Begins a request whose headers were read."""
        self.body = bytearray()
        self.deadline = asyncio.get_running_loop().time() + self.application.seconds
        self.accepted = not self.application.stopping
        if self.accepted:
            self.application.active.add(self)

    def set_default_headers(self) -> None:
        """Removes the server's name and version."""
        self.clear_header("Server")

    def data_received(self, chunk: bytes) -> None:
        """Drops bytes beyond the limit; they are read so that the client sees the 413."""
        if len(self.body) <= MAX_BODY:
            self.body += chunk

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> asyncio.Future[None]:
        """Writes the answer. The request is active until all of it is sent."""
        written = super().finish(chunk)
        written.add_done_callback(lambda _: self.application.active.discard(self))
        return written

    def on_connection_close(self) -> None:
        """The client closed the connection."""
        self.application.active.discard(self)

    def write_json(self, content: object) -> None:
        """Answers with one line."""
        self.set_header("Content-Type", "application/json")
        self.finish(as_json(content))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answers with the reason; only the log has an unexpected exception."""
        error = kwargs.get("exc_info", [None] * 3)[1]
        reason = "an error in the server" if status_code == 500 else responses[status_code]
        if isinstance(error, Refused):
            reason = error.text
        if status_code == 405:
            self.set_header("Allow", ", ".join(self.SUPPORTED_METHODS))
        if status_code == 503:
            self.set_header("Retry-After", "1")
        self.write_json({"error": reason})


class Missing(Handler):
    """Any other address."""

    def get(self) -> None:
        """Answers 404."""
        raise HTTPError(404)

    head = post = delete = patch = put = options = get


class Health(Handler):
    """Health check; the model is compiled before the server answers."""

    SUPPORTED_METHODS = ("GET", "HEAD")

    def get(self) -> None:
        """Answers."""
        self.write_json({"status": "ok"})

    head = get


class Page(Handler):
    """The page to draw on."""

    SUPPORTED_METHODS = ("GET", "HEAD")

    def get(self) -> None:
        """Answers with HTML."""
        for name, value in PAGE_HEADERS.items():
            self.set_header(name, value)
        self.finish(self.application.page)

    head = get


class Predict(Handler):
    """Digits and probabilities of the body's pictures."""

    SUPPORTED_METHODS = ("POST",)

    async def post(self) -> None:
        """Answers with the predictions, or refuses."""
        if not self.accepted:
            raise Refused(503, "the server is stopping; try again later")
        if len(self.body) > MAX_BODY:
            raise Refused(413, f"a body of more than {MAX_BODY:,} bytes; send less")
        kind = self.request.headers.get("Content-Type", "")
        try:
            async with asyncio.timeout_at(self.deadline):
                images = await bodies.digits_of(bytes(self.body), kind, self.application.decoders)
                found = await self.application.batcher.probabilities(images)
        except TimeoutError:
            raise Refused(503, "no answer in time; try again later") from None
        except Overloaded:
            raise Refused(503, "too many digits are waiting; try again later") from None
        except Exception as error:
            if not memory_ended(error):
                raise
            raise Refused(503, "out of memory; try again later") from error
        self.write_json({"predictions": [self.prediction(each) for each in found]})

    def prediction(self, probabilities: np.ndarray) -> dict[str, object]:
        """The most probable digit and all probabilities."""
        labels = self.application.labels
        named = dict(zip(labels, probabilities.tolist(), strict=True))
        return {"digit": labels[probabilities.argmax()], "probabilities": named}
