"""Shared parts of the experiments: options, resumable work in pieces, progress, tables.

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
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.shared import command_line, strict_json
from examples.shared.command_line import UserError, clock
from examples.shared.files import locked, write_whole

Result = dict[str, Any]
"""The result of a piece: numbers, texts, lists of them; arrays become lists."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of the work.

    Attributes:
      name: unique among the pieces.
      compute: returns the result.
      cost: its time relative to the others, for the estimate of the time left.
      loss: the key of a loss in the result that is printed; of a list, the last one.
    """

    name: str
    compute: Callable[[], Result]
    cost: float = 1.0
    loss: str = ""


class Study:
    """A folder with the finished pieces."""

    def __init__(self, folder: Path, settings: Result):
        """Opens a study, or creates it.

        Raises:
          UserError: it was created with other settings, or another process is using it.
        """
        self.folder = folder
        path, settings = folder / "settings.json", json.loads(json.dumps(settings))
        self.done: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        with locked(folder):
            if path.exists():
                before = json.loads(path.read_text())
                names = {*before, *settings}
                differing = sorted(k for k in names if before.get(k) != settings.get(k))
                if differing:
                    raise UserError(
                        f"{folder} holds a study with other settings ({', '.join(differing)});"
                        f" choose another --out, or remove it"
                    )
            else:
                write_whole(path, json.dumps(settings, indent=1, allow_nan=False) + "\n")
            self._load()

    def _load(self) -> None:
        path = self.folder / "pieces.jsonl"
        whole, _, torn = (path.read_text() if path.exists() else "").rpartition("\n")
        if torn:  # Killed during a write: that piece is computed again.
            write_whole(path, whole and whole + "\n")
        for line in map(strict_json.loads, whole.splitlines()):
            self.done[line["name"]], self.seconds[line["name"]] = line["result"], line["seconds"]

    def run(self, pieces: Iterable[Piece]) -> dict[str, Result]:
        """Computes the missing pieces in order; returns the results of all pieces.

        Each prints a line with the time left, estimated from costs and elapsed time. Raises
        UserError if another process uses the study.
        """
        pieces = list(pieces)
        with locked(self.folder):
            self._load()  # Another process may have added pieces since the study was opened.
            missing = [piece for piece in pieces if piece.name not in self.done]
            if before := len(pieces) - len(missing):
                print(f"{before} of {len(pieces)} pieces were done before")
            began, spent, rest = time.perf_counter(), 0.0, sum(piece.cost for piece in missing)
            for i, piece in enumerate(missing, 1):
                print(f"{i}/{len(missing)} {piece.name}", end=": ", flush=True)
                start = time.perf_counter()
                result = piece.compute()
                now = time.perf_counter()
                self._save(piece.name, result, now - start)
                spent, rest = spent + piece.cost, rest - piece.cost
                loss = f"loss {np.ravel(result[piece.loss])[-1]:.4f}, " if piece.loss else ""
                left = (now - began) / spent * rest
                left = "" if i == len(missing) else f", about {clock(left)} left"
                print(f"{loss}{now - start:.1f} s{left}")
        return {piece.name: self.done[piece.name] for piece in pieces}

    def _save(self, name: str, result: Result, seconds: float) -> None:
        line = {"name": name, "seconds": round(seconds, 3), "result": result}
        text = strict_json.dumps(line, default=lambda x: np.asarray(x).tolist())
        with (self.folder / "pieces.jsonl").open("a") as file:
            file.write(text + "\n")
        self.done[name], self.seconds[name] = strict_json.loads(text)["result"], seconds

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], name: str) -> str:
        """Writes NAME.md and NAME.csv; returns the Markdown."""
        with (self.folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        lines = [columns, ["---"] * len(columns), *rows]
        text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
        (self.folder / f"{name}.md").write_text(text)
        return text


class Parser(argparse.ArgumentParser):
    """The options common to all experiments: --out, --fast and --seed.

    `options` prints how long the experiment takes.
    """

    def __init__(self, name: str, doc: str | None, fast: int, full: int):
        """For `python -m examples.NAME`.

        Args:
          name: of the module; the default of --out is runs/ and its last part.
          doc: the module's docstring.
          fast: seconds on two cores with --fast.
          full: seconds on two cores without.
        """
        super().__init__(
            prog=f"python -m examples.{name}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.about = {True: fast, False: full}
        out = Path("runs") / name.partition(".")[2].replace(".", "-")
        about = "folder of the results (%(default)s)"
        self.add_argument("--out", type=Path, default=out, help=about)
        self.add_argument(
            "--fast",
            action="store_true",
            help=f"a small version, to try it out: {clock(fast)} instead of {clock(full)}",
        )
        self.add_argument("--seed", type=command_line.seed, default=0)

    def options(self, argv: list[str] | None) -> argparse.Namespace:
        """The options in the command line."""
        options = self.parse_args(argv)
        self.announce(options)
        return options

    def announce(self, options: argparse.Namespace) -> None:
        """Prints how long the experiment takes."""
        short = "; too short to decide anything" if options.fast else ""
        print(f"about {clock(self.about[options.fast])} on two cores{short}")


def command(main: Callable[[], None]) -> None:
    """Runs an experiment."""
    command_line.run(main, "; run the same command again to resume")
