"""Loads a model and serves it in a process until it is stopped."""

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from examples.mnist.errors import UserError
from examples.mnist.exported import Classifier
from examples.mnist.serve.app import Digits
from examples.mnist.serve.batching import Batcher, Program

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
MAX_HEADERS = 1 << 14  # bytes
MAX_READ = 1 << 24  # bytes of a body; bytes above MAX_BODY are dropped
MAX_CONNECTIONS = 256
MAX_WAITING = 512  # digits that wait or are computed


class Server(HTTPServer):
    """Tornado's server with a bound on the number of connections.

    Its settings limit the rest. Tornado documents both methods for subclasses to override.
    """

    connections = 0

    def handle_stream(self, stream: IOStream, address: tuple) -> None:
        """Serves a new connection, or closes it."""
        if self.connections == MAX_CONNECTIONS:
            stream.close()
            return
        self.connections += 1
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        """Counts a closed connection."""
        self.connections -= 1
        super().on_close(server_conn)


def compiled(classifier: Classifier, sizes: Sequence[int]) -> tuple[Program, list[int], float]:
    """Probabilities of batches of these sizes and of 1, compiled; and the seconds of a digit.

    Raises UserError if the probabilities are NaN.
    """
    # A call through `jit` takes 20 µs less than one of the compiled executable.
    call = jax.jit(classifier.program.call)

    def program(images: np.ndarray) -> np.ndarray:
        return np.exp(np.asarray(call(images)))

    sizes = sorted({1, *sizes})
    seconds = math.inf
    for size in sizes:
        images = np.zeros((size, *classifier.metadata["input_shape"][1:]), np.uint8)
        if np.isnan(program(images)).any():
            raise UserError("the model predicts NaN; train it again with a lower --learning-rate")
        begun = time.perf_counter()
        program(images)
        seconds = min(seconds, (time.perf_counter() - begun) / size)
    return program, sizes, seconds


def listen(host: str, port: int) -> socket.socket:
    """A socket; port 0 is any free port. Raises UserError if the address is not available."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
        raise UserError(
            f"{host}:{port} cannot be listened on ({reason}); choose another"
        ) from error


def bound_sending(listener: socket.socket, seconds: float) -> None:
    """Lets the system close connections whose clients do not read their answer for that long.

    Only Linux supports this. Elsewhere they stay open, and count towards MAX_CONNECTIONS.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * seconds))


async def answer(
    listener: socket.socket,
    labels: list[str],
    program: Program,
    sizes: Sequence[int],
    most_waiting: int,
    seconds: float,
    stop: asyncio.Event,
) -> None:
    """Answers requests until `stop`, then finishes those whose headers were read before.

    Args:
      listener: this function closes it.
      labels: the name of each class.
      program: see `Batcher`, as `sizes` and `most_waiting`.
      sizes: of the batches.
      most_waiting: digits.
      seconds: for the headers of a request; again for its body and answer.
      stop: an event of the running loop.
    """
    batcher = Batcher(program, sizes, most_waiting)
    app = Digits(labels, batcher, seconds)
    server = Server(
        app,
        max_header_size=MAX_HEADERS,
        idle_connection_timeout=seconds,
        max_body_size=MAX_READ,
        body_timeout=seconds,
    )
    bound_sending(listener, seconds)
    listener.setblocking(False)
    server.add_socket(listener)
    await stop.wait()
    app.stopping = True
    server.stop()
    loop = asyncio.get_running_loop()
    # Only answers that their clients do not read take longer.
    end = loop.time() + seconds + 5
    while app.active and loop.time() < end:
        await asyncio.sleep(0.02)
    await server.close_all_connections()
    await batcher.close()
    app.decoders.shutdown()


def serve(
    classifier: Classifier, host: str, port: int, sizes: Sequence[int], seconds: float
) -> None:
    """Serves until SIGTERM or SIGINT; then answers the accepted requests within their time limit.

    Prints one line with the address when the server is ready.

    Args:
      classifier: the model.
      host: the address to listen on.
      port: 0 is any free port.
      sizes: batch sizes to compile; 1 is always among them.
      seconds: see `answer`.

    Raises:
      UserError: if the address is not available.
    """
    with listen(host, port) as listener:
        # Tornado warns about every malformed request; clients must not fill the log.
        logging.getLogger("tornado.general").setLevel(logging.ERROR)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        signal.signal(signal.SIGTERM, _stop)
        program, sizes, each = compiled(classifier, sizes)
        most = max(1, min(MAX_WAITING, int(seconds / 2 / each)))
        name, number = listener.getsockname()[:2]
        shown = f"[{name}]" if ":" in name else name

        async def until_signalled() -> None:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            for each in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(each, stop.set)
            print(f"serving {classifier.metadata['model']} on http://{shown}:{number}", flush=True)
            await answer(listener, classifier.labels, program, sizes, most, seconds, stop)

        gc.freeze()  # Permanent objects need no further collection.
        asyncio.run(until_signalled())


def _stop(number: int, frame: object) -> None:
    sys.exit(0)
