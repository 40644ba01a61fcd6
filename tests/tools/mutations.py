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

from tests.tools.package import ROOT, without_the_package

# By file of `adam_jax`: the mistake, a part of a line that occurs once, and its replacement.
MUTATIONS = {
    "rules/adam.py": {
        "the sign of the update": ("(-self.learning_rate, False", "(self.learning_rate, False"),
        "the sign of weight decay": ("-self.weight_decay if", "self.weight_decay if"),
        "eps inside the root": ("root(second) + self.every_eps", "root(second + self.every_eps)"),
        "eps_root left out": ("exact(second) + self.eps_root", "exact(second)"),
        "nu without a square": ("mu, self.second(leaf, squared(", "mu, self.second(leaf, jnp.abs("),
    },
    "rules/base.py": {
        "accumulators of a refused step": ("select(self._taken, x, self.old[slot])", "x"),
    },
    "rates.py": {
        "no bias correction": ("1 / self.correction(count)", "self.correction(count) ** 0"),
        "a step count off by one": ("power(t + ahead,", "power(t + ahead + 1,"),
        "the rate in the place of its complement": (
            "return old + self.complement * (new - old)",
            "return new + self.complement * (old - new)",
        ),
    },
    "numerics.py": {
        "a zero that LLVM multiplies by a constant": (
            'own_zero = _elementwise(\n    "own_zero", lambda x: x,',
            'own_zero = _elementwise(\n    "own_zero", lambda x: jax.lax.full_like(x, 0),',
        ),
    },
    "core/leaf.py": {
        "parameters of a refused step": ("return select(taken, p + u, p)", "return p + u"),
        "codes of a refused step": ("select(taken, stored, old) if fmt", "stored if fmt"),
    },
    "core/step.py": {
        "the count of a refused step": ("else condition & self.ok", "else condition"),
    },
    "core/stacked.py": {
        "layers share their numbers": ("first + k, stride) for k", "first, stride) for k"),
    },
    "formats/blockwise.py": {
        "codes without their scale": ("self.codec.value(codes) * scale", "self.codec.value(codes)"),
        "a swapped scale": ("code(quotient(x, scale), noise)", "code(x * scale, noise)"),
        "codes of 4 bits off by one": ("level + (1 + self._lowest)", "level + self._lowest"),
    },
    "formats/factored.py": {
        "means over the wrong axis": (
            "RowAndColumnMeans(_mean(x, self.column_axis), _mean(x, self.row_axis), self)",
            "RowAndColumnMeans(_mean(x, self.row_axis), _mean(x, self.column_axis), self)",
        ),
    },
    "formats/noise.py": {
        "one leaf's noise for all": ("(int(MOMENTS) + leaf * int(LEAVES))", "int(MOMENTS)"),
        "the whole leaf's bits on explicit axes": ("out = sharding_by_type(where)", "out = None"),
    },
    "formats/rounding.py": {
        "a residual with the other sign": ("lower = jax.lax.convert", "lower = -jax.lax.convert"),
    },
    "family/amsgrad.py": {
        "the maximum of AMSGrad left out": (
            'jnp.maximum(leaf.old["nu_max"], self.ema(leaf, term))',
            "self.ema(leaf, term)",
        ),
    },
    "family/adabelief.py": {
        "surprise around the old mean": ('leaf.g - leaf.new["mu"]', 'leaf.g - leaf.old["mu"]'),
    },
    "family/lamb.py": {
        "the trust ratio upside down": (
            "return jnp.sqrt(jnp.where(moves, params, 1)) / norm * leaf.g",
            "return norm / jnp.sqrt(jnp.where(moves, params, 1)) * leaf.g",
        ),
    },
    "family/lion.py": {"Lion's two rates swapped": ("x = self.b1.average", "x = self.b2.average")},
    "family/mars.py": {
        "MARS compares with the first gradient": (
            'jnp.where(self.later >= 0, leaf.g, leaf.old["g"])',
            'jnp.where(self.later > 0, leaf.old["g"], leaf.g)',
        ),
    },
    "wrap/clip.py": {
        "clipping squares the factor": ("limit / divisor)", "limit / divisor / divisor)"),
    },
    "wrap/history.py": {
        "a spike enters its own history": ("jnp.where(spike, largest, x) - mean", "x - mean"),
    },
    "wrap/leaf_counts.py": {
        "one count for all leaves": (
            "step.but(counts=tuple(counts))",
            "step.but(counts=(counts[step.here[0]],) * len(counts))",
        ),
    },
    "wrap/accumulate.py": {
        "half of a micro-batch's weight": ("(2 * part / whole)", "(part / whole)"),
    },
    "wrap/ema.py": {
        "an average without its correction": ("self.rate.debiasing(t) if", "1 if"),
        "an emulated decay one step early": ("(t, t + 1))", "(t + 1, t + 2))"),
        "an average without its rounding error": ("(x - old - error)) + error", "(x - old))"),
    },
    "schedules.py": {
        "a rate that grows": ("self.init_value / jnp.sqrt", "self.init_value * jnp.sqrt"),
    },
    "groups.py": {
        "the first group's numbers for all": ("else first + own", "else own"),
    },
    "transfer/mup.py": {
        "muP grows the rate": ("depth ** (alpha - 1) / inputs,", "depth ** (alpha - 1) * inputs,"),
    },
    "sharding.py": {
        "the state split along the wrong axis": ("key=rank):", "key=rank, reverse=True):"),
    },
    "convert/pytorch.py": {
        "PyTorch's step count off by one": ("np.array(steps, np", "np.array(steps + 1, np"),
    },
}
# Files below `tests`, of which one must fail.
TESTS = {
    "rules/adam.py": "rules/test_arithmetic.py family/test_decay.py",
    "rules/base.py": "core/test_refused_steps.py wrap/test_skip.py",
    "rates.py": "rules/test_arithmetic.py",
    "numerics.py": "numerics/test_exact.py",
    "core/leaf.py": "core/test_refused_steps.py wrap/test_skip.py",
    "core/step.py": "core/test_refused_steps.py wrap/test_skip.py wrap/test_chain.py",
    "core/stacked.py": "core/test_stacked.py formats/test_block_means.py",
    "formats/blockwise.py": "formats/test_blockwise.py formats/test_base.py",
    "formats/factored.py": "formats/test_factored.py",
    "formats/noise.py": "formats/test_base.py formats/test_states.py core/test_stacked.py",
    "formats/rounding.py": "wrap/test_weights.py",
    "family/amsgrad.py": "rules/test_arithmetic.py",
    "family/adabelief.py": "rules/test_arithmetic.py",
    "family/lamb.py": "rules/test_arithmetic.py",
    "family/lion.py": "rules/test_arithmetic.py",
    "family/mars.py": "rules/test_arithmetic.py",
    "wrap/clip.py": "wrap/test_clip.py wrap/test_chain.py",
    "wrap/history.py": "wrap/test_history.py",
    "wrap/leaf_counts.py": "wrap/test_leaf_counts.py",
    "wrap/accumulate.py": "wrap/test_chain.py",
    "wrap/ema.py": "wrap/test_ema.py wrap/test_chain.py",
    "schedules.py": "test_schedules.py",
    "groups.py": "groups/test_groups.py",
    "transfer/mup.py": "transfer",
    "sharding.py": "sharding/test_shard.py sharding/test_shard_states.py",
    "convert/pytorch.py": "convert/test_pytorch.py",
}


def found(file: str, old: str, new: str) -> str:
    """The name of the test that fails with a mutation, or an empty string."""
    with tempfile.TemporaryDirectory() as name:
        folder = without_the_package(Path(name))
        shutil.copytree(ROOT / "adam_jax", folder / "adam_jax")
        path = folder / "adam_jax" / file
        text = path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{file} must have {old!r} once.")
        path.write_text(text.replace(old, new))
        tests = [f"tests/{test}" for test in TESTS[file].split()]
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
    every = [(file, name) for file, its in MUTATIONS.items() for name in its]
    words = sys.argv[1:] or [""]
    chosen = [(f, name) for f, name in every if any(word in f"{f} {name}" for word in words)]
    missed = 0
    for file, name in chosen:
        test = found(file, *MUTATIONS[file][name])
        missed += not test
        print(f"{file}: {name}: {test or 'NOT FOUND'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} found")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
