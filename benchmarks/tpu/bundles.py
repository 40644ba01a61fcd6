"""The length of a step's kernels, from the instruction dump of the TPU's compiler.

python -m benchmarks.tpu.bundles GENERATION CASE SHAPE

Prints JSON. `benchmarks.tpu --bundles` runs it as a process, because the compiler reads the
option only when it is loaded. It writes 30 MB or more per kernel, to a temporary folder.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from examples import strict_json

KERNEL = "leaf_step"
BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+((?:L[BHE]|P[BF]|CT)?)[^:]*:\s*(>*)(.*)")
EXIT = re.compile(r"scmp\.\w+\.\w+\.totalorder (%\w+), (\d+) /\* loop exit test")
COUNTER = re.compile(r"(%\w+) = sadd\.s32 (\d+), ")  # An unrolled loop counts by more than one.


class Loop:
    """A loop's own bundles, without those of inner loops."""

    def __init__(self, depth: int) -> None:
        self.depth, self.bundles = depth, 0
        self.turns: int | None = None
        self.inside: list[Loop] = []

    @property
    def known_turns(self) -> int:
        """The number of iterations.

        Raises:
          ValueError: the program does not contain it.
        """
        if self.turns is None:
            raise ValueError("the length of a loop is not in the program")
        return self.turns

    def total(self) -> int:
        """Bundles of all iterations."""
        return self.known_turns * (self.bundles + sum(loop.total() for loop in self.inside))

    def innermost(self, turns: int = 1) -> list[tuple[int, int]]:
        """Bundles of the loops without an inner loop, and their iterations."""
        turns *= self.known_turns
        if not self.inside:
            return [(self.bundles, turns)]
        return [found for loop in self.inside for found in loop.innermost(turns)]


class Length(NamedTuple):
    """The length of a kernel's program on one core.

    Attributes:
      total: bundles in all: the cycles, if no transfer is waited for.
      inner: those of the innermost loops.
    """

    total: int
    inner: int


def length(text: str) -> Length:
    """Parses `*final_bundles.txt`: a bundle per line, loops marked by `LB:` and a number of `>`."""
    root = Loop(0)
    root.turns, open_loops = 1, [root]
    step = dict(COUNTER.findall(text))
    for line in text.splitlines():
        if not (bundle := BUNDLE.match(line)):
            continue
        label, depth, rest = bundle[1], len(bundle[2]), bundle[3]
        if rest.lstrip().startswith("{}"):  # A bundle that waits is not marked.
            depth = open_loops[-1].depth
        while open_loops[-1].depth > depth or (label == "LB" and open_loops[-1].depth == depth):
            open_loops.pop()
        if open_loops[-1].depth < depth:
            # Bundles of the outer loop may be among those of an inner loop.
            if label == "LB" or not open_loops[-1].inside:
                open_loops[-1].inside.append(Loop(depth))
            open_loops.append(open_loops[-1].inside[-1])
        open_loops[-1].bundles += 1
        if end := EXIT.search(rest):
            open_loops[-1].turns = math.ceil(int(end[2]) / int(step.get(end[1], 1)))
    for loop in root.inside:
        # The pipeline of transfers iterates once more at each end, and skips the inside.
        loop.turns = loop.known_turns - (2 if loop.known_turns > 2 else 0)
    inner = sum(bundles * turns for bundles, turns in root.innermost())
    return Length(root.total(), inner if root.inside else root.bundles)


def of_kernels(folder: Path) -> list[Length]:
    """The sum over all kernels in that folder."""
    files = folder.glob(f"*{KERNEL}*final_bundles.txt")
    return [length(f.read_text()) for f in files if "schedule-analysis" not in f.name]


def measured(generation: str, case: str, shape: tuple[int, ...]) -> dict[str, float]:
    """The kernels of a case that has some, compiled in a separate process.

    Returns:
      bundles: of the innermost loops for each 8 x 128 parameters.
      cycles: of all kernels, per parameter and device.
    """
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        options = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {dump}"
        command = [sys.executable, "-m", "benchmarks.tpu.bundles", generation, case]
        done = subprocess.run(
            [*command, ",".join(map(str, shape))],
            env=os.environ | {"LIBTPU_INIT_ARGS": options, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
        found = of_kernels(Path(folder))
    if not found:
        raise RuntimeError(f"{case} for {generation} has a kernel, but none called {KERNEL}")
    cores, size = json.loads(done.stdout.splitlines()[-1])["cores"], math.prod(shape)
    return {
        "bundles": sum(kernel.inner for kernel in found) * cores / (size / 1024),
        "cycles": sum(kernel.total for kernel in found) / size,
    }


def main() -> None:
    import jax

    from benchmarks.tpu.cases import CASES, leaf
    from benchmarks.tpu.machine import tpus
    from benchmarks.tpu.rows import compiled

    jax.config.update("jax_platforms", "cpu")
    generation, case, shape = sys.argv[1:]
    compiled(generation, CASES[case], leaf(tuple(map(int, shape.split(",")))))
    core: Any = tpus(generation)[0]
    print(strict_json.dumps({"cores": core.num_cores}))


if __name__ == "__main__":
    main()
