"""The progress bar counts completed steps and shows the time left of the whole training."""

import collections

import numpy as np
import pytest

from examples.mnist import progress as module
from examples.mnist.config import Config
from examples.mnist.progress import Progress
from examples.mnist.train import _finished

ENTRY = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), 0.5)


@pytest.fixture
def at(monkeypatch):
    """Sets the clock."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def set_to(seconds):
        now[0] = seconds

    return set_to


def shown(bar):
    task = bar.bar.tasks[0]
    return task.completed, (task.fields["measured"] + task.fields["now"]).rstrip()


def test_time_left_leaves_the_compiler_out_and_has_the_epochs_to_come(at):
    bar = Progress(Config(epochs=3, batch_size=64), first=0, steps=40)
    assert shown(bar) == (0, "compiling")
    at(12)  # seconds, mostly compilation
    bar.finished(10, 2.0, 0.25)
    assert shown(bar) == (10, "loss 2.0000  accuracy 0.2500")
    at(13)
    bar.finished(10, 1.5, 0.5)
    # 640 digits in the second after the first dispatch; 20 + 2 x 40 steps at 10 a second.
    assert shown(bar) == (20, "loss 1.5000  accuracy 0.5000  640 digits/s  about 10 s left")
    at(15)
    bar.finished(20, 1.0, 0.75)
    at(30)  # The first evaluation compiles.
    bar.epoch({"epoch": 1, "seconds": 15.0, **ENTRY}, 1.0)
    assert shown(bar)[0] == 0 and bar.bar.tasks[0].fields["epoch"] == 2
    assert bar.left() == "about 8 s left"  # 2 x 40 steps at 10 a second.
    at(40)
    bar.finished(40, 0.5, 1.0)
    at(43)
    bar.epoch({"epoch": 2, "seconds": 15.0, **ENTRY}, 1.0)
    assert bar.left() == "about 7 s left"  # 40 steps, and an evaluation of 3 seconds.


class Loss:
    """The loss of ten dispatched steps."""

    def __init__(self, value, ready):
        self.value, self.ready = value, ready

    def is_ready(self):
        return self.ready

    def __array__(self, dtype=None, copy=None):
        return np.full(10, self.value)


def test_a_step_counts_when_it_has_finished():
    bar = Progress(Config(), first=0, steps=50)
    losses = [Loss(i, ready=i < 2) for i in range(4)]
    dispatched = collections.deque((loss, np.zeros(10)) for loss in losses)
    assert [loss[0] for loss, _ in _finished(dispatched, bar, wait=False)] == [0, 1]
    assert len(dispatched) == 2 and shown(bar)[0] == 20
    assert [loss[0] for loss, _ in _finished(dispatched, bar, wait=True)] == [2, 3]
    assert not dispatched and shown(bar)[0] == 40
