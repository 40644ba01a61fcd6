"""The clients of `benchmarks.serve`, in a process that imports little.

    python -m benchmarks.serve.load PORT CLIENTS SECONDS < REQUEST

Prints the seconds of each request as JSON.
"""

import asyncio
import json
import sys
import time


class Client(asyncio.Protocol):
    """One connection that sends the next request as soon as it has an answer.

    A protocol instead of a pair of streams, because it takes a tenth of the measured time.
    """

    def __init__(self, request: bytes, seconds: list[float], until: float):
        self.request, self.seconds, self.until = request, seconds, until
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the first request."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Posts the digit."""
        self.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Notes the time of a whole answer, which is a line of JSON."""
        self.received += data
        if not self.received.endswith(b"}]}\n"):
            return
        now = time.perf_counter()
        assert self.received.startswith(b"HTTP/1.1 200"), self.received
        self.seconds.append(now - self.began)
        self.received = b""
        if now < self.until:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the connection; raises an error if it comes too early."""
        if exc or self.received or time.perf_counter() < self.until:
            self.over.set_exception(exc or ConnectionError(f"cut off: {self.received!r}"))
        else:
            self.over.set_result(None)


async def load(request: bytes, port: int, clients: int, duration: float) -> list[float]:
    """Seconds of each request, for that many clients and that many seconds."""
    loop = asyncio.get_running_loop()
    seconds: list[float] = []
    until = time.perf_counter() + duration
    made = [
        await loop.create_connection(lambda: Client(request, seconds, until), "127.0.0.1", port)
        for _ in range(clients)
    ]
    await asyncio.gather(*(client.over for _, client in made))
    return seconds


def main() -> None:
    """Reads the bytes of the request, sends them repeatedly, and prints the times."""
    port, clients, seconds = sys.argv[1:]
    request = sys.stdin.buffer.read()
    found = asyncio.run(load(request, int(port), int(clients), float(seconds)))
    print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
