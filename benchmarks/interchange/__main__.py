"""Runs that begin in one library and continue in another: their difference 20 steps later.

python -m benchmarks.interchange [--only WORD]
"""

import argparse
import sys
from typing import NamedTuple

import jax

from benchmarks.interchange.conversions import LIBRARIES, Conversion
from benchmarks.interchange.runs import apart, gradients, start
from benchmarks.machine import describe

BEFORE, AFTER = 30, 20


class Difference(NamedTuple):
    """Largest differences of the parameters, as a share of the distance that they move meanwhile.

    Attributes:
      way: the direction of the conversion.
      name: of the optimizer.
      once: after one step, in float32.
      float32: in 20 steps.
      float64: in 20 steps.
      new_state: in 20 steps in float32, with a new state instead of the converted one.
    """

    way: str
    name: str
    once: float
    float32: float
    float64: float
    new_state: float


def differences(conversion: Conversion, *converted: bool) -> list[tuple[float, float]]:
    """Distances of runs with the converted state (or a new one) from the original run."""
    grads = gradients(BEFORE + AFTER, conversion.decades)
    run = conversion.begin(start())
    for g in grads[:BEFORE]:
        run.step(g)
    return apart(run, [conversion.go_on(run, c) for c in converted], grads[BEFORE:])


def measure(conversion: Conversion) -> Difference:
    """In float32 and float64, and with a new state instead of the converted one."""
    (once, single), (_, new) = differences(conversion, True, False)
    with jax.enable_x64(True):
        [(_, double)] = differences(conversion, True)
    return Difference(conversion.way, conversion.name, once, single, double, new)


def markdown(found: list[Difference]) -> str:
    lines = [
        "| way | optimizer | after 1 step | in 20 steps | in float64 | with a new state |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for d in found:
        figures = (d.once, d.float32, d.float64, d.new_state)
        shown = (f"{x:.1e}" for x in figures)
        lines.append(f"| {' | '.join((d.way, d.name, *shown))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="ways and optimizers with this word")
    options = parser.parse_args()
    found, installed = [], ["jax", "optax"]
    for library, conversions in LIBRARIES.items():
        try:
            chosen = [c for c in conversions() if options.only in f"{c.way} {c.name}"]
        except ModuleNotFoundError as error:
            print(f"{library} left out: {error}", file=sys.stderr)
            continue
        installed += [library] if library not in installed else []
        found += [measure(conversion) for conversion in chosen]
    print(describe(*installed))
    print(markdown(found))


if __name__ == "__main__":
    main()
