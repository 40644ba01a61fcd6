"""What uvicorn leaves open: the time and the room of a connection before its request is complete.

uvicorn bounds neither how long a client may take to send a request (slow loris) or to take the
answer, nor how long its headers are. This does, for its fastest protocol.
"""

import asyncio
import json
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

MAX_HEADERS = 1 << 14  # bytes
BODY_HEADERS = (b"content-length", b"transfer-encoding")
MAX_CONNECTIONS = 256  # above this many an answer is 503; above twice as many there is none


def seconds_left(scope: Any) -> float:
    """Until a request's time is over."""
    return scope["state"]["deadline"] - asyncio.get_running_loop().time()


def bound_sending(listener: socket.socket, seconds: float) -> None:
    """Lets the system close connections whose clients take nothing of an answer for so long.

    Linux alone can. Elsewhere they stay, and count among MAX_CONNECTIONS.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * seconds))


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose requests must be complete within some seconds of their first byte.

    Hands on, in the request's state: `deadline`, by the event loop's clock, and `crowded`, whether
    there are more than MAX_CONNECTIONS.
    """

    def __init__(self, *args: Any, seconds: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.seconds = seconds
        self._deadline: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None
        self._in_headers, self._header_bytes, self._received = True, 0, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock: a client that connects has something to say."""
        super().connection_made(transport)
        if len(self.connections) > 2 * MAX_CONNECTIONS:
            transport.abort()
            return
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock, and what was to be written: uvicorn marks the last request alone."""
        if self._deadline is not None:
            self._deadline.cancel()
        for cycle in (self._answering, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Starts the clock at the first byte, be it an empty line, which is no request yet."""
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._begin()
        self._received += len(data)
        super().data_received(data)
        if self._in_headers and self._received > MAX_HEADERS:
            self._refuse_headers()

    def on_message_begin(self) -> None:
        """Of a request, perhaps of one in the same packet as the end of the one before."""
        super().on_message_begin()
        if self._deadline is None:
            self._begin()
        assert self._deadline is not None
        self.scope.setdefault("state", {}).update(
            deadline=self._deadline.when(), crowded=len(self.connections) > MAX_CONNECTIONS
        )

    def on_url(self, url: bytes) -> None:
        """Counts it among the headers."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Leaves out those after a chunked body: nobody reads them, and nothing bounds them."""
        if self._in_headers:
            self._count(len(name) + len(value))
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """From here on the body counts, which the application bounds."""
        self._in_headers = False
        empty = (b"content-length", b"0")
        body = [h for h in self.headers if h[0] in BODY_HEADERS and h != empty]
        if body and self.parser is not None and self.parser.should_upgrade():
            # The parser takes the body for the other protocol's.
            self._refuse(400, "no upgrade is offered here; send the request without it")
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Leaves out what belongs to a request that was refused."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Stops the clock of the connection; the application minds the deadline itself."""
        if self.transport.is_closing():
            return
        self._in_headers, self._header_bytes, self._received = True, 0, 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP."""
        self._refuse(400, msg)

    def _begin(self) -> None:
        self._deadline = self.loop.call_later(self.seconds, self._late)

    def _late(self) -> None:
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:
            # The application is about to answer, as the same deadline is over; then it is enough.
            self.cycle.keep_alive = False
        elif self._in_headers:
            self._refuse(408, f"no complete request within {self.seconds:g} seconds")
        else:
            self.transport.close()  # It was answered, and goes on sending its body.

    def _count(self, size: int) -> None:
        """Those that come all at once, too."""
        self._header_bytes += size
        if self._header_bytes > MAX_HEADERS:
            self._refuse_headers()

    def _refuse_headers(self) -> None:
        self._refuse(431, f"headers of more than {MAX_HEADERS:,} bytes; send fewer")

    def _refuse(self, status: int, reason: str) -> None:
        if self.transport.is_closing():
            return
        body = json.dumps({"error": reason}).encode() + b"\n"
        headers = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        lines = [STATUS_LINE[status], headers.encode(), b"connection: close\r\n\r\n", body]
        self.transport.write(b"".join(lines))
        self.transport.close()
