"""Mutation tests: wrong versions of single lines of `adam_jax`, each of which tests must detect.

python -m tests.tools.mutations            runs all mutations; 15 minutes on a core
python -m tests.tools.mutations clip ema   those whose name or file has one of the words

Each mutation changes a copy of the package. Its tests, which are part of `make test`, run there
until one fails. A line that is no longer in its file is an error.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.tools.package import ROOT, without_the_package


class Mutation(NamedTuple):
    """A line of a file, its wrong version, and the tests of which one must fail.

    Attributes:
      name: the mistake.
      file: path below `adam_jax`.
      old: part of a line; must occur once in the file.
      new: its replacement.
      tests: files below `tests`, separated by spaces.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(
        "the sign of the update",
        "rules/adam.py",
        "return ScaleByLearningRate(-self.learning_rate, False)",
        "return ScaleByLearningRate(self.learning_rate, False)",
        "rules/test_arithmetic.py",
    ),
    Mutation(
        "the sign of weight decay behind the learning rate",
        "rules/adam.py",
        "-self.weight_decay if self.downhill else self.weight_decay",
        "self.weight_decay",
        "family/test_decay.py rules/test_arithmetic.py",
    ),
    Mutation(
        "no bias correction",
        "numerics.py",
        "return 1 / self.correction(count)",
        "return jnp.ones_like(self.correction(count))",
        "rules/test_arithmetic.py",
    ),
    Mutation(
        "a step count off by one",
        "numerics.py",
        "+ (1 + ahead)",
        "+ (2 + ahead)",
        "rules/test_arithmetic.py",
    ),
    Mutation(
        "the rate in the place of its complement",
        "numerics.py",
        "return old + self.complement * (new - old)",
        "return new + self.complement * (old - new)",
        "rules/test_arithmetic.py",
    ),
    Mutation(
        "eps inside the root",
        "rules/adam.py",
        "return divide(first, root(second) + self.every_eps, self.above_zero)",
        "return divide(first, root(second + self.every_eps), self.above_zero)",
        "rules/test_arithmetic.py",
    ),
    Mutation(
        "eps_root left out",
        "rules/adam.py",
        "second = exact(second) + self.eps_root",
        "second = exact(second)",
        "rules/test_arithmetic.py",
    ),
    Mutation(
        "nu without a square",
        "rules/adam.py",
        "return mu, self.second(leaf, squared(leaf.g))",
        "return mu, self.second(leaf, jnp.abs(leaf.g))",
        "rules/test_arithmetic.py",
    ),
    Mutation(
        "accumulators of a refused step",
        "core/leaf.py",
        "self.new[slot] = select(self._taken, x, self.old[slot])",
        "self.new[slot] = x",
        "core/test_refused_steps.py wrap/test_skip.py",
    ),
    Mutation(
        "parameters of a refused step",
        "core/leaf.py",
        "return select(taken, p + u, p), views",
        "return p + u, views",
        "core/test_refused_steps.py wrap/test_skip.py",
    ),
    Mutation(
        "codes of a refused step",
        "core/leaf.py",
        "new.append(select(taken, stored, old) if fmt.rounds else stored)",
        "new.append(stored)",
        "core/test_refused_steps.py",
    ),
    Mutation(
        "the count of a refused step",
        "core/step.py",
        "self.but(ok=condition if self.ok is None else condition & self.ok)",
        "self.but(ok=condition)",
        "core/test_refused_steps.py wrap/test_skip.py wrap/test_chain.py",
    ),
    Mutation(
        "codes without their scale",
        "formats/blockwise.py",
        "return self.codec.value(codes) * scale",
        "return self.codec.value(codes)",
        "formats/test_blockwise.py",
    ),
    Mutation(
        "a swapped scale",
        "formats/blockwise.py",
        "return self.codec.code(quotient(x, scale), noise)",
        "return self.codec.code(x * scale, noise)",
        "formats/test_blockwise.py",
    ),
    Mutation(
        "codes of 4 bits off by one",
        "formats/blockwise.py",
        "level + (1 + self._lowest)",
        "level + self._lowest",
        "formats/test_blockwise.py formats/test_base.py",
    ),
    Mutation(
        "means over the wrong axis",
        "formats/factored.py",
        "return RowAndColumnMeans(_mean(x, self.column_axis), _mean(x, self.row_axis), self)",
        "return RowAndColumnMeans(_mean(x, self.row_axis), _mean(x, self.column_axis), self)",
        "formats/test_factored.py",
    ),
    Mutation(
        "one leaf's noise for all",
        "formats/noise.py",
        "own = np.uint32((int(MOMENTS) + leaf * int(LEAVES)) % 2**32)",
        "own = np.uint32(int(MOMENTS) % 2**32)",
        "formats/test_base.py formats/test_states.py core/test_stacked.py",
    ),
    Mutation(
        "a residual with the other sign",
        "formats/rounding.py",
        "lower = jax.lax.convert_element_type(rest, jnp.int32) << np.int32(16 - self.bits)",
        "lower = -jax.lax.convert_element_type(rest, jnp.int32) << np.int32(16 - self.bits)",
        "wrap/test_weights.py",
    ),
    Mutation(
        "the maximum of AMSGrad left out",
        "family/amsgrad.py",
        'jnp.maximum(leaf.old["nu_max"], self.ema(leaf, term))',
        "self.ema(leaf, term)",
        "rules/test_arithmetic.py",
    ),
    Mutation(
        "surprise around the old mean",
        "family/adabelief.py",
        'squared(bounded(leaf.g - leaf.new["mu"], times=4))',
        'squared(bounded(leaf.g - leaf.old["mu"], times=4))',
        "rules/test_arithmetic.py",
    ),
    Mutation(
        "the trust ratio upside down",
        "family/lamb.py",
        "return jnp.sqrt(jnp.where(moves, params, 1)) / norm * leaf.g",
        "return norm / jnp.sqrt(jnp.where(moves, params, 1)) * leaf.g",
        "rules/test_arithmetic.py",
    ),
    Mutation(
        "Lion's two rates swapped",
        "family/lion.py",
        'x = self.b1.average(leaf.old["mu"], leaf.g)',
        'x = self.b2.average(leaf.old["mu"], leaf.g)',
        "rules/test_arithmetic.py",
    ),
    Mutation(
        "MARS compares with the first gradient",
        "family/mars.py",
        'jnp.where(self.later >= 0, leaf.g, leaf.old["g"])',
        'jnp.where(self.later > 0, leaf.old["g"], leaf.g)',
        "family/test_mars.py rules/test_arithmetic.py",
    ),
    Mutation(
        "clipping squares the factor",
        "wrap/clip.py",
        "limit / divisor)",
        "limit / divisor / divisor)",
        "wrap/test_chain.py wrap/test_clip.py",
    ),
    Mutation(
        "half of a micro-batch's weight",
        "wrap/accumulate.py",
        "moved = old + (2 * part / whole)",
        "moved = old + (part / whole)",
        "wrap/test_chain.py",
    ),
    Mutation(
        "the average of parameters is not corrected",
        "wrap/ema.py",
        "weight = weight * self.rate.debiasing(state.count)",
        "weight = weight * 1",
        "wrap/test_chain.py wrap/test_clip.py",
    ),
    Mutation(
        "decay one step early",
        "schedules.py",
        "left = self.warmup_steps + self.stable_steps + self.decay_steps - t",
        "left = self.warmup_steps + self.stable_steps + self.decay_steps - t - 1",
        "test_schedules.py",
    ),
    Mutation(
        "the first group's numbers for all",
        "groups.py",
        "self.chosen[-1 if i is None else i]",
        "self.chosen[-1 if i is None else 0]",
        "groups/test_groups.py",
    ),
    Mutation(
        "layers share their numbers",
        "core/stacked.py",
        "found += [Stack(axes, first + k, stride) for k in range(stride)]",
        "found += [Stack(axes, first, stride) for k in range(stride)]",
        "core/test_stacked.py formats/test_block_means.py",
    ),
    Mutation(
        "muP grows the rate",
        "transfer/mup.py",
        "return Factors(depth ** (alpha - 1) / inputs,",
        "return Factors(depth ** (alpha - 1) * inputs,",
        "transfer",
    ),
    Mutation(
        "the state split along the wrong axis",
        "sharding.py",
        "for i in sorted(range(len(shape)), key=rank):",
        "for i in sorted(range(len(shape)), key=rank, reverse=True):",
        "sharding/test_shard.py sharding/test_shard_states.py",
    ),
    Mutation(
        "PyTorch's step count off by one",
        "convert/pytorch.py",
        '"step": np.array(steps, np.float32)',
        '"step": np.array(steps + 1, np.float32)',
        "convert/test_pytorch.py",
    ),
    Mutation(
        "a zero that LLVM multiplies by a constant",
        "numerics.py",
        'own_zero = _elementwise(\n    "own_zero", lambda x: x,',
        'own_zero = _elementwise(\n    "own_zero", lambda x: jax.lax.full_like(x, 0),',
        "numerics/test_exact.py",
    ),
]


def mutated(mutation: Mutation, folder: Path) -> None:
    """Copies the package and its tests to a folder and applies the mutation."""
    without_the_package(folder)
    shutil.copytree(ROOT / "adam_jax", folder / "adam_jax")
    path = folder / "adam_jax" / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file} must have {mutation.old!r} once.")
    path.write_text(text.replace(mutation.old, mutation.new))


def found(mutation: Mutation) -> str:
    """The name of the failing test, or an empty string."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mutated(mutation, folder)
        tests = [f"tests/{test}" for test in mutation.tests.split()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", *tests]
        environment = {**os.environ, "PYTHONPATH": name, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        failed = re.findall(r"^_+ (test_.+) _+$", done.stdout, re.MULTILINE)
        if done.returncode == 1:
            return failed[0] if failed else "a test"
        if done.returncode:
            raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return ""


def main() -> int:
    """Prints the test that detects each mutation; returns 1 if one is not detected."""
    wanted = sys.argv[1:]
    chosen = [m for m in MUTATIONS if not wanted or any(w in m.name + m.file for w in wanted)]
    missed = 0
    for mutation in chosen:
        test = found(mutation)
        missed += not test
        print(f"{mutation.file}: {mutation.name}: {test or 'NOT FOUND'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} found")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
