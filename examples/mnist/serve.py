"""An HTTP server for one model: a page to draw on, and predictions for pictures.

Requests are computed one after the other on a second thread. Bodies, headers, waiting requests and
the time of each are limited: a few bytes can claim to be a picture of gigabytes.
"""

import asyncio
import io
import json
import logging
import signal
import socket
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.client import responses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tornado.httpserver import HTTPServer
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from examples.mnist import data, pictures
from examples.mnist.export import Predict
from examples.shared.command_line import UserError

MAX_HEADERS, MAX_BODY = 1 << 14, 1 << 20  # bytes
MAX_DIGITS = 64  # in one request
MAX_PIXELS = 1 << 22
MAX_REQUESTS = 64  # that wait or are computed
# The page is self-contained, and may connect only to this server.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
POLICY += " connect-src 'self'; img-src data:; frame-ancestors 'none'"
EXPECTED = "expected a PNG, or a JSON array [28][28] or [count][28][28] of 0 to 255"


def digits_of(body: bytes) -> np.ndarray:
    """The digits of a body, uint8 [count, 28, 28], light on dark.

    The kind is detected from the first bytes: `curl --data-binary` sends a wrong content type.

    Raises:
      UserError: it holds no digit, or exceeds a limit.
    """
    if body.startswith(b"\x89PNG"):
        picture = pictures.open_picture(io.BytesIO(body), "the picture", ("PNG",))
        if picture.width * picture.height > MAX_PIXELS:
            size = f"{picture.width} x {picture.height}"
            raise UserError(f"the picture has {size} pixels; expected up to {MAX_PIXELS:,}")
        return pictures.digit_of(picture, "the picture")[None]
    try:
        pixels: Any = json.loads(body)
        images = pixels if isinstance(pixels[0][0], list) else [pixels]
        # `bytes` accepts only integers from 0 to 255; for a list, not for an integer.
        rows = [[bytes(row) for row in image if isinstance(row, list)] for image in images]
        digits = np.array([[[*row] for row in image] for image in rows], np.uint8)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the body cannot be read ({reason}); {EXPECTED}") from error
    if digits.shape[1:] != (data.SIDE, data.SIDE) or len(digits) > MAX_DIGITS:
        raise UserError(f"the JSON has the shape {digits.shape}, with at most {MAX_DIGITS} digits")
    for i, digit in enumerate(digits):
        pictures.check_ink(digit, f"array {i}")
    return digits


class Server(Application):
    """Predictions of one model.

    Attributes:
      predict: see `Predict`; it is only called with one digit, for which it was compiled.
      seconds: from the headers of a request to its body, and from there to its answer.
      active: requests whose answer is not written.
    """

    def __init__(self, predict: Predict, seconds: float):
        routes = [("/predict", Prediction), ("/healthz", Health), ("/", Page)]
        super().__init__(routes, default_handler_class=Missing, log_function=lambda handler: None)
        self.predict, self.seconds, self.active = predict, seconds, 0
        self.worker = ThreadPoolExecutor(1)
        self.page = Path(__file__).with_name("page.html").read_text("utf-8")

    def predictions(self, body: bytes) -> list[dict[str, Any]]:
        """The most probable digit of each picture, and all probabilities."""
        found = [self.predict(digit[None])[0] for digit in digits_of(body)]
        return [
            {
                "digit": str(p.argmax()),
                "probabilities": {str(digit): x for digit, x in enumerate(p.tolist())},
            }
            for p in found
        ]


# Otherwise Tornado parses bodies as forms, since that is what `curl` says they are.
@stream_request_body
class Handler(RequestHandler):
    """Base of all addresses: answers errors with one line of JSON."""

    application: Server

    def initialize(self) -> None:
        """Begins a request."""
        self.body = bytearray()

    def prepare(self) -> None:
        """Refuses a request if too many wait."""
        self.application.active += 1
        if self.application.active > MAX_REQUESTS:
            raise HTTPError(503)

    def on_finish(self) -> None:
        """The answer is written."""
        self.application.active -= 1

    def set_default_headers(self) -> None:
        """Removes the server's name and version."""
        self.clear_header("Server")

    def data_received(self, chunk: bytes) -> None:
        """A part of the body, whose size the server limits."""
        self.body += chunk

    def write_json(self, content: object) -> None:
        """Answers with one line of strict JSON."""
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(content, allow_nan=False) + "\n")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answers with the reason; only the log has an unexpected exception."""
        self.write_json({"error": responses[status_code]})


class Missing(Handler):
    """Any other address."""

    def get(self) -> None:
        """Answers 404."""
        raise HTTPError(404)

    head = post = delete = patch = put = options = get


class Health(Handler):
    """The model is compiled before the server answers."""

    def get(self) -> None:
        """Answers."""
        self.write_json({"status": "ok"})

    head = get


class Page(Handler):
    """The page to draw on."""

    def get(self) -> None:
        """Answers with HTML."""
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(self.application.page)

    head = get


class Prediction(Handler):
    """Digits and probabilities of the body's pictures."""

    async def post(self) -> None:
        """Answers with the predictions, or refuses."""
        app, loop = self.application, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(app.seconds):
                work = loop.run_in_executor(app.worker, app.predictions, bytes(self.body))
                self.write_json({"predictions": await work})
        except UserError as error:
            self.set_status(400)
            self.write_json({"error": str(error)})
        except (TimeoutError, MemoryError):
            raise HTTPError(503) from None


def listen(host: str, port: int) -> socket.socket:
    """A socket; port 0 is any free port. Raises UserError if the address is not available."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{host}:{port} cannot be listened on ({error}); choose another") from error


async def answer(
    listener: socket.socket, predict: Predict, seconds: float, stop: asyncio.Event
) -> None:
    """Answers requests until `stop`, then finishes those that it has begun."""
    app, loop = Server(predict, seconds), asyncio.get_running_loop()
    server = HTTPServer(
        app,
        max_header_size=MAX_HEADERS,
        max_body_size=MAX_BODY,
        body_timeout=seconds,
        idle_connection_timeout=seconds,
    )
    listener.setblocking(False)
    server.add_socket(listener)
    await stop.wait()
    server.stop()
    end = loop.time() + 2 * seconds
    while app.active and loop.time() < end:
        await asyncio.sleep(0.02)
    await server.close_all_connections()
    app.worker.shutdown()


def serve(predict: Predict, host: str, port: int, seconds: float) -> None:
    """Serves until SIGTERM or ctrl-C; prints one line with the address when it is ready.

    Args:
      predict: see `Predict`.
      host: the address to listen on.
      port: 0 is any free port.
      seconds: the time of a request's headers and body, and again of its answer.

    Raises:
      UserError: the address is not available, or the model predicts NaN.
    """
    with listen(host, port) as listener:
        # Tornado warns about every malformed request; clients must not fill the log.
        logging.getLogger("tornado.general").setLevel(logging.ERROR)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        predict(np.zeros((1, data.SIDE, data.SIDE), np.uint8))  # Compiles it.
        name, number = listener.getsockname()[:2]

        async def until_signalled() -> None:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            for each in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(each, stop.set)
            shown = f"[{name}]" if ":" in name else name
            print(f"serving on http://{shown}:{number}", flush=True)
            await answer(listener, predict, seconds, stop)

        asyncio.run(until_signalled())
