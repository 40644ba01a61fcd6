"""From a model to a process that serves it until it is told to stop."""

import gc
import signal
import socket
import sys
from collections.abc import Sequence

import jax
import numpy as np
import uvicorn

from examples.mnist.errors import UserError
from examples.mnist.exported import Classifier
from examples.mnist.serve.app import application
from examples.mnist.serve.batching import Program
from examples.mnist.serve.connections import SECONDS, BoundedProtocol, bound_sending

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def compiled(classifier: Classifier, sizes: Sequence[int]) -> tuple[Program, list[int]]:
    """Probabilities of batches of these sizes and of 1, all compiled and run once."""
    # Called through `jit` a program takes 20 µs less than as the executable itself.
    call = jax.jit(classifier.program.call)

    def program(images: np.ndarray) -> np.ndarray:
        return np.exp(np.asarray(call(images)))

    sizes = sorted({1, *sizes})
    for size in sizes:
        program(np.zeros((size, *classifier.metadata["input_shape"][1:]), np.uint8))
    return program, sizes


def listen(host: str, port: int) -> socket.socket:
    """A socket; port 0 is any that is free. Raises UserError if the address cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{host}:{port} cannot be listened on ({reason}); choose another"
        ) from error


def serve(classifier: Classifier, host: str, port: int, sizes: Sequence[int] = BATCH_SIZES) -> None:
    """Serves until SIGTERM or SIGINT; then answers what it has accepted, within its time.

    Prints one line, with the address, once it can be asked.

    Args:
      classifier: the model.
      host: where to listen.
      port: 0 is any that is free.
      sizes: batch sizes to compile; 1 is always among them.

    Raises:
      UserError: if the address cannot be had.
    """
    # uvicorn raises the signal again when it is done; without this that would be the exit status.
    signal.signal(signal.SIGTERM, _stop)
    with listen(host, port) as listener:
        bound_sending(listener)
        app = application(classifier.labels, *compiled(classifier, sizes))
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            proxy_headers=False,
            loop="uvloop",
            lifespan="on",
            access_log=False,
            log_level="error",
            server_header=False,
            timeout_graceful_shutdown=int(SECONDS) + 5,
        )
        name, number = listener.getsockname()[:2]
        shown = f"[{name}]" if ":" in name else name
        print(f"serving {classifier.metadata['model']} on http://{shown}:{number}", flush=True)
        gc.freeze()  # What lives for ever need not be looked at again.
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass


def _stop(number: int, frame: object) -> None:
    sys.exit(0)
