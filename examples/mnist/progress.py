"""The progress of training: a bar in a terminal, a line per epoch elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as RichProgress

from examples.mnist.config import Config
from examples.study import clock


class Progress:
    """Shows the finished steps, their loss, and the remaining time of the whole training.

    The remaining time is that of the steps, at the pace of the finished ones, plus the test after
    each epoch. The first dispatch of an epoch is not timed, as it may include compilation.
    """

    def __init__(self, config: Config, first: int, steps: int, quiet: bool = False):
        self.epochs, self.steps, self.batch_size = config.epochs, steps, config.batch_size
        self.current, self.done = first, 0  # Epochs, and steps of the current one.
        self.paced, self.pace_seconds = 0, 0.0  # Timed steps, and their time.
        self.besides, self.tested = 0.0, False  # Seconds of the last epoch after its steps.
        self.since: float | None = None  # When the last steps of this epoch finished.
        self.console = Console(highlight=False, quiet=quiet)
        self.bar = RichProgress(
            SpinnerColumn("line"),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[measured]}{task.fields[now]}"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        epoch = min(first + 1, self.epochs)
        self.task = self.bar.add_task(
            "", total=steps, epoch=epoch, epochs=self.epochs, measured="", now="compiling"
        )

    def __enter__(self) -> "Progress":
        left = self.epochs - self.current
        if left:
            went_on = f"from epoch {self.current + 1} on, " if self.current else ""
            self.console.print(
                f"training: {went_on}{left} x {self.steps} steps of {self.batch_size} digits;"
                f" the first step compiles, which takes seconds",
                soft_wrap=True,
            )
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def doing(self, what: str) -> None:
        """Shows work other than steps."""
        self.bar.update(self.task, now=what)

    def finished(self, count: int, loss: float, accuracy: float) -> None:
        """Reports `count` more finished steps and the measurements of the last one."""
        now = time.perf_counter()
        if self.since is not None:
            self.paced += count
            self.pace_seconds += now - self.since
        self.since = now
        self.done += count
        text = f"loss {loss:.4f}  accuracy {accuracy:.4f}  "
        if self.paced:
            text += f"{self.paced * self.batch_size / self.pace_seconds:,.0f} digits/s  "
        self.bar.update(self.task, completed=self.done, measured=text, now=self.left())

    def left(self) -> str:
        """The remaining time of all epochs in words; empty while the pace is unknown."""
        if not self.paced:
            return ""
        epochs = self.epochs - self.current
        steps = epochs * self.steps - self.done
        seconds = steps * self.pace_seconds / self.paced + epochs * self.besides
        return f"about {clock(seconds)} left"

    def epoch(self, entry: dict[str, float], rate: float) -> None:
        """Prints the line of an epoch and begins the next."""
        self.console.print(
            f"epoch {entry['epoch']}/{self.epochs}"
            f"  train loss {entry['train_loss']:.4f} accuracy {entry['train_accuracy']:.4f}"
            f"  test loss {entry['test_loss']:.4f} accuracy {entry['test_accuracy']:.4f}"
            f"  {rate:,.0f} digits/s  {entry['seconds']:.1f} s",
            soft_wrap=True,
        )
        # The first test includes compilation, so its time says nothing about later tests.
        if self.since is not None and self.tested:
            self.besides = time.perf_counter() - self.since
        self.tested = True
        self.current, self.done, self.since = self.current + 1, 0, None
        if self.current < self.epochs:
            self.bar.update(self.task, completed=0, epoch=self.current + 1, now=self.left())
