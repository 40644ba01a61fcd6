"""Faults that a training survives: killed processes, full disks, corrupted checkpoints.

python -m benchmarks.reliability [--times 30] [--epochs 12] [--only REGEX] [--seed 0] [--fast]

Each fault is injected into a real process of `python -m examples.mnist train`, a small one of 12
epochs. It is survived if the same command with --resume then ends with the same state (parameters,
moments, counts) and metrics, to the last bit, as an undisturbed training. Then, in this process:
two million optimizer steps, and counts at their maximum.

--only selects the faults whose name matches the expression; --fast takes one folder through one
fault of each kind, and little of the rest.
"""

import argparse
import collections
import contextlib
import functools
import io
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.reliability import faults, steps
from examples.options import positive, seed

Fault = Callable[[faults.Training, Path, random.Random], str]
Row = tuple[str, int, int, str]

# By name. Kills can hit one training repeatedly, and the training can be resumed after them.
KILLS: dict[str, Fault] = {
    "kill -9 while it starts": faults.killed_at_start,
    "kill -9 at any moment of training": faults.killed,
    "kill -9 while a checkpoint is written": faults.killed_in_checkpoint,
}
INTERRUPTIONS: dict[str, Fault] = KILLS | {
    "disk refuses to write (RLIMIT_FSIZE)": faults.file_limit,
}
FAULTS: dict[str, Fault] = INTERRUPTIONS | {
    "last checkpoint corrupted": faults.corrupted,
    "disk full (tmpfs)": faults.full_disk,
}


def trial(names: Sequence[str], training: faults.Training, out: Path, rng: random.Random) -> dict:
    """Injects faults into one training in turn, runs it to its end; returns how, by fault.

    A fault that comes after the end of the training is repeated on a new one.
    """
    for _ in range(20):
        shutil.rmtree(out, ignore_errors=True)
        try:
            how = {name: FAULTS[name](training, out, rng) for name in names}
        except faults.Passed:
            continue
        if names[0] in INTERRUPTIONS:
            faults.resumed(training, out)
        return how
    raise AssertionError("the fault came too late in each of 20 trainings")


def counted(how: Sequence[str]) -> str:
    """Texts, with the number of occurrences of each."""
    counts = collections.Counter(how).most_common()
    return "; ".join(f"{text} ({n})" if len(how) > 1 else text for text, n in counts)


def chains(names: Sequence[str], together: bool) -> Iterator[list[str]]:
    """The faults of one training: each fault alone, or several kills, as their starts take long."""
    kills = [name for name in names if name in KILLS]
    if together and kills:
        yield kills
    yield from ([name] for name in names if not (together and name in KILLS))


def befallen(a: argparse.Namespace, processes: int, folder: Path) -> Iterator[Row]:
    """The faults of processes. A fault that is not survived is printed; the others continue."""
    several = ", two processes" if processes > 1 else ""
    names = [name for name in FAULTS if re.search(a.only, name + several)]
    if not names:
        return
    size = (3, 1024) if a.fast else (a.epochs, 8000 // processes**2)
    training = faults.undisturbed(folder, *size, processes)
    say(f"one training{several}: {training.start:.1f} s to the first epoch, {training.rest:.1f} s")
    for chain in chains(names, a.fast or processes > 1):
        title = ", ".join(name + several for name in chain)
        rng, found, tried = random.Random(f"{a.seed} {title}"), [], 0
        for i in range(1 if a.fast else a.times):
            try:
                found.append(trial(chain, training, folder / "trial", rng))
            except AssertionError as error:
                say(f"{title}: NOT SURVIVED: {error}")
            except PermissionError as error:
                say(f"{title}: left out: {error}")
                break
            tried += 1
            say(f"{title}: {i + 1}: {', '.join(found[-1].values()) if found else ''}")
        for name in chain:
            yield name + several, tried, len(found), counted([how[name] for how in found])


def checks(fast: bool) -> dict[str, tuple[int, Callable[[], str]]]:
    """The tests in this process, by name, with their counts; each returns how it was survived."""
    found: dict[str, tuple[int, Callable[[], str]]] = {}
    count = 20_000 if fast else 2_000_000
    for name, (tx, dtype) in steps.optimizers().items():
        found[f"steps: {name}"] = count, functools.partial(steps.many, tx, dtype, count)
        found[f"count near 2³¹-1: {name}"] = 1, functools.partial(steps.saturated, tx, dtype)
    return found


def say(text: str) -> None:
    """Progress, separate from the table."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--times", type=positive, default=30, help="each fault (%(default)s)")
    arguments.add_argument("--epochs", type=positive, default=12, help="of each (%(default)s)")
    arguments.add_argument("--only", default="", metavar="REGEX")
    arguments.add_argument("--seed", type=seed, default=0)
    arguments.add_argument("--fast", action="store_true")
    a = arguments.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for processes in (1, 2):
            rows += befallen(a, processes, folder)
        for name, (tried, check) in checks(a.fast).items():
            if not re.search(a.only, name):
                continue
            say(name)
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    rows.append((name, tried, tried, check()))
            except AssertionError as error:
                rows.append((name, tried, 0, str(error)))
    print(describe("jax", "optax", "orbax-checkpoint"))
    print("\n| fault | times tried | times survived | how |\n|---|---|---|---|")
    for name, tried, survived, how in rows:
        print(f"| {name} | {tried:,} | {survived:,} | {how} |")
    sys.exit(any(tried != survived for _, tried, survived, _ in rows))


if __name__ == "__main__":
    main()
