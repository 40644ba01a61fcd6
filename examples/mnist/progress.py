"""How far the training is: a bar in a terminal, a line an epoch elsewhere."""

import time
from types import TracebackType

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Shows loss, accuracy and digits per second of the last batches, several times a second."""

    def __init__(self, epochs: int, steps: int, batch_size: int, quiet: bool = False):
        self.epochs, self.batch_size = epochs, batch_size
        self.console = Console(highlight=False, quiet=quiet)
        self.bar = RichProgress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.4f}"),
            TextColumn("{task.fields[rate]:,.0f} digits/s"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        shown = {"epoch": 1, "epochs": epochs, "loss": 0.0, "accuracy": 0.0, "rate": 0.0}
        self.task = self.bar.add_task("", total=steps, **shown)
        self.current, self.done = -1, 0
        self.since = self.read = time.perf_counter()  # The epoch's start; the last reading.

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def steps(self, epoch: int, count: int, loss: jax.Array, accuracy: jax.Array) -> None:
        """Says that `count` more steps were dispatched, and what they measured."""
        if self.bar.disable:
            return
        if epoch != self.current:
            self.current, self.done = epoch, 0
            self.bar.reset(self.task)
            self.bar.update(self.task, epoch=epoch + 1)
        self.done += count
        self.bar.advance(self.task, count)
        # Reading a number waits for the device: only as often as a person can see.
        if time.perf_counter() - self.read > 0.2:
            last = float(loss[-1]), float(accuracy[-1])
            self.read = time.perf_counter()
            rate = self.done * self.batch_size / (self.read - self.since)
            self.bar.update(self.task, loss=last[0], accuracy=last[1], rate=rate)

    def epoch(self, entry: dict[str, float], rate: float) -> None:
        """Prints the line of an epoch."""
        self.console.print(
            f"epoch {entry['epoch']}/{self.epochs}"
            f"  train loss {entry['train_loss']:.4f} accuracy {entry['train_accuracy']:.4f}"
            f"  test loss {entry['test_loss']:.4f} accuracy {entry['test_accuracy']:.4f}"
            f"  {rate:,.0f} digits/s  {entry['seconds']:.1f} s",
            soft_wrap=True,
        )
        self.since = time.perf_counter()
