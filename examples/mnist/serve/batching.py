"""Dynamic batching: waiting requests are computed together, in one of a few compiled sizes.

A separate thread takes all waiting requests as soon as it is free. So a single request never waits
for others, and under load the requests that arrive during a batch form the next one. There is no
delay to configure.
"""

import asyncio
import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

Program = Callable[[np.ndarray], np.ndarray]
"""uint8 [size, 28, 28] to probabilities float32 [size, classes]."""


class Overloaded(Exception):
    """The limit of waiting images is reached."""


@dataclasses.dataclass(eq=False)
class _Request:
    images: np.ndarray
    answer: asyncio.Future[np.ndarray]
    parts: list[np.ndarray] = dataclasses.field(default_factory=list)
    taken: int = 0  # images already in a batch


class Batcher:
    """Probabilities of digits for many concurrent requests.

    All methods belong to one event loop. Every accepted image gets an answer, unless its request is
    cancelled.
    """

    def __init__(self, program: Program, sizes: Sequence[int], most_waiting: int):
        """Starts the thread.

        Args:
          program: is called in that thread, only with these sizes.
          sizes: of the batches; must include 1.
          most_waiting: images that may wait or be computed at a time; a request that finds none may
            have more. If it exceeds what the time of a request allows, the server spends its time
            on requests that have just expired.
        """
        if 1 not in sizes:
            raise ValueError(f"batch sizes are {sizes}; expected 1 among them; add it")
        self._program, self._most_waiting = program, most_waiting
        self._sizes = sorted(sizes, reverse=True)
        self._waiting = 0
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    async def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Probabilities float32 [count, classes] of images uint8 [count, 28, 28].

        Raises:
          Overloaded: if these images would exceed the limit.
        """
        if self._waiting and self._waiting + len(images) > self._most_waiting:
            raise Overloaded
        self._waiting += len(images)
        try:
            request = _Request(images, self._loop.create_future())
            self._requests.put(request)
            return await request.answer
        finally:
            self._waiting -= len(images)

    async def close(self) -> None:
        """Waits until all accepted images are computed, then ends the thread."""
        self._requests.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        pending: deque[_Request] = deque()
        open_ = True
        while open_ or pending:
            open_ = self._gather(pending) and open_
            # Drops expired requests: under overload they would take all the time.
            pending = deque(r for r in pending if not r.answer.done())
            if not (waiting := sum(len(r.images) - r.taken for r in pending)):
                continue
            # A full batch of a smaller size is better than a padded large one: on a CPU the time of
            # a batch is proportional to its size.
            size = next(size for size in self._sizes if size <= waiting)
            taken = _take(pending, size)
            try:
                found = self._program(np.concatenate([images for _, images in taken]))
            except Exception as error:  # Passed to each request.
                self._loop.call_soon_threadsafe(_fail, [r for r, _ in taken], error)
            else:
                self._loop.call_soon_threadsafe(_deliver, taken, found)

    def _gather(self, pending: deque[_Request]) -> bool:
        """Adds new requests, and waits for one if there are none; False once closed."""
        try:
            while request := self._requests.get(block=not pending):
                pending.append(request)
        except queue.Empty:
            return True
        return False


def _take(pending: deque[_Request], size: int) -> list[tuple[_Request, np.ndarray]]:
    """The next `size` images, each part with its request."""
    taken = []
    while size:
        request = pending[0]
        images = request.images[request.taken : request.taken + size]
        request.taken += len(images)
        size -= len(images)
        taken.append((request, images))
        if request.taken == len(request.images):
            pending.popleft()
    return taken


def _deliver(taken: list[tuple[_Request, np.ndarray]], found: np.ndarray) -> None:
    first = 0
    for request, images in taken:
        request.parts.append(found[first : first + len(images)])
        first += len(images)
        if sum(map(len, request.parts)) == len(request.images) and not request.answer.done():
            request.answer.set_result(np.concatenate(request.parts))


def _fail(requests: list[_Request], error: Exception) -> None:
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(error)
