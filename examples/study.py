"""Shared parts of the experiments: resumable work in pieces, progress, tables.

An experiment is a list of pieces. Each is computed once and written to OUT/pieces.jsonl, so an
interrupted study resumes with the first missing piece. The files of a study:

OUT/settings.json   the settings that its results depend on
OUT/pieces.jsonl    one line per piece: its name, its seconds, its result
OUT/table.md, OUT/table.csv, and plots
"""

import argparse
import csv
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import examples
from examples import strict_json
from examples.endings import memory_ended
from examples.lock import locked
from examples.mnist.errors import UserError
from examples.options import seed

Result = dict[str, Any]
"""The result of a piece: numbers, texts, lists of them; arrays become lists."""


class StudyError(ValueError):
    """An error that the user sees as one line."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of the work.

    Attributes:
      name: unique among the pieces.
      compute: returns the result.
      cost: its time relative to the others, for the estimate of the time left.
    """

    name: str
    compute: Callable[[], Result]
    cost: float = 1.0


class Study:
    """A folder with the finished pieces."""

    def __init__(self, folder: Path, settings: Result):
        """Opens a study, or creates it.

        Raises:
          StudyError: it was created with other settings.
          UserError: another process is using it.
        """
        self.folder, self.console = folder, Console(highlight=False)
        path, settings = folder / "settings.json", json.loads(json.dumps(settings))
        self.done: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        with locked(folder):
            if path.exists():
                before = json.loads(path.read_text())
                names = {*before, *settings}
                differing = sorted(k for k in names if before.get(k) != settings.get(k))
                if differing:
                    raise StudyError(
                        f"{folder} holds a study with other settings ({', '.join(differing)});"
                        f" choose another --out, or remove it"
                    )
            else:
                write_whole(path, json.dumps(settings, indent=1, allow_nan=False) + "\n")
            self._load()

    def _load(self) -> None:
        for line in self._lines():
            self.done[line["name"]], self.seconds[line["name"]] = line["result"], line["seconds"]

    def _lines(self) -> list[Result]:
        path = self.folder / "pieces.jsonl"
        text = path.read_text() if path.exists() else ""
        whole, _, torn = text.rpartition("\n")
        if torn:  # Killed during a write: that piece is computed again.
            write_whole(path, whole and whole + "\n")
        return [strict_json.loads(line) for line in whole.splitlines()]

    def run(self, pieces: Iterable[Piece]) -> dict[str, Result]:
        """Computes the missing pieces in order; returns the results of all pieces.

        A terminal shows a progress bar with the time left, estimated from costs and elapsed time.
        Elsewhere each piece prints a line. Raises UserError if another process uses the study.
        """
        with locked(self.folder):
            self._load()  # Another process may have added pieces since the study was opened.
            return self._run(list(pieces))

    def _run(self, pieces: list[Piece]) -> dict[str, Result]:
        missing = [piece for piece in pieces if piece.name not in self.done]
        before = len(pieces) - len(missing)
        if before:
            self.console.print(f"{before} of {len(pieces)} pieces were done before")
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        began, spent = time.perf_counter(), 0.0
        with bar:
            task = bar.add_task("", total=len(pieces), completed=before, left="")
            for i, piece in enumerate(missing):
                rest = sum(p.cost for p in missing[i:])
                now = time.perf_counter() - began
                left = f"about {clock(now / spent * rest)} left" if spent else ""
                bar.update(task, description=piece.name, left=left)
                start = time.perf_counter()
                result = piece.compute()
                self.save(piece.name, result, time.perf_counter() - start)
                spent += piece.cost
                bar.advance(task)
                if not self.console.is_terminal:
                    now = time.perf_counter() - began
                    left = now / spent * (rest - piece.cost)
                    self.say(
                        f"{piece.name}: {self.seconds[piece.name]:.1f} s,"
                        f" {len(missing) - i - 1} to go, about {clock(left)} left"
                    )
        return {piece.name: self.done[piece.name] for piece in pieces}

    def save(self, name: str, result: Result, seconds: float) -> None:
        """Writes one piece."""
        line = {"name": name, "seconds": round(seconds, 3), "result": result}
        text = strict_json.dumps(line, default=plain)
        with (self.folder / "pieces.jsonl").open("a") as file:
            file.write(text + "\n")
        self.done[name], self.seconds[name] = strict_json.loads(text)["result"], seconds

    def say(self, text: str) -> None:
        """Prints a line that only a terminal may wrap."""
        self.console.print(text, soft_wrap=True, markup=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], name: str) -> str:
        """Writes NAME.md and NAME.csv; returns the Markdown."""
        with (self.folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        lines = [columns, ["---"] * len(columns), *rows]
        text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
        (self.folder / f"{name}.md").write_text(text)
        return text


def plain(x: Any) -> Any:
    """An array as lists, for JSON."""
    return np.asarray(x).tolist()


def clock(seconds: float) -> str:
    """A duration rounded for people."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def write_whole(path: Path, text: str) -> None:
    """Writes or replaces the file atomically: a kill leaves the old or the whole new text."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def arguments(module: str, doc: str | None, digits: bool = True) -> argparse.ArgumentParser:
    """The options common to all experiments: --out, --fast, --seed, and --data-dir."""
    name = module.removeprefix("examples.")
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs") / name, help="folder of the results (%(default)s)"
    )
    parser.add_argument("--fast", action="store_true", help="a small version, to try it out")
    parser.add_argument("--seed", type=seed, default=0)
    if digits:
        parser.add_argument(
            "--data-dir",
            type=Path,
            help="folder of the four IDX files of MNIST"
            " (default: the included 8,000 + 2,000 digits)",
        )
    return parser


def command(main: Callable[[], None]) -> None:
    """Runs an experiment; reports user errors as one line on stderr, with exit status 1."""
    logging.getLogger("jax").setLevel(logging.ERROR)
    examples.raise_interrupts()
    try:
        main()
    except (UserError, StudyError, OSError) as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if not (ended := memory_ended(error)):
            raise
        print(f"error: {ended}; free some, then run the same command again", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(examples.interrupted())
