"""From a model to a process that serves it until it is told to stop."""

import contextlib
import functools
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
import uvicorn
from PIL import Image
from starlette.applications import Starlette

from examples.mnist.errors import UserError
from examples.mnist.exported import Classifier
from examples.mnist.serve.app import MAX_WAITING, application
from examples.mnist.serve.batching import Program
from examples.mnist.serve.connections import BoundedProtocol, bound_sending

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def compiled(classifier: Classifier, sizes: Sequence[int]) -> tuple[Program, list[int], float]:
    """Probabilities of batches of these sizes and of 1, compiled; and the seconds of a digit.

    Raises UserError if the probabilities are NaN.
    """
    # Called through `jit` a program takes 20 µs less than as the executable itself.
    call = jax.jit(classifier.program.call)

    def program(images: np.ndarray) -> np.ndarray:
        return np.exp(np.asarray(call(images)))

    sizes = sorted({1, *sizes})
    seconds = math.inf
    for size in sizes:
        images = np.zeros((size, *classifier.metadata["input_shape"][1:]), np.uint8)
        if np.isnan(program(images)).any():
            raise UserError("the model says NaN; train it again, with a lower --learning-rate")
        begun = time.perf_counter()
        program(images)
        seconds = min(seconds, (time.perf_counter() - begun) / size)
    return program, sizes, seconds


def listen(host: str, port: int) -> socket.socket:
    """A socket; port 0 is any that is free. Raises UserError if the address cannot be had."""
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


def http_server(app: Starlette, seconds: float) -> uvicorn.Server:
    """A server that is still to be run.

    Args:
      app: see `application`.
      seconds: that a request may take, from its first byte to its answer.
    """
    config = uvicorn.Config(
        app,
        http=functools.partial(BoundedProtocol, seconds=seconds),  # type: ignore[arg-type]
        ws="none",
        loop="uvloop",
        lifespan="on",
        proxy_headers=False,
        access_log=False,
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(seconds) + 5,
    )
    return uvicorn.Server(config)


def serve(
    classifier: Classifier, host: str, port: int, sizes: Sequence[int], seconds: float
) -> None:
    """Serves until SIGTERM or SIGINT; then answers what it has accepted, within its time.

    Prints one line, with the address, once it can be asked.

    Args:
      classifier: the model.
      host: where to listen.
      port: 0 is any that is free.
      sizes: batch sizes to compile; 1 is always among them.
      seconds: see `http_server`.

    Raises:
      UserError: if the address cannot be had.
    """
    with listen(host, port) as listener:
        # What clients send must not fill the log.
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # uvicorn raises the signal again when it is done: that would be the exit status.
        signal.signal(signal.SIGTERM, _stop)
        bound_sending(listener, seconds)
        program, sizes, each = compiled(classifier, sizes)
        most = max(1, min(MAX_WAITING, int(seconds / 2 / each)))
        server = http_server(application(classifier.labels, program, sizes, most), seconds)
        name, number = listener.getsockname()[:2]
        shown = f"[{name}]" if ":" in name else name
        print(f"serving {classifier.metadata['model']} on http://{shown}:{number}", flush=True)
        gc.freeze()  # What lives for ever need not be looked at again.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def _stop(number: int, frame: object) -> None:
    sys.exit(0)
