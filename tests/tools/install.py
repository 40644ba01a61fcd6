"""Runs `pip install` for the Makefile, with a one-line progress display.

    python -m tests.tools.install --group test --editable .

pip prints some hundred lines, or none for minutes with --quiet.
"""

import collections
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator

EVERY = 15  # seconds between two lines where there is no terminal


def states(lines: Iterable[str]) -> Iterator[str]:
    """Yields what pip is doing, after each line of its output that says so."""
    found, current = 0, ""
    for line in lines:
        if match := re.match(r"\s*Collecting ([\w.-]+)", line):
            found, current = found + 1, match[1]
            yield f"package {found}: {current}"
        elif match := re.match(r"Progress (\d+) of (\d+)", line):
            done, size = (int(count) / 1e6 for count in match.groups())
            if size >= 1:
                yield f"package {found}: {current}, {done:.0f} of {size:.0f} MB"
        elif line.startswith("Installing collected packages: "):
            yield f"unpacking {line.count(',') + 1} packages"


class Line:
    """A line that is overwritten in a terminal; elsewhere it is printed again now and then."""

    def __init__(self) -> None:
        self.terminal, self.began = sys.stdout.isatty(), time.monotonic()
        self.last, self.state = self.began, "asking for the list of packages"

    def show(self, state: str | None = None) -> None:
        """Shows what pip is doing and the seconds so far."""
        self.state, now = state or self.state, time.monotonic()
        text = f"  {now - self.began:.0f} s  {self.state}"
        if self.terminal and now - self.last > 0.1:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", flush=True)
            self.last = now
        elif not self.terminal and now - self.last > EVERY:
            print(text, flush=True)
            self.last = now

    def end(self, text: str) -> None:
        """Clears the line and prints the outcome."""
        seconds = time.monotonic() - self.began
        print(f"{chr(13)}\x1b[K" * self.terminal + f"  {text} after {seconds:.0f} s", flush=True)


def main(arguments: list[str]) -> int:
    """Runs pip and returns its exit status; if that is not 0, prints the end of its output."""
    # Without --no-compile, most of the time goes into bytecode of modules that nothing imports.
    pip = [sys.executable, "-m", "pip", "install", "--progress-bar", "raw", "--no-compile"]
    command = [*pip, *arguments]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    tail: collections.deque[str] = collections.deque(maxlen=40)
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for text in process.stdout or ():
            if not text.startswith("Progress "):
                tail.append(text)
            said.put(text)
        said.put(None)

    def lines() -> Iterator[str]:
        while True:
            try:
                text = said.get(timeout=1)
            except queue.Empty:
                shown.show()  # Updates the seconds while pip is silent.
                continue
            if text is None:
                return
            yield text

    shown = Line()
    threading.Thread(target=read, daemon=True).start()
    try:
        for state in states(lines()):
            shown.show(state)
        status = process.wait()
    except KeyboardInterrupt:
        process.kill()
        shown.end("interrupted")
        return 130
    shown.end("pip failed" if status else "installed")
    if status:
        sys.stderr.writelines(tail)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
