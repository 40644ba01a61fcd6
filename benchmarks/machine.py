"""The machine and the versions behind a table, and the medians of interleaved runs."""

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
    """Seconds of each call, the peers taking turns: what slows the machine slows all of them.

    In an order drawn anew for each round: what one peer leaves in the caches favours each of the
    others as often. (To turn the order round favours the first and the last, which then run twice
    in a row: 10 % for two that were the same program.) `pause`, in seconds, goes before each call,
    for threads of the peer before that go on spinning.
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
