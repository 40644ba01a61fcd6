"""The server's batcher, without HTTP."""

import asyncio
import threading

import numpy as np
import pytest

from examples.mnist.serve.batching import Batcher, Overloaded

pytestmark = pytest.mark.slow


def test_nothing_is_computed_for_those_whose_time_is_over():
    computed, begun, go = [], threading.Semaphore(0), threading.Semaphore(0)

    def program(images):
        computed.append(int(images[0, 0, 0]))
        begun.release()
        assert go.acquire(timeout=60)
        return images[:, 0, :2].astype(np.float32)

    images = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)

    async def requests():
        batcher = Batcher(program, [1], 4)
        tasks = []
        for image in images[:4]:
            tasks.append(asyncio.create_task(batcher.probabilities(image[None])))
            await asyncio.sleep(0)
        await asyncio.to_thread(begun.acquire)
        go.release()
        await asyncio.to_thread(begun.acquire)  # The second: the thread has all waiting digits.
        tasks[2].cancel()
        for _ in range(10):
            go.release()
        await asyncio.gather(*tasks, return_exceptions=True)
        # With an empty queue, a request may exceed the queue's limit.
        assert len(await batcher.probabilities(images)) == 5
        await batcher.close()

    asyncio.run(requests())
    assert computed == [0, 1, 3, 0, 1, 2, 3, 4]


def test_batches_have_compiled_sizes_and_each_gets_its_own():
    sizes, begun, go = [], threading.Event(), threading.Event()

    def program(images):
        sizes.append(len(images))
        begun.set()
        assert go.wait(60)
        return images[:, 0, :2].astype(np.float32)

    images = np.arange(23 * 784).reshape(23, 28, 28).astype(np.uint8)

    async def requests():
        batcher = Batcher(program, [1, 4, 8], 23)
        first = asyncio.create_task(batcher.probabilities(images[:1]))
        await asyncio.to_thread(begun.wait)
        parts = np.split(images[1:], [1, 3, 10, 11, 13])
        others = [asyncio.create_task(batcher.probabilities(part)) for part in parts]
        await asyncio.sleep(0)  # They run until they block.
        with pytest.raises(Overloaded):
            await batcher.probabilities(images[:1])
        others[1].cancel()
        go.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        await batcher.close()
        assert isinstance(found.pop(2), asyncio.CancelledError)
        return np.concatenate(found)

    expected = np.delete(images, [2, 3], axis=0)[:, 0, :2]
    np.testing.assert_array_equal(asyncio.run(requests()), expected)
    assert sizes == [1, 8, 8, 4]
