"""The machine and the versions of a table, and the medians of interleaved runs."""

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata


def describe(*packages: str) -> str:
    """One line: processor, cores, Python and the packages' versions."""
    with open("/proc/cpuinfo") as cpuinfo:
        names = [line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    cores = len(os.sched_getaffinity(0))
    return f"{names[0]}, {cores} cores, Python {platform.python_version()}, {versions}"


def interleaved(
    peers: Mapping[str, Callable[[], object]], rounds: int, pause: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of each call; the peers alternate, so a slowdown of the machine affects all.

    The order is drawn anew for each round, so the cache contents that one peer leaves favour each
    of the others equally often. (Reversing the order favours the first and the last peer, which
    then run twice in a row: 10 % for two copies of one program.) Each call waits for `pause`
    seconds first, for threads of the previous peer that still spin.
    """
    for run in peers.values():  # Compiles, and touches the memory.
        run()
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(rounds):
        for name, run in random.Random(turn).sample(list(peers.items()), len(peers)):
            time.sleep(pause)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each peer."""
    return {name: statistics.median(values) for name, values in seconds.items()}
