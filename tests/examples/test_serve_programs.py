"""Slow and failing programs, in a server in a thread."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from examples.mnist import data
from tests.examples.serving import ask, even, png, served

pytestmark = pytest.mark.slow

DIGIT = data.load().test_images[0]


def test_a_full_queue_is_503_and_what_was_accepted_is_answered():
    go = threading.Event()

    def held_back(images):
        assert go.wait(60)
        return even(images)

    body = json.dumps([DIGIT.tolist()] * 3)
    with served(held_back, most_waiting=7) as address, ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(ask, address, body) for _ in range(3)]
        full = next(each for each in iter(lambda: [f for f in asked if f.done()], None) if each)
        [(status, content)] = [each.result() for each in full]
        assert status == 503 and "waiting" in content["error"]
        go.set()
        assert sorted(each.result()[0] for each in asked) == [200, 200, 503]


def test_an_answer_that_does_not_come_in_time_is_503():
    go = threading.Event()

    def late(images):
        assert go.wait(60)
        return even(images)

    with served(late, seconds=0.5) as address:
        status, content = ask(address, png(DIGIT))
        assert status == 503 and "in time" in content["error"]
        go.set()
        assert ask(address, png(DIGIT))[0] == 200


def test_a_failing_program_is_500_without_a_traceback(caplog):
    def fail(images):
        raise RuntimeError("no device")

    with served(fail) as address:
        assert ask(address, png(DIGIT)) == (500, {"error": "an error in the server"})
    assert "RuntimeError: no device" in caplog.text  # For the operator.
