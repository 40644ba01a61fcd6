"""Dynamic batching: what is waiting is computed together, in one of a few compiled sizes.

A thread of its own takes whatever waits as soon as it is free. So a lone request waits for nobody,
and under load the requests that came during one batch are the next one: no delay to choose.
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
    """As much is waiting as may wait."""


@dataclasses.dataclass(eq=False)
class _Request:
    images: np.ndarray
    answer: asyncio.Future[np.ndarray]
    parts: list[np.ndarray] = dataclasses.field(default_factory=list)
    taken: int = 0  # images that are in a batch, or were


class Batcher:
    """Probabilities of digits, many requests at once.

    All methods belong to one event loop. Every image that is accepted gets an answer, unless
    whoever waits for it is cancelled.
    """

    def __init__(self, program: Program, sizes: Sequence[int], most_waiting: int):
        """Starts the thread.

        Args:
          program: is called in that thread, with these sizes alone.
          sizes: of the batches; 1 must be among them.
          most_waiting: images that may wait or be computed at a time; a request that finds none
            may have more. With more than can be computed in the time of a request, those are
            computed whose time is just over.
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
          Overloaded: if these images would be more than may wait.
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
        """Waits for what was accepted to be computed, then ends the thread."""
        self._requests.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        pending: deque[_Request] = deque()
        open_ = True
        while open_ or pending:
            open_ = self._gather(pending) and open_
            # Drops requests that nobody waits for: under overload they would take all the time.
            pending = deque(r for r in pending if not r.answer.done())
            if not (waiting := sum(len(r.images) - r.taken for r in pending)):
                continue
            # A full batch of a smaller size before a large one with empty places: on a CPU the time
            # of a batch is proportional to its size.
            size = next(size for size in self._sizes if size <= waiting)
            taken = _take(pending, size)
            try:
                found = self._program(np.concatenate([images for _, images in taken]))
            except Exception as error:  # Each request is told.
                self._loop.call_soon_threadsafe(_fail, [r for r, _ in taken], error)
            else:
                self._loop.call_soon_threadsafe(_deliver, taken, found)

    def _gather(self, pending: deque[_Request]) -> bool:
        """Adds what has come, or waits for it if there is nothing; False once closed."""
        try:
            while request := self._requests.get(block=not pending):
                pending.append(request)
        except queue.Empty:
            return True
        return False


def _take(pending: deque[_Request], size: int) -> list[tuple[_Request, np.ndarray]]:
    """The next `size` images, with the request that each part of them is from."""
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
