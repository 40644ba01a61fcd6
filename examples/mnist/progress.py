"""How far the training is: a bar in a terminal, a line an epoch elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as RichProgress

from examples.mnist.config import Config
from examples.study import clock


class Progress:
    """Shows the steps that have finished, their loss, and the time left of the whole training.

    The time left is that of the steps, at the pace of those finished, and of the test after each
    epoch. The first dispatch of an epoch is not counted, as it may wait for the compiler.
    """

    def __init__(self, config: Config, first: int, steps: int, quiet: bool = False):
        self.epochs, self.steps, self.batch_size = config.epochs, steps, config.batch_size
        self.current, self.done = first, 0  # Epochs, and steps of this one.
        self.paced, self.pace_seconds = 0, 0.0  # Steps that were timed, and their time.
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
        """Says what is done that is not a step."""
        self.bar.update(self.task, now=what)

    def finished(self, count: int, loss: float, accuracy: float) -> None:
        """Says that `count` more steps have finished, and what the last of them measured."""
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
        """The time left of all epochs in words; empty while there is no pace to tell it from."""
        if not self.paced:
            return ""
        epochs = self.epochs - self.current
        steps = epochs * self.steps - self.done
        seconds = steps * self.pace_seconds / self.paced + epochs * self.besides
        return f"about {clock(seconds)} left"

    def epoch(self, entry: dict[str, float], rate: float) -> None:
        """Prints the line of an epoch; the next begins."""
        self.console.print(
            f"epoch {entry['epoch']}/{self.epochs}"
            f"  train loss {entry['train_loss']:.4f} accuracy {entry['train_accuracy']:.4f}"
            f"  test loss {entry['test_loss']:.4f} accuracy {entry['test_accuracy']:.4f}"
            f"  {rate:,.0f} digits/s  {entry['seconds']:.1f} s",
            soft_wrap=True,
        )
        # The first test compiles: what it took says nothing of those to come.
        if self.since is not None and self.tested:
            self.besides = time.perf_counter() - self.since
        self.tested = True
        self.current, self.done, self.since = self.current + 1, 0, None
        if self.current < self.epochs:
            self.bar.update(self.task, completed=0, epoch=self.current + 1, now=self.left())
